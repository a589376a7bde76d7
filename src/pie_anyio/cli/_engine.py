# SPDX-License-Identifier: Apache-2.0
"""``engine``: serve an engine, a simulated one or the real one."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import click
from anyio import sleep_forever

from ._errors import FAILED, UserError
from ._loop import Cli, asynchronous


@click.command("engine", short_help="Serve a simulated engine, or the real one")
@click.option("--simulated/--real", "simulated", default=True, help="Python functions, or the engine itself.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any free one."
)
@click.option(
    "--profile",
    type=click.Choice(["v05", "v04", "v04-faithful"]),
    default="v05",
    show_default=True,
    help="Simulated: which generation.",
)
@click.option(
    "--capacity", type=click.IntRange(min=1), help="Simulated: refuse launches above so many live ones."
)
@click.option(
    "--pages", type=click.IntRange(min=16), default=256, show_default=True, help="Real: cache pages."
)
@asynchronous
async def engine(
    cli: Cli, *, simulated: bool, port: int, profile: str, capacity: int | None, pages: int
) -> int:
    """Serve an engine on 127.0.0.1 until interrupted; its URL is the first line of standard output.

    The simulated one runs Python functions in place of programs (echo, upper, sleeper, flood, fail, talk, file-echo)
    and speaks the whole protocol. The real one needs the extra 'engine' and a Vulkan device; its weights are noise.
    """
    if simulated:
        async with simulated_engine(port, profile, capacity) as (url, token):
            return await _serve(cli, url, token)
    async with real_engine(port, pages) as url:
        return await _serve(cli, url, None)


async def _serve(cli: Cli, url: str, token: str | None) -> int:
    cli.out.record("listening", url=url)
    cli.out.result(url)
    if token is not None:
        cli.out.note(f"token: {token}")
    await sleep_forever()
    return FAILED  # pragma: no cover - sleeping for ever does not end


@asynccontextmanager
async def simulated_engine(
    port: int, profile: str, capacity: int | None
) -> AsyncGenerator[tuple[str, str | None]]:
    """Serve a simulated engine with its programs for trying things out; give its URL, and its token where it has one.

    Raises:
        UserError: the port cannot be had.
    """
    from pie_anyio.testing import SimulatedEngine
    from pie_anyio.testing._sim_demos import DEMOS

    served = SimulatedEngine(profile, port=port)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    served.faults.capacity = capacity
    for name, function in DEMOS.items():
        served.inferlet(name)(function)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(served)
        except OSError as exc:
            msg = f"cannot listen on port {port}: {exc.strerror or exc}"
            raise UserError(msg, hint="--port 0 takes any free port", code=FAILED) from exc
        yield served.url, None if profile == "v05" else served.token


@asynccontextmanager
async def real_engine(port: int, pages: int) -> AsyncGenerator[str]:
    """Serve the real engine; give its URL.

    Raises:
        UserError: it does not run here.
    """
    from pie_anyio.testing import RealEngine, RealEngineUnavailable

    async with AsyncExitStack() as stack:
        try:
            served = RealEngine(port=port, max_total_pages=pages, home=engine_home())
            await stack.enter_async_context(served)
        except RealEngineUnavailable as exc:
            raise UserError(str(exc), hint="--simulated needs nothing", code=FAILED) from exc
        yield served.url


def engine_home() -> Path | None:
    """Give the folder where the real engine keeps compiled code between runs; None where there can be none."""
    import platformdirs

    folder = platformdirs.user_cache_path("pie-anyio", appauthor=False) / "engine"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
