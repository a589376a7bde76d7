# SPDX-License-Identifier: Apache-2.0
"""Names, inputs and versions: what goes on the wire for what a user writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import anyio
import pytest

from pie_anyio import EngineError, InvalidRequest, PieClient, inferlet
from pie_anyio._programs import encode_input, look_up_version, program_name
from pie_anyio.testing import SimulatedEngine

ANSWERS: dict[str, tuple[int, bytes]] = {
    "/api/v1/inferlets/agent": (200, b'{"versions": [{"num": "2.0.1"}, {"num": "1.0.0"}]}'),
    "/api/v1/inferlets/empty": (200, b'{"versions": []}'),
    "/api/v1/inferlets/odd": (200, b'{"versions": [{"num": null}]}'),
    "/api/v1/inferlets/text": (200, b"hello"),
    "/api/v1/inferlets/a%2Fb": (200, b'{"versions": [{"num": "0.0.1"}]}'),
}


class _Registry(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.endswith("broken"):
            self.wfile.write(b"no HTTP at all\r\n\r\n")
            return
        status, body = ANSWERS.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Registry) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


async def test_the_newest_version(registry: str) -> None:
    """The first one that the registry lists; a name with a version is as it is."""
    with anyio.fail_after(5):
        assert await look_up_version("agent", registry) == "agent@2.0.1"
        assert await look_up_version("a/b", registry) == "a/b@0.0.1"
        assert await look_up_version("agent@1.0.0", "not even a URL") == "agent@1.0.0"


@pytest.mark.parametrize("name", ["empty", "odd", "text", "none", "broken"])
async def test_answers_without_a_version(registry: str, name: str) -> None:
    """One error for all, which names what was asked."""
    with anyio.fail_after(5):
        with pytest.raises(EngineError, match=f"inferlets/{name} did not name a version") as caught:
            await look_up_version(name, registry)
    assert caught.value.request == "resolve_version"


async def test_a_registry_that_is_not_there() -> None:
    """Nobody listens on that port."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
    with anyio.fail_after(5), pytest.raises(EngineError):
        await look_up_version("agent", f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["ftp://x", "file:///etc/passwd", "registry", "", "http://[", "https://"])
async def test_registries_that_are_none(url: str) -> None:
    """Only the web is asked."""
    with pytest.raises(InvalidRequest, match="http://"):
        await look_up_version("agent", url)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "{}"), ({}, "{}"), ("text", '"text"'), ({"a": [1]}, '{"a": [1]}'), (0, "0")]
)
def test_inputs(value: Any, text: str) -> None:
    """As the official client encodes them."""
    assert encode_input(value) == text


@inferlet
async def double(number: int) -> int:
    """Double a number."""
    return number * 2


def test_names() -> None:
    """Text is checked, a decorated function names itself."""
    assert program_name("a@0.1.0", bare=False) == "a@0.1.0"
    assert program_name("a", bare=True) == "a"
    assert program_name(double, bare=False) == double.program


async def test_running_a_decorated_function(anyio_backend: Any) -> None:
    """It is installed once, and launched with keyword arguments."""
    async with SimulatedEngine("v05", port=None) as engine:

        @engine.inferlet(double.program, installed=False)
        async def stand_in(session: Any, input: Any) -> int:
            number: int = input["number"]
            return number * 2

        with anyio.fail_after(5):
            async with PieClient(engine.connectable) as client:
                for number in (2, 3):
                    process = await client.run(double, number=number)
                    assert await process.result() == number * 2
                assert engine.received_counts["add_program"] == 1
                process = await client.run(double.program, number=4)
                assert await process.result() == 8
