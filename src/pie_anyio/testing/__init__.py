# SPDX-License-Identifier: Apache-2.0
"""The testing kit: engines to test against, and what it takes to test code that waits.

Every name is imported on first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .clock import VirtualTimeLoop as VirtualTimeLoop
    from .clock import virtual_backend as virtual_backend
    from .engine import InferletSession as InferletSession
    from .engine import ReceivedRequest as ReceivedRequest
    from .engine import SimulatedEngine as SimulatedEngine
    from .engine import ToolError as ToolError
    from .faults import Faults as Faults
    from .faults import FileDamage as FileDamage
    from .faults import Hold as Hold
    from .pair import ConnectionPair as ConnectionPair
    from .real_engine import RealEngine as RealEngine
    from .real_engine import RealEngineProcess as RealEngineProcess
    from .real_engine import RealEngineUnavailable as RealEngineUnavailable
    from .streams import MemoryConnectable as MemoryConnectable
    from .streams import memory_byte_stream_pair as memory_byte_stream_pair

_HOMES: Final = {
    "ConnectionPair": "pair",
    "Faults": "faults",
    "FileDamage": "faults",
    "Hold": "faults",
    "InferletSession": "engine",
    "MemoryConnectable": "streams",
    "RealEngine": "real_engine",
    "RealEngineProcess": "real_engine",
    "RealEngineUnavailable": "real_engine",
    "ReceivedRequest": "engine",
    "SimulatedEngine": "engine",
    "ToolError": "engine",
    "VirtualTimeLoop": "clock",
    "memory_byte_stream_pair": "streams",
    "virtual_backend": "clock",
}

__all__ = [
    "ConnectionPair",
    "Faults",
    "FileDamage",
    "Hold",
    "InferletSession",
    "MemoryConnectable",
    "RealEngine",
    "RealEngineProcess",
    "RealEngineUnavailable",
    "ReceivedRequest",
    "SimulatedEngine",
    "ToolError",
    "VirtualTimeLoop",
    "memory_byte_stream_pair",
    "virtual_backend",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    value.__module__ = __name__  # tracebacks and pickles name the public path
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
