# SPDX-License-Identifier: Apache-2.0
"""A process that holds the engine's connection, so that clients may leave and come back to their processes."""

from .clients import KeptProcess as KeptProcess
from .clients import kept_processes as kept_processes
from .clients import rewind as rewind
from .clients import stop_keeper as stop_keeper
from .limits import KeeperLimits as KeeperLimits
from .secure import KeeperError as KeeperError
from .secure import KeeperRunning as KeeperRunning
from .server import Keeper as Keeper

__all__ = [
    "Keeper",
    "KeeperError",
    "KeeperLimits",
    "KeeperRunning",
    "KeptProcess",
    "kept_processes",
    "rewind",
    "stop_keeper",
]


# Errors, reprs and documentation name the public path of what is imported from here.
def _name_publicly() -> None:
    for name in __all__:
        globals()[name].__module__ = __name__


_name_publicly()
