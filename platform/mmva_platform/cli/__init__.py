"""`mmva`: one module per noun, no logic."""

import platform
import sys

if not hasattr(platform, "system"):  # then no further import works, not even that of the doctor
    sys.stderr.write(
        f"mmva: `import platform` finds {platform.__file__} instead of Python's own module: remove that file, or the "
        "folder above it from PYTHONPATH\n"
    )
    raise SystemExit(1)
