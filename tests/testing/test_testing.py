# SPDX-License-Identifier: Apache-2.0
"""The facade of the testing kit."""

from __future__ import annotations

import subprocess
import sys
from types import FunctionType

import pytest

import pie_anyio.testing


@pytest.mark.parametrize("name", pie_anyio.testing.__all__)
def test_every_name_is_there(name: str) -> None:
    """Each name that is promised can be had, and is shown by ``dir``."""
    value = getattr(pie_anyio.testing, name)
    assert name in dir(pie_anyio.testing)
    if isinstance(value, (type, FunctionType)):  # else it is a table or the alias of a type
        assert (value.__module__, value.__name__) == ("pie_anyio.testing", name)


def test_other_names_are_not() -> None:
    """A wrong name fails as it does in any module."""
    with pytest.raises(AttributeError, match=r"has no attribute 'Nonsense'"):
        _ = pie_anyio.testing.Nonsense


def test_importing_is_light() -> None:
    """Neither an event loop nor anything else of weight is imported before it is used."""
    heavy = ["pytest", "trio.testing", "pie_anyio.testing.engine"]
    code = f"import sys, pie_anyio.testing; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
