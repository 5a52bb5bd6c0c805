"""`python -m mmva_platform.cli VERB ...`: the command of a submitted job; it ends at once if a secret is missing."""

import os
import sys

from mmva_platform.cli.context import WRONG_USAGE, leave
from mmva_platform.cli.main import main
from mmva_platform.submission.request import SECRETS_VARIABLE


def missing_secrets() -> list[str]:
    """Names of the submission's secrets that have no value in this node's environment."""
    names = filter(None, os.environ.get(SECRETS_VARIABLE, "").split(","))
    return [name for name in names if not os.environ.get(name)]


if __name__ == "__main__":
    if missing := missing_secrets():
        sys.stderr.write(
            f"mmva: {', '.join(missing)}: no value on this node; set it where the cluster's nodes get their "
            "environment (a Kubernetes secret, an instance's parameters)\n"
        )
        leave(WRONG_USAGE)
    main()
