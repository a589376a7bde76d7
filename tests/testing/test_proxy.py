# SPDX-License-Identifier: Apache-2.0
"""The network that misbehaves to order: each fault at its byte, in memory and over TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream, ByteStreamConnectable

from pie_anyio import ConnectError, ConnectionLost, PieClient
from pie_anyio.testing import (
    CutProxy,
    LinkScript,
    MemoryConnectable,
    Passage,
    SimulatedEngine,
    TrickleStream,
    memory_byte_stream_pair,
)
from pie_anyio.testing import proxy as proxy_module


class Network:
    """A listener in memory, and the engine's ends of the connections that it took."""

    def __init__(self) -> None:
        self.connectable = MemoryConnectable(wrap_client=lambda stream: TrickleStream(stream, 1000))

    async def pair(self, proxy: CutProxy) -> tuple[ByteStream, ByteStream]:
        client = await proxy.connect()
        return client, await self.connectable.listener.accept()


@pytest.fixture
async def network(anyio_backend: Any) -> AsyncIterator[Network]:
    network = Network()
    with anyio.fail_after(5):
        yield network
    await network.connectable.listener.aclose()


async def test_without_a_script_nothing_happens(network: Network) -> None:
    """Bytes pass both ways, and are counted."""
    proxy = CutProxy(network.connectable)
    client, engine = await network.pair(proxy)
    await client.send(b"abc")
    assert await engine.receive() == b"abc"
    await engine.send(b"defg")
    assert await client.receive(3) == b"def"
    assert await client.receive() == b"g"
    (link,) = proxy.links
    assert (link.to_engine, link.to_client, link.over, link.was_cut) == (3, 4, False, False)
    assert repr(link) == "<Link 1 open, 3 bytes to the engine, 4 to the client>"
    assert repr(proxy) == "<CutProxy to a given byte stream, 1 connections so far>"
    await client.aclose()
    await client.aclose()
    assert "over" in repr(link)
    with pytest.raises(EndOfStream):
        await engine.receive()
    with pytest.raises(ClosedResourceError):
        await client.receive()
    with pytest.raises(RuntimeError, match="no URL"):
        _ = proxy.url


@pytest.mark.parametrize("count", [0, 1, 2, 3])
async def test_a_cut_on_the_way_to_the_engine(network: Network, count: int) -> None:
    """The engine gets what went before it, then the end; so does the client, also in the middle of a wait."""
    proxy = CutProxy(network.connectable, [LinkScript(to_engine=Passage(cut_after=count))])
    client, engine = await network.pair(proxy)

    async def read() -> None:
        with pytest.raises(EndOfStream):
            await client.receive()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(BrokenResourceError):
            await client.send(b"abc")
            await client.send(b"d")
    assert await engine.receive() == b"abc"[:count] if count else True
    with pytest.raises(EndOfStream):
        await engine.receive()
    assert proxy.links[0].to_engine == count
    assert proxy.cuts == 1
    assert "cut" in repr(proxy.links[0])


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_a_cut_on_the_way_to_the_client(network: Network, count: int) -> None:
    """The client gets what went before it, then the end."""
    proxy = CutProxy(network.connectable, [LinkScript(to_client=Passage(cut_after=count))])
    client, engine = await network.pair(proxy)
    await engine.send(b"abc")
    got = b""
    with pytest.raises(EndOfStream):
        while True:
            got += await client.receive()
    assert got == b"abc"[:count]
    with pytest.raises(BrokenResourceError):
        await engine.send(b"d")
    with pytest.raises(BrokenResourceError):
        await client.send(b"d")
    with pytest.raises(EndOfStream):
        await client.receive()


async def test_a_reset(network: Network) -> None:
    """Both sides break, and what was under way is lost."""
    proxy = CutProxy(network.connectable, [LinkScript(to_engine=Passage(cut_after=2, reset=True))])
    client, engine = await network.pair(proxy)
    await client.send(b"ab")
    with pytest.raises(BrokenResourceError):
        await engine.receive()
    with pytest.raises(BrokenResourceError):
        await client.receive()


