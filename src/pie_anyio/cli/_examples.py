# SPDX-License-Identifier: Apache-2.0
"""Where the example programs and questions are: in the installed package, or in the checkout it is run from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ._errors import FAILED, UserError

_PACKAGE: Final = Path(__file__).resolve().parent.parent


def examples_folder(package: Path = _PACKAGE) -> Path:
    """Give the folder of the examples.

    Raises:
        UserError: this installation has none.
    """
    for folder in (package / "_examples", package.parent.parent / "examples"):
        if (folder / "capitals.jsonl").is_file():
            return folder
    msg = "this installation has no example programs"
    raise UserError(msg, hint="install the wheel, or run from a checkout", code=FAILED)
