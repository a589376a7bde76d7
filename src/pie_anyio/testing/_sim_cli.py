# SPDX-License-Identifier: Apache-2.0
"""``python -m pie_anyio.testing.engine``: serve a simulated engine until interrupted."""

from __future__ import annotations

import argparse
import runpy
import signal
import sys
from collections.abc import Sequence
from inspect import iscoroutinefunction
from pathlib import Path

import anyio
from anyio import open_signal_receiver

from ._sim_demos import DEMOS
from ._sim_profiles import PROFILES
from ._sim_programs import InferletFunction
from .engine import SimulatedEngine

_EPILOG = """\
programs:
{demos}

A file given with --inferlets is run, and each of its public `async def name(session, input)` functions becomes the
program `name` with underscores as dashes, version 0.1.0:

  async def shout(session, input):
      await session.send(input["text"].upper())
      return len(input["text"])

The URL is printed on standard output as soon as the engine answers; Ctrl-C or SIGTERM stops it.
"""


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    demos = "\n".join(
        f"  {name:12}{(function.__doc__ or '').splitlines()[0]}" for name, function in DEMOS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m pie_anyio.testing.engine",
        description="Serve a simulated Pie engine: the whole wire protocol, with Python functions for programs.",
        epilog=_EPILOG.format(demos=demos),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8080, help="TCP port, 0 for any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--unix",
        metavar="PATH",
        type=Path,
        help="listen on a Unix socket instead; the URL becomes ws+unix://PATH",
    )
    parser.add_argument(
        "--profile",
        choices=list(PROFILES),
        default="v05",
        help="v05 (0.5.2), v04 (0.4 as documented) or v04-faithful (0.4 as it is) (default: %(default)s)",
    )
    parser.add_argument("--token", help="what auth_by_token wants (0.4); made up and printed if not given")
    parser.add_argument(
        "--max-processes", type=int, metavar="N", help="programs that run at once; more have to wait"
    )
    parser.add_argument(
        "--capacity",
        type=int,
        metavar="N",
        help="refuse launches above so many live processes, as a full engine does",
    )
    parser.add_argument("--inferlets", metavar="FILE.py", type=Path, help="more programs, see below")
    parser.add_argument("--trio", action="store_true", help="run on trio instead of asyncio")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and serve."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.inferlets is not None and not arguments.inferlets.is_file():
        parser.error(f"there is no file {arguments.inferlets}")
    anyio.run(_serve, arguments, backend="trio" if arguments.trio else "asyncio")


async def _serve(arguments: argparse.Namespace) -> None:
    with open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        engine = SimulatedEngine(
            arguments.profile,
            host=arguments.host,
            port=arguments.port,
            unix_path=arguments.unix,
            token=arguments.token,
            max_processes=arguments.max_processes,
        )
        engine.faults.capacity = arguments.capacity
        for name, function in {**DEMOS, **_load(arguments.inferlets)}.items():
            engine.inferlet(name)(function)
        async with engine:
            print(engine.url, flush=True)  # noqa: T201 - the URL is what the caller waits for
            if not engine.profile.v05 and arguments.token is None:
                print(f"token: {engine.token}", file=sys.stderr, flush=True)  # noqa: T201
            await anext(signals)


def _load(path: Path | None) -> dict[str, InferletFunction]:
    """Run a file and give its own public coroutine functions."""
    if path is None:
        return {}
    names = runpy.run_path(str(path), run_name="inferlets")
    return {
        name.replace("_", "-"): value
        for name, value in names.items()
        if iscoroutinefunction(value) and value.__module__ == "inferlets" and not name.startswith("_")
    }