async def test_a_cut_now(network: Network) -> None:
    """One connection or all of them, whatever they are doing."""
    proxy = CutProxy(network.connectable)
    one, _ = await network.pair(proxy)
    two, _ = await network.pair(proxy)
    await proxy.cut(2)
    assert [link.over for link in proxy.links] == [False, True]
    with pytest.raises(EndOfStream):
        await two.receive()
    await proxy.cut(reset=True)
    with pytest.raises(BrokenResourceError):
        await one.receive()
    assert proxy.cuts == 2


async def test_a_refused_connection(network: Network) -> None:
    """It counts as a connection that is over; the next one is made."""
    proxy = CutProxy(network.connectable, [LinkScript(refused=True)])
    with pytest.raises(anyio.ConnectionFailed):
        await proxy.connect()
    assert [link.over for link in proxy.links] == [True]
    client, _ = await network.pair(proxy)
    await client.aclose()
    assert proxy.cuts == 0


async def test_small_pieces_with_delays(network: Network) -> None:
    """Each piece waits for its delay, on the clock that the proxy was given."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await anyio.lowlevel.checkpoint()

    script = LinkScript(to_engine=Passage(piece=2, delay=0.5), to_client=Passage(piece=1, delay=3))
    proxy = CutProxy(network.connectable, lambda _number: script, sleep=sleep)
    client, engine = await network.pair(proxy)
    await client.send(b"abcde")
    assert slept == [0.5] * 3
    assert await engine.receive() == b"abcde"
    await engine.send(b"fg")
    assert await client.receive() == b"f"
    assert await client.receive() == b"g"
    assert slept[3:] == [3, 3]


async def test_connections_in_another_order(network: Network) -> None:
    """What the first one carries waits until the second has carried its bytes."""
    script = [LinkScript(to_engine=Passage(behind=(2, 3)))]
    proxy = CutProxy(network.connectable, script)
    first, engine_first = await network.pair(proxy)
    order: list[str] = []

    async def send_first() -> None:
        await first.send(b"1")
        order.append("first")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send_first)
        await anyio.wait_all_tasks_blocked()
        second, engine_second = await network.pair(proxy)
        await second.send(b"22")
        await anyio.wait_all_tasks_blocked()
        assert not order
        await second.send(b"2")
        order.append("second")
    assert sorted(order) == ["first", "second"]
    assert await engine_first.receive() == b"1"
    assert await engine_second.receive() == b"222"


async def test_what_is_held_goes_when_the_other_one_is_over(network: Network) -> None:
    """A connection that ends holds nobody up any more; one that is cut lets go of what it held."""
    proxy = CutProxy(network.connectable, [LinkScript(to_client=Passage(behind=(2, 3)))] * 1)
    first, engine_first = await network.pair(proxy)
    second, _ = await network.pair(proxy)
    await engine_first.send(b"x")
    got: list[bytes] = []

    async def read() -> None:
        got.append(await first.receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        assert not got
        await second.aclose()
    assert got == [b"x"]
    other = CutProxy(network.connectable, [LinkScript(to_client=Passage(behind=(2, 3)))])
    held, engine_held = await network.pair(other)
    await engine_held.send(b"y")

    async def read_nothing() -> None:
        with pytest.raises(EndOfStream):
            await held.receive()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_nothing)
        await anyio.wait_all_tasks_blocked()
        await other.cut()


async def test_a_cancelled_receive_loses_nothing(network: Network) -> None:
    """What was read and is held back comes with the next call, as many bytes at a time as it wants."""
    waits: list[int] = []
    opened = anyio.Event()

    async def before(carried: int) -> None:
        waits.append(carried)
        await opened.wait()

    proxy = CutProxy(network.connectable, [LinkScript(to_client=Passage(before=before))])
    client, engine = await network.pair(proxy)
    await engine.send(b"abc")
    with anyio.move_on_after(0.01):
        await client.receive()
    assert waits == [0]
    opened.set()
    assert await client.receive(2) == b"ab"
    assert await client.receive(2) == b"c"
    assert waits == [0, 0, 2]
    await proxy.wait_until(lambda: proxy.links[0].to_client == 3)


async def test_a_send_that_is_held_back_is_cut(network: Network) -> None:
    """It breaks, and nothing of it arrives."""
    proxy = CutProxy(network.connectable, [LinkScript(to_engine=Passage(behind=(2, 1)))])
    client, engine = await network.pair(proxy)

    async def send() -> None:
        with pytest.raises(BrokenResourceError):
            await client.send(b"abc")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        await proxy.cut()
    with pytest.raises(EndOfStream):
        await engine.receive()


# ------------------------------------------------------------------------------------------------------ with an engine


async def echo(_session: Any, input: Any) -> Any:
    return input


async def test_a_client_in_memory() -> None:
    """The proxy stands in place of the URL."""
    with anyio.fail_after(10):
        async with SimulatedEngine(port=None) as engine:
            engine.inferlet("echo@0.1.0")(echo)
            proxy = CutProxy(engine.connectable)
            async with PieClient(proxy, username="u") as client:
                assert (await client.run_process("echo@0.1.0", 1)).value == 1
            assert proxy.links[0].to_engine > 100
            cut = CutProxy(engine.connectable, [LinkScript(to_client=Passage(cut_after=400))])
            with pytest.raises(ConnectionLost):
                async with PieClient(cut, username="u") as client:
                    while True:
                        await client.ping()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_over_tcp(reset: bool) -> None:
    """The proxy has a URL of its own, with the path of the engine's."""
    with anyio.fail_after(10):
        async with SimulatedEngine() as engine:
            engine.inferlet("echo@0.1.0")(echo)
            passage = Passage(cut_after=1500, reset=reset)
            script = [LinkScript(), LinkScript(to_client=passage), LinkScript(refused=True)]
            async with CutProxy(engine.url, script) as proxy:
                assert proxy.url.startswith("ws://127.0.0.1:")
                async with PieClient(proxy.url, username="u") as client:
                    assert (await client.run_process("echo@0.1.0", [1])).value == [1]
                with pytest.raises(ConnectionLost):
                    async with PieClient(proxy.url, username="u") as client:
                        while True:
                            await client.ping()
                with pytest.raises(ConnectError):
                    async with PieClient(proxy.url):
                        pass
                assert [link.was_cut for link in proxy.links] == [False, True, False]
                assert proxy.links[1].to_client == 1500
            await engine.wait_connections(0)


