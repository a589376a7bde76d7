# SPDX-License-Identifier: Apache-2.0
"""Drive an official pie-client (0.4.0 or 0.5.3) the way someone who knows asyncio well would.

Fixed sets of worker tasks instead of a task per item behind a semaphore, input dictionaries built outside the loop, no
`wait_for` per event, uvloop where asked for.  What the client has no answer to (bounded memory, stopping what it
started) is written out by hand, as its users have to.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pie_client
from common import ECHO, ECHO_MANIFEST, ECHO_SOURCE, PROGRAM, Report, fail, parse, payload, rss, version_of
from pie_client import Event, PieClient

STDOUT, RETURN, ERROR, FILE = Event.Stdout, Event.Return, Event.Error, Event.File


async def run_once(client: PieClient, script: dict[str, Any], program: str = PROGRAM) -> str:
    """Launch one process and wait for its value."""
    process = await client.launch_process(program, script)
    while True:
        event, value = await process.recv()
        if event is RETURN:
            return value
        if event is ERROR:
            raise RuntimeError(value)


async def work(count: int, limit: int, one: Any) -> None:
    """Call `one` `count` times from `limit` tasks."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(min(limit, count))))


async def consume(process: Any) -> tuple[int, int]:
    """Read a process to its end; return how many events and how many characters."""
    recv = process.recv
    count = size = 0
    while True:
        event, value = await recv()
        if event is STDOUT:
            count += 1
            size += len(value)
        elif event is RETURN or event is ERROR:
            return count, size


async def live(client: PieClient) -> int:
    """Return how many processes the engine has."""
    _, text = await client.query("model_status", "")
    return json.loads(text)["live"]


async def runs(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Launches that return at once."""

    async def one(_: int) -> None:
        await run_once(client, {})

    await work(min(500, p["n"]), p["limit"], one)
    with report.timed():
        await work(p["n"], p["limit"], one)
    report.set("runs_per_s", p["n"] / report.seconds, "/s")


async def events(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """A flood of stdout events from several processes at once."""

    async def flood(count: int) -> int:
        script = {"events": count, "size": p["size"], "barrier": p["processes"]}

        async def one() -> int:
            got, size = await consume(await client.launch_process(PROGRAM, script))
            if size != got * p["size"]:
                fail("an event has the wrong size")
            return got

        return sum(await asyncio.gather(*(one() for _ in range(p["processes"]))))

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
    processes = await asyncio.gather(*(client.launch_process(PROGRAM, script) for _ in range(p["processes"])))
    readers = [asyncio.create_task(consume(process)) for process in processes]
    await asyncio.sleep(0.3)
    probes: list[asyncio.Task[None]] = []
    with report.timed():
        start = time.perf_counter()
        for number in range(int(p["seconds"] * 1000 / p["every_ms"])):
            due = start + number * p["every_ms"] / 1000
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            probe = timed_ping(client, pings, due) if number % 2 else timed_launch(client, firsts, due)
            probes.append(asyncio.create_task(probe))
        await asyncio.gather(*probes)
    await asyncio.gather(*(process.terminate() for process in processes))
    counts = await asyncio.gather(*readers)
    report.extra["events"] = sum(count for count, _ in counts)
    report.latencies("ping", pings)
    report.latencies("first_event", firsts)


async def upload(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Install a program from a file."""
    with report.timed():
        await client.install_program(p["path"], p["manifest"], force_overwrite=True)
    report.set("upload_mib_per_s", p["mib"] / report.seconds, "MiB/s")


async def files(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Files down, all at once; files up, a few at a time."""

    async def down(script: dict[str, Any]) -> int:
        process = await client.launch_process(PROGRAM, script)
        size = 0
        while True:
            event, value = await process.recv()
            if event is FILE:
                size += len(value)
            elif event is RETURN or event is ERROR:
                return size

    async def all_down() -> int:
        script = {"file": p["size"], "barrier": p["n"]}
        return sum(await asyncio.gather(*(down(script) for _ in range(p["n"]))))

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

    await work(500, p["limit"], lambda _: run_once(client, {}))
    with report.timed():
        await work(p["n"], p["limit"], one)
    if await live(client) != p["n"]:
        fail("not all are alive")
    report.set("kib_per_process", (rss() - report.base_rss) / 1024 / p["n"], "KiB")
    report.set("launches_per_s", p["n"] / report.seconds, "/s")


async def map_(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """A long sequence of inputs from a generator, through a fixed set of workers."""
    marks: dict[str, int] = {}
    failed = 0
    inputs = ({"i": number} for number in range(p["n"]))

    async def worker() -> None:
        nonlocal failed
        for script in inputs:
            if script["i"] == p["settle"]:
                marks["rss"] = rss()
            try:
                await run_once(client, script)
            except RuntimeError:
                failed += 1

    with report.timed():
        await asyncio.gather(*(worker() for _ in range(p["limit"])))
    if failed:
        fail(f"{failed} failed")
    report.set("inputs_per_s", p["n"] / report.seconds, "/s")
    if "rss" in marks:
        report.set("rss_growth", (rss() - marks["rss"]) / 2**20, "MiB")


async def cancel(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Stop everything that runs, until the engine has nothing left."""
    processes: list[Any] = [None] * p["n"]

    async def one(number: int) -> None:
        processes[number] = await client.launch_process(PROGRAM, {"return": False})

    await work(p["n"], p["limit"], one)
    if await live(client) != p["n"]:
        fail("not all are alive")
    numbers = iter(processes)

    async def stop() -> None:
        for process in numbers:
            await process.terminate()

    with report.timed():
        await asyncio.gather(*(stop() for _ in range(p["limit"])))
        while await live(client):  # noqa: ASYNC110 (the engine is what is being waited for)
            await asyncio.sleep(0.001)
    report.set("cancel_seconds", report.seconds, "s")


async def engine(client: PieClient, report: Report, p: dict[str, Any]) -> None:
    """Runs on a real engine: a program that returns its input."""
    took: list[float] = []

    async def one(number: int) -> None:
        before = time.perf_counter()
        value = await run_once(client, {"i": number}, ECHO)
        took.append(time.perf_counter() - before)
        if json.loads(value) != {"i": number}:
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
            client = PieClient(url)
            await client.connect()
            await client.authenticate("bench")
            before = time.perf_counter()
            await client.close()
            closing += time.perf_counter() - before
    report.set("connect_close_ms", report.seconds / p["n"] * 1000, "ms")
    report.set("close_ms", closing / p["n"] * 1000, "ms")


async def main(args: Any, params: dict[str, Any], report: Report) -> None:
    """Run one workload."""
    if args.workload == "connect":
        await connect(args.url, report, params)
        report.emit(args.workload, params)
        return
    async with PieClient(args.url) as client:
        await client.authenticate("bench")
        await WORKLOADS[args.workload](client, report, params)
        report.emit(args.workload, params)
        # A close that waits for an answer which 0.4 never gives is what `connect` measures; here it is only in the way.
        if client.ws is not None:
            client.ws.transport.abort()


if __name__ == "__main__":
    arguments, parameters = parse(__doc__ or "", ("asyncio", "uvloop"))
    figures = Report(
        arguments.name or f"official-{version_of('pie-client').get('pie-client', pie_client.__name__)}",
        version_of("pie-client", "websockets", "msgpack", "uvloop"),
    )
    if arguments.backend == "uvloop":
        import uvloop

        uvloop.run(main(arguments, parameters, figures))
    else:
        asyncio.run(main(arguments, parameters, figures))
