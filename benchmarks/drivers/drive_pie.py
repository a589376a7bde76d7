# SPDX-License-Identifier: Apache-2.0
"""Drive pie-anyio on asyncio, asyncio with uvloop, or trio, through its public interface only.

The same work as `drive_official.py`, item for item; where that has to write out a pool of workers or a list of
things to stop, this uses what the library offers for it (`map_processes`).
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from common import ECHO, ECHO_MANIFEST, ECHO_SOURCE, PROGRAM, Report, fail, parse, payload, rss, version_of

from pie_anyio import File, PieClient, Stdout


async def work(count: int, limit: int, one: Callable[[int], Awaitable[None]]) -> None:
    """Call `one` `count` times from `limit` tasks."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    async with anyio.create_task_group() as group:
        for _ in range(min(limit, count)):
            group.start_soon(worker)


async def consume(process: Any) -> tuple[int, int]:
    """Read a process to its end; return how many events and how many characters."""
    count = size = 0
    async for event in process:
        if type(event) is Stdout:
            count += 1
            size += len(event.value)
    return count, size


async def live(client: PieClient) -> int:
    """Return how many processes the engine has."""
    _, text = await client.query("model_status", "")
    return int(json.loads(text)["live"])


async def runs(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Launches that return at once."""

    async def one(_: int) -> None:
        process = await client.launch_process(PROGRAM, {})
        await process.result()

    await work(min(500, p["n"]), p["limit"], one)
    with report.timed():
        await work(p["n"], p["limit"], one)
    report.set("runs_per_s", p["n"] / report.seconds, "/s")


async def events(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """A flood of stdout events from several processes at once."""

    async def flood(count: int) -> int:
        script = {"events": count, "size": p["size"], "barrier": p["processes"]}
        total = 0

        async def one(_: int) -> None:
            nonlocal total
            got, size = await consume(await client.launch_process(PROGRAM, script))
            if size != got * p["size"]:
                fail("an event has the wrong size")
            total += got

        await work(p["processes"], p["processes"], one)
        return total

    await flood(max(1, min(50, p["events"] // 10)))
    with report.timed():
        got = await flood(p["events"])
    if got != p["processes"] * p["events"]:
        fail(f"{got} events instead of {p['processes'] * p['events']}")
    report.set("events_per_s", got / report.seconds, "/s")
    report.set("event_mib_per_s", got * p["size"] / 2**20 / report.seconds, "MiB/s")


async def timed_ping(client: PieClient, samples: list[float], since: float | None = None) -> None:
    """Ping, and note how long it took."""
    start = time.perf_counter() if since is None else since
    await client.ping()
    samples.append(time.perf_counter() - start)


async def timed_launch(client: PieClient, samples: list[float], since: float | None = None) -> None:
    """Launch, and note how long the first event took."""
    start = time.perf_counter() if since is None else since
    process = await client.launch_process(PROGRAM, {"events": 1, "size": 64})
    await process.recv()
    samples.append(time.perf_counter() - start)
    await consume(process)


async def latency_idle(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Ping and first event, one at a time, nothing else going on."""
    pings: list[float] = []
    firsts: list[float] = []
    for _ in range(100):
        await timed_ping(client, [])
        await timed_launch(client, [])
    with report.timed():
        for _ in range(p["pings"]):
            await timed_ping(client, pings)
        for _ in range(p["launches"]):
            await timed_launch(client, firsts)
    report.latencies("ping", pings)
    report.latencies("first_event", firsts)


async def latency_loaded(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """The same while other processes stream; probes start by the clock, whether or not earlier ones are back."""
    pings: list[float] = []
    firsts: list[float] = []
    script = {"stream": True, "size": p["size"], "barrier": p["processes"], "rate": p["rate"]}
    total = 0

    async def stream(process: Any) -> None:
        nonlocal total
        count, _ = await consume(process)
        total += count

    async with anyio.create_task_group() as streams:
        processes: list[Any] = []

        async def one(_: int) -> None:
            processes.append(await client.launch_process(PROGRAM, script))

        await work(p["processes"], p["processes"], one)
        for process in processes:
            streams.start_soon(stream, process)
        await anyio.sleep(0.3)
        with report.timed():
            start = time.perf_counter()
            async with anyio.create_task_group() as probes:
                for number in range(int(p["seconds"] * 1000 / p["every_ms"])):
                    due = start + number * p["every_ms"] / 1000
                    await anyio.sleep(max(0.0, due - time.perf_counter()))
                    if number % 2:
                        probes.start_soon(timed_ping, client, pings, due)
                    else:
                        probes.start_soon(timed_launch, client, firsts, due)
        async with anyio.create_task_group() as group:
            for process in processes:
                group.start_soon(process.terminate)
    report.extra["events"] = total
    report.latencies("ping", pings)
    report.latencies("first_event", firsts)


async def upload(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Install a program from a file."""
    with report.timed():
        await client.install_program(p["path"], p["manifest"], force_overwrite=True)
    report.set("upload_mib_per_s", p["mib"] / report.seconds, "MiB/s")


async def files(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Files down, all at once; files up, a few at a time."""

    async def all_down() -> int:
        script = {"file": p["size"], "barrier": p["n"]}
        size = 0

        async def down(_: int) -> None:
            nonlocal size
            async for event in await client.launch_process(PROGRAM, script):
                if type(event) is File:
                    size += len(event.value)

        await work(p["n"], p["n"], down)
        return size

    total = p["n"] * p["size"]
    await all_down()
    with report.timed():
        got = await all_down()
    if got != total:
        fail(f"{got} bytes down instead of {total}")
    report.set("download_mib_per_s", total / 2**20 / report.seconds, "MiB/s")
    before = report.seconds

    async def up(number: int) -> None:
        process = await client.launch_process(PROGRAM, {"expect_file": True})
        await process.transfer_file(payload(number, p["size"]))
        await consume(process)

    with report.timed():
        await work(p["n"], p["at_once"], up)
    report.set("upload_files_mib_per_s", total / 2**20 / (report.seconds - before), "MiB/s")


async def alive(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Processes that all live at once."""
    processes: list[Any] = [None] * p["n"]

    async def one(number: int) -> None:
        processes[number] = await client.launch_process(PROGRAM, {"return": False})

    async def warm(_: int) -> None:
        process = await client.launch_process(PROGRAM, {})
        await process.result()

    await work(500, p["limit"], warm)
    with report.timed():
        await work(p["n"], p["limit"], one)
    if await live(client) != p["n"]:
        fail("not all are alive")
    report.set("kib_per_process", (rss() - report.base_rss) / 1024 / p["n"], "KiB")
    report.set("launches_per_s", p["n"] / report.seconds, "/s")


async def map_(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """A long sequence of inputs from a generator."""
    settled = 0
    done = 0
    inputs = ({"i": number} for number in range(p["n"]))
    with report.timed():
        async with client.map_processes(PROGRAM, inputs, limit=p["limit"]) as outcomes:
            async for _ in outcomes:
                done += 1
                if done == p["settle"]:
                    settled = rss()
    if done != p["n"]:
        fail(f"{done} outcomes instead of {p['n']}")
    report.set("inputs_per_s", p["n"] / report.seconds, "/s")
    if settled:
        report.set("rss_growth", (rss() - settled) / 2**20, "MiB")


async def cancel(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Leave a block in which everything still runs, until the engine has nothing left."""
    inputs = itertools.repeat({"return": False}, p["n"])
    async with client.map_processes(PROGRAM, inputs, limit=p["n"]) as outcomes:
        while await live(client) != p["n"]:  # noqa: ASYNC110 (as below)
            await anyio.sleep(0.02)
        timed = report.timed()
        timed.__enter__()
    while await live(client):  # noqa: ASYNC110 (the engine is what is being waited for)
        await anyio.sleep(0.001)
    timed.__exit__(None, None, None)
    report.set("cancel_seconds", report.seconds, "s")
    report.extra["unconfirmed"] = len(outcomes.receipt.unconfirmed)


async def engine(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Runs on a real engine: a program that returns its input."""
    took: list[float] = []

    async def one(number: int) -> None:
        before = time.perf_counter()
        process = await client.launch_process(ECHO, {"i": number})
        value = await process.result()
        took.append(time.perf_counter() - before)
        if value != {"i": number}:
            fail(f"run {number} returned {value}")

    await client.install_program_bytes(ECHO_SOURCE, ECHO_MANIFEST, force_overwrite=True)
    await work(16, 8, one)
    took.clear()
    with report.timed():
        await work(p["n"], p["limit"], one)
    report.set("runs_per_s", p["n"] / report.seconds, "/s")
    report.set("cpu_share", report.cpu / report.seconds, "")
    report.latencies("run", took)


WORKLOADS = {
    "runs": runs,
    "events": events,
    "latency_idle": latency_idle,
    "latency_loaded": latency_loaded,
    "upload": upload,
    "files": files,
    "alive": alive,
    "map": map_,
    "cancel": cancel,
    "engine": engine,
}


async def connect(url: str, report: Report, p: dict[str, Any]) -> None:
    """Connect, authenticate, close; nothing else."""
    closing = 0.0
    with report.timed():
        for _ in range(p["n"]):
            async with PieClient(url, username="bench"):
                before = time.perf_counter()
            closing += time.perf_counter() - before
    report.set("connect_close_ms", report.seconds / p["n"] * 1000, "ms")
    report.set("close_ms", closing / p["n"] * 1000, "ms")


async def main(args: Any, params: dict[str, Any], report: Report) -> None:
    """Run one workload."""
    if args.workload == "connect":
        await connect(args.url, report, params)
    else:
        async with PieClient(args.url, username="bench") as client:
            await WORKLOADS[args.workload](client, report, params)
    report.emit(args.workload, params)


if __name__ == "__main__":
    arguments, parameters = parse(__doc__ or "", ("asyncio", "uvloop", "trio"))
    backend = "trio" if arguments.backend == "trio" else "asyncio"
    options = {"use_uvloop": True} if arguments.backend == "uvloop" else {}
    figures = Report(
        arguments.name or f"pie-anyio-{arguments.backend}",
        version_of("pie-anyio", "anyio", "trio", "uvloop", "msgpack", "wsproto"),
    )
    anyio.run(main, arguments, parameters, figures, backend=backend, backend_options=options)
