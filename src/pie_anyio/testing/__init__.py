# SPDX-License-Identifier: Apache-2.0
"""The testing kit: engines to test against, and what it takes to test code that waits.

Every name is imported on first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ._sim_auth import Users as Users
    from ._sim_demos import DEMOS as DEMOS
    from ._sim_profiles import ProfileName as ProfileName
    from ._sim_programs import InferletFunction as InferletFunction
    from .clock import VirtualTimeLoop as VirtualTimeLoop
    from .clock import virtual_backend as virtual_backend
    from .engine import InferletSession as InferletSession
    from .engine import ReceivedRequest as ReceivedRequest
    from .engine import SimulatedEngine as SimulatedEngine
    from .engine import ToolError as ToolError
    from .faults import Faults as Faults
    from .faults import FileDamage as FileDamage
    from .faults import Hold as Hold
    from .faults import Rewrite as Rewrite
    from .faulty import CutStream as CutStream
    from .faulty import Gate as Gate
    from .faulty import HalfOpenStream as HalfOpenStream
    from .faulty import SlowWriteStream as SlowWriteStream
    from .faulty import StallStream as StallStream
    from .faulty import TrickleStream as TrickleStream
    from .faulty import WrappedStream as WrappedStream
    from .pair import ConnectionPair as ConnectionPair
    from .proxy import CutProxy as CutProxy
    from .proxy import Link as Link
    from .proxy import LinkScript as LinkScript
    from .proxy import Passage as Passage
    from .proxy import Script as Script
    from .real_engine import RealEngine as RealEngine
    from .real_engine import RealEngineProcess as RealEngineProcess
    from .real_engine import RealEngineUnavailable as RealEngineUnavailable
    from .streams import MemoryByteStream as MemoryByteStream
    from .streams import MemoryConnectable as MemoryConnectable
    from .streams import MemoryListener as MemoryListener
    from .streams import memory_byte_stream_pair as memory_byte_stream_pair

_HOMES: Final = {
    "DEMOS": "_sim_demos",
    "ConnectionPair": "pair",
    "CutProxy": "proxy",
    "CutStream": "faulty",
    "Faults": "faults",
    "FileDamage": "faults",
    "Gate": "faulty",
    "HalfOpenStream": "faulty",
    "Hold": "faults",
    "InferletFunction": "_sim_programs",
    "InferletSession": "engine",
    "Link": "proxy",
    "LinkScript": "proxy",
    "MemoryByteStream": "streams",
    "MemoryConnectable": "streams",
    "MemoryListener": "streams",
    "Passage": "proxy",
    "ProfileName": "_sim_profiles",
    "RealEngine": "real_engine",
    "RealEngineProcess": "real_engine",
    "RealEngineUnavailable": "real_engine",
    "ReceivedRequest": "engine",
    "Rewrite": "faults",
    "Script": "proxy",
    "SimulatedEngine": "engine",
    "SlowWriteStream": "faulty",
    "StallStream": "faulty",
    "ToolError": "engine",
    "TrickleStream": "faulty",
    "Users": "_sim_auth",
    "VirtualTimeLoop": "clock",
    "WrappedStream": "faulty",
    "memory_byte_stream_pair": "streams",
    "virtual_backend": "clock",
}

__all__ = [
    "DEMOS",
    "ConnectionPair",
    "CutProxy",
    "CutStream",
    "Faults",
    "FileDamage",
    "Gate",
    "HalfOpenStream",
    "Hold",
    "InferletFunction",
    "InferletSession",
    "Link",
    "LinkScript",
    "MemoryByteStream",
    "MemoryConnectable",
    "MemoryListener",
    "Passage",
    "ProfileName",
    "RealEngine",
    "RealEngineProcess",
    "RealEngineUnavailable",
    "ReceivedRequest",
    "Rewrite",
    "Script",
    "SimulatedEngine",
    "SlowWriteStream",
    "StallStream",
    "ToolError",
    "TrickleStream",
    "Users",
    "VirtualTimeLoop",
    "WrappedStream",
    "memory_byte_stream_pair",
    "virtual_backend",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    if isinstance(value, (type, FunctionType)):
        value.__module__ = __name__  # tracebacks and pickles name the public path
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
