"""Make torchaudio importable next to a CPU-only torch.

PyPI's only torchaudio build links libc10_cuda.so. With a CPU torch its extension fails to load, and `import torchaudio`
raises OSError; so does transformers, which imports torchaudio if it is installed. torchaudio itself works without the
extension (only forced_align and rnnt_loss are missing; lfilter uses its Python code). This module therefore replaces
torchaudio's extension loader before anything imports it. It does nothing if the real extension can load.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_LOADER = "torchaudio._extension"
_CUDA_LIBRARY = "libc10_cuda.so"


def ensure_torchaudio_importable() -> bool:
    """Install the replacement if needed. Returns whether it was. Imports neither torch nor torchaudio."""
    if sys.platform != "linux" or "torchaudio" in sys.modules or _LOADER in sys.modules:
        return False
    torch_dir, torchaudio_dir = _package_dir("torch"), _package_dir("torchaudio")
    if torch_dir is None or torchaudio_dir is None or (torch_dir / "lib" / _CUDA_LIBRARY).exists():
        return False
    extensions = (torchaudio_dir / "lib").glob("_torchaudio*.so")
    if not any(_CUDA_LIBRARY.encode() in path.read_bytes() for path in extensions):
        return False
    sys.modules[_LOADER] = _replacement()
    return True


def _package_dir(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _replacement() -> ModuleType:
    module: Any = ModuleType(_LOADER)
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False  # noqa: SLF001 - torchaudio's own names
    module._IS_ALIGN_AVAILABLE = False  # noqa: SLF001
    module._check_cuda_version = lambda: None  # noqa: SLF001
    module.fail_if_no_align = _unavailable
    return module


def _unavailable(function: Callable[..., Any]) -> Callable[..., NoReturn]:
    def missing(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"{function.__name__} needs torchaudio's compiled extension, which needs a CUDA build of torch"
        )

    return missing
