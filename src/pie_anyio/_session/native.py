# SPDX-License-Identifier: Apache-2.0
"""Compiled help where there is some: the masking routine of the ``websockets`` package.

Nothing else of that package is used, and it need not be installed. The official client depends on it, so it mostly is.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.machinery import ExtensionFileLoader, PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Final

from .._protocol.masking import Mask, is_mask, mask

_PACKAGE: Final = "websockets"
_MODULE: Final = "websockets.speedups"


@cache
def best_mask() -> Mask:
    """Give the fastest masking routine that this machine has."""
    try:
        found = getattr(_load(), "apply_mask", None)
    except (ImportError, ValueError):  # ValueError: somebody has put a module without a spec in its place
        found = None
    return found if found is not None and is_mask(found) else mask


def _load() -> ModuleType | None:
    """Load the one extension module without its package, whose start takes ten times as long as all the rest here."""
    if _MODULE in sys.modules:
        return sys.modules[_MODULE]
    package = find_spec(_PACKAGE)
    if package is None or package.submodule_search_locations is None:
        return None
    spec = PathFinder.find_spec(_MODULE, package.submodule_search_locations)
    if spec is None or not isinstance(spec.loader, ExtensionFileLoader):
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
