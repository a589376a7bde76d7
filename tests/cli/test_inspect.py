# SPDX-License-Identifier: Apache-2.0
"""`ping`, `status`, `install` and `bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pie_anyio import PieClient
from pie_anyio.cli._errors import UserError
from pie_anyio.cli._examples import examples_folder

from .conftest import Invoke, Served

MANIFEST = '[package]\nname = "mine"\nversion = "1.2.3"\n[runtime]\nlanguage = "python"\n'


def test_ping(served: Served, invoke: Invoke) -> None:
    """Each answer is timed, and the generation told."""
    result = invoke("ping", "-c", "3", "--interval", "0", "--url", served.url)
    assert result.code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["1", "2", "3"]
    assert "generation 0.5" in result.stderr
    assert served.engine.received_counts["ping"] == 3


def test_ping_as_json(served04: Served, invoke: Invoke) -> None:
    """The same for programs."""
    result = invoke("ping", "-c", "1", "--url", served04.url, "--json")
    assert result.record("done")["generation"] == "0.4"
    assert result.record("ping")["seconds"] > 0


@pytest.mark.parametrize("full", [True, False])
def test_status(served: Served, invoke: Invoke, full: bool) -> None:
    """Figures are named for people, or as the engine names them."""
    result = invoke("status", *(["--full"] if full else []), "--url", served.url)
    assert result.code == 0
    assert ("default.kv_pages_total" if full else "default: key-value pages  ") in result.stdout
    record = invoke("status", "--json", "--url", served.url).record("status")
    assert record["figures"]["default.kv_pages_total"] == 256
    assert (record["generation"], record["processes"]) == ("0.5", 0)


@pytest.mark.parametrize("answer", [(True, "{"), (True, "[]"), (False, "no")])
def test_no_status(
    served: Served, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, answer: tuple[bool, str]
) -> None:
    """An answer that is no object of figures is a failure."""

    async def query(client: PieClient, subject: str, record: str) -> tuple[bool, str]:
        return answer

    monkeypatch.setattr(PieClient, "query", query)
    result = invoke("status", "--url", served.url)
    assert result.code == 1
    assert "no figures" in result.stderr


def test_install(served: Served, invoke: Invoke) -> None:
    """A program is uploaded once; --force replaces it."""
    Path("main.py").write_text("first")
    Path("Pie.toml").write_text(MANIFEST)
    first = invoke("install", "main.py", "Pie.toml", "--url", served.url)
    assert (first.code, first.stdout) == (0, "mine@1.2.3\n")
    Path("main.py").write_text("second")
    again = invoke("install", "main.py", "Pie.toml", "--url", served.url, "--json")
    assert again.record("installed") == {"event": "installed", "program": "mine@1.2.3", "unchanged": True}
    assert "--force" in again.stderr
    assert served.engine.programs.installed["mine@1.2.3"].artifact == b"first"
    assert invoke("install", "main.py", "Pie.toml", "--force", "--url", served.url).code == 0
    assert served.engine.programs.installed["mine@1.2.3"].artifact == b"second"


@pytest.mark.parametrize("manifest", [b"[package", b'[package]\nname="x"', b"\xff"])
def test_install_with_a_bad_manifest(invoke: Invoke, manifest: bytes) -> None:
    """The manifest is judged before anything is connected."""
    Path("main.py").touch()
    Path("Pie.toml").write_bytes(manifest)
    result = invoke("install", "main.py", "Pie.toml")
    assert result.code == 2
    assert result.stderr.startswith("error: ")


def test_install_that_the_engine_refuses(served: Served, invoke: Invoke) -> None:
    """The engine's own words are passed on."""
    Path("main.py").write_text("not a component")
    Path("Pie.toml").write_text(MANIFEST.split("[runtime]", maxsplit=1)[0])
    result = invoke("install", "main.py", "Pie.toml", "--url", served.url)
    assert result.code == 1
    assert "WASM" in result.stderr


def test_bench(served: Served, invoke: Invoke) -> None:
    """Throughput and latencies of a program that is there."""
    result = invoke("bench", "-n", "20", "--limit", "4", "--url", served.url)
    assert result.code == 0
    assert "20, 20 returned, 4 at a time" in result.stdout
    record = invoke("bench", "-n", "5", "--url", served.url, "--json", "--quiet").record("bench")
    assert record["receipt"]["returned"] == 5
    assert set(record["latency"]) == {"p50", "p95", "p99"}
    assert served.engine.started_total == 25


def test_bench_uploads_its_program(served: Served, invoke: Invoke) -> None:
    """Where `echo` is missing it is uploaded."""
    served.engine.programs.installed.clear()
    assert invoke("bench", "-n", "2", "--url", served.url).code == 0
    assert "echo@0.1.0" in served.engine.programs.installed


def test_bench_of_failures(served: Served, invoke: Invoke) -> None:
    """Runs that fail make exit code 1."""
    result = invoke("bench", "fail@0.1.0", "-n", "2", "--url", served.url)
    assert result.code == 1
    assert "0 returned" in result.stdout


def test_examples_are_found(tmp_path: Path) -> None:
    """In an installed package, and in a checkout; else there is a line that says so."""
    assert (examples_folder() / "choice" / "Pie.toml").is_file()
    for place in ("site/pie_anyio/_examples", "examples"):
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(UserError, match="no example"):
        examples_folder(tmp_path / "src" / "pie_anyio")
    (tmp_path / "examples" / "capitals.jsonl").touch()
    assert examples_folder(tmp_path / "src" / "pie_anyio") == tmp_path / "examples"
    (tmp_path / "site" / "pie_anyio" / "_examples" / "capitals.jsonl").touch()
    assert examples_folder(tmp_path / "site" / "pie_anyio") == tmp_path / "site" / "pie_anyio" / "_examples"