async def test_the_target_of_a_url_is_kept() -> None:
    """Scheme and path are those of the engine."""
    async with CutProxy("wss://127.0.0.1:1/path") as proxy:
        assert proxy.url.startswith("wss://127.0.0.1:")
        assert proxy.url.endswith("/path")
        stream = await anyio.connect_tcp("127.0.0.1", int(proxy.url.split(":")[2].split("/")[0]))
        with pytest.raises((EndOfStream, BrokenResourceError)):
            await stream.receive()  # nobody listens at the target
        await stream.aclose()


async def test_leaving_ends_what_is_open() -> None:
    """Clients of a proxy that is left see the end."""
    with anyio.fail_after(5):
        async with SimulatedEngine() as engine:
            async with CutProxy(engine.url) as proxy:
                stream = await anyio.connect_tcp("127.0.0.1", int(proxy.url.split(":")[2].split("/")[0]))
                await stream.send(b"G")
                await proxy.wait_until(lambda: bool(proxy.links and proxy.links[0].to_engine))
            with pytest.raises((EndOfStream, BrokenResourceError)):
                await stream.receive()
            await stream.aclose()
            assert proxy.links[0].over
            await engine.wait_connections(0)


async def test_a_failure_inside_the_block_comes_out_as_it_is() -> None:
    """Without a group around it; several failures of the proxy itself make one."""
    with pytest.raises(KeyError):
        async with CutProxy("ws://127.0.0.1:1"):
            raise KeyError
    error = proxy_module._several_errors(BaseExceptionGroup("x", [KeyError(), ValueError()]))
    assert "2 places" in str(error)


def test_what_is_no_socket_cannot_be_reset() -> None:
    """Closing it has to do."""
    proxy_module._set_reset(memory_byte_stream_pair()[0])


def test_it_is_a_connectable() -> None:
    """Anyio's interface, so that anything that takes one takes it."""
    assert issubclass(CutProxy, ByteStreamConnectable)
