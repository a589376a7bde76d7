# SPDX-License-Identifier: Apache-2.0
"""Start the command line, or say what it needs to be installed."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        for package in ("click", "platformdirs", "rich"):
            import_module(package)
    except ImportError as exc:
        sys.stderr.write(f'error: the command line needs {exc.name}: pip install "pie-anyio[cli]"\n')
        sys.exit(2)
    except KeyboardInterrupt:  # a Ctrl-C while Python was still loading
        sys.exit(130)
    from ._app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
