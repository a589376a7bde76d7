# SPDX-License-Identifier: Apache-2.0
"""pie-anyio: the structured-concurrency client of the Pie LLM-serving engine, on asyncio and trio.

::

    async with PieClient("ws://127.0.0.1:8080") as client:
        answers = await client.map_processes("agent@0.1.0", questions, limit=64)
"""

from ._calls import ProcessCall as ProcessCall
from ._client import KeyLike as KeyLike
from ._events import AnyEvent as AnyEvent
from ._events import Error as Error
from ._events import Event as Event
from ._events import File as File
from ._events import Gap as Gap
from ._events import Message as Message
from ._events import ReceivedFile as ReceivedFile
from ._events import Return as Return
from ._events import Stderr as Stderr
from ._events import Stdout as Stdout
from ._exceptions import AuthenticationError as AuthenticationError
from ._exceptions import ConnectError as ConnectError
from ._exceptions import ConnectionClosed as ConnectionClosed
from ._exceptions import ConnectionLost as ConnectionLost
from ._exceptions import EngineBusy as EngineBusy
from ._exceptions import EngineError as EngineError
from ._exceptions import InsecureTransport as InsecureTransport
from ._exceptions import InsecureTransportWarning as InsecureTransportWarning
from ._exceptions import InvalidRequest as InvalidRequest
from ._exceptions import KeyFileError as KeyFileError
from ._exceptions import LocalProtocolError as LocalProtocolError
from ._exceptions import OutputOverflow as OutputOverflow
from ._exceptions import PieError as PieError
from ._exceptions import ProcessError as ProcessError
from ._exceptions import ProcessFailed as ProcessFailed
from ._exceptions import ProcessLost as ProcessLost
from ._exceptions import ProcessNotFound as ProcessNotFound
from ._exceptions import ProcessTerminated as ProcessTerminated
from ._exceptions import ProgramNotFound as ProgramNotFound
from ._exceptions import RemoteProtocolError as RemoteProtocolError
from ._exceptions import SessionError as SessionError
from ._exceptions import TransferError as TransferError
from ._exceptions import UnsupportedByEngine as UnsupportedByEngine
from ._flow.backoff import Backoff as Backoff
from ._inferlet import Inferlet as Inferlet
from ._inferlet import inferlet as inferlet
from ._keys import InsecureKeyFileWarning as InsecureKeyFileWarning
from ._keys import ParsedPrivateKey as ParsedPrivateKey
from ._keys import Passphrase as Passphrase
from ._keys import Signer as Signer
from ._manifest import Manifest as Manifest
from ._manifest import parse_manifest as parse_manifest
from ._map import MapCall as MapCall
from ._map import first_completed as first_completed
from ._map import map_processes as map_processes
from ._outcomes import AnyOutcome as AnyOutcome
from ._outcomes import Failed as Failed
from ._outcomes import Lost as Lost
from ._outcomes import NotStarted as NotStarted
from ._outcomes import Outcome as Outcome
from ._outcomes import Returned as Returned
from ._outcomes import Terminated as Terminated
from ._pie_client import PieClient as PieClient
from ._pool import ClientPool as ClientPool
from ._process import Process as Process
from ._process import ProcessResult as ProcessResult
from ._process import Timings as Timings
from ._receipt import Receipt as Receipt
from ._ssh_agent import AgentKey as AgentKey
from ._ssh_agent import agent_signers as agent_signers
from ._types import Capabilities as Capabilities
from ._types import Generation as Generation
from ._types import Keepalive as Keepalive
from ._types import Limits as Limits
from ._types import Reconnect as Reconnect

__all__ = [
    "AgentKey",
    "AnyEvent",
    "AnyOutcome",
    "AuthenticationError",
    "Backoff",
    "Capabilities",
    "ClientPool",
    "ConnectError",
    "ConnectionClosed",
    "ConnectionLost",
    "EngineBusy",
    "EngineError",
    "Error",
    "Event",
    "Failed",
    "File",
    "Gap",
    "Generation",
    "Inferlet",
    "InsecureKeyFileWarning",
    "InsecureTransport",
    "InsecureTransportWarning",
    "InvalidRequest",
    "Keepalive",
    "Reconnect",
    "KeyFileError",
    "KeyLike",
    "Limits",
    "LocalProtocolError",
    "Lost",
    "Manifest",
    "MapCall",
    "Message",
    "NotStarted",
    "Outcome",
    "OutputOverflow",
    "ParsedPrivateKey",
    "Passphrase",
    "PieClient",
    "PieError",
    "Process",
    "ProcessCall",
    "ProcessError",
    "ProcessFailed",
    "ProcessLost",
    "ProcessNotFound",
    "ProcessResult",
    "ProcessTerminated",
    "ProgramNotFound",
    "Receipt",
    "ReceivedFile",
    "RemoteProtocolError",
    "Return",
    "Returned",
    "SessionError",
    "Signer",
    "Stderr",
    "Stdout",
    "Terminated",
    "Timings",
    "TransferError",
    "UnsupportedByEngine",
    "agent_signers",
    "first_completed",
    "inferlet",
    "map_processes",
    "parse_manifest",
]


# Errors, reprs and documentation name the public path of what is imported from here.
def _name_publicly() -> None:
    for value in [globals()[name] for name in __all__]:
        if getattr(value, "__module__", "").startswith("pie_anyio."):
            value.__module__ = __name__


_name_publicly()
