# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pie_anyio._exceptions import InvalidRequest
from pie_anyio._inferlet import Inferlet, inferlet
from pie_anyio._manifest import parse_manifest

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Give a function that writes a module to a file and imports it; ``inferlet`` is there to be used."""
    count = iter(range(100))

    def load_text(text: str) -> ModuleType:
        path = tmp_path / f"defined{next(count)}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        vars(module)["inferlet"] = inferlet
        spec.loader.exec_module(module)
        return module

    return load_text


@inferlet
async def beam_search(
    prompt: str, beams: int = 2, *, hot: bool = False, weight: float = 0.5
) -> dict[str, object]:
    """Search with beams.

    And more.
    """
    import math

    return {"prompt": prompt, "beams": math.floor(beams), "hot": hot, "weight": weight}


def test_a_function_becomes_a_program() -> None:
    """Name, entry, description, source and parameters follow from the function."""
    assert isinstance(beam_search, Inferlet)
    assert (beam_search.name, beam_search.entry) == ("beam-search", "beam_search")
    assert beam_search.program == f"beam-search@{beam_search.version}"
    assert beam_search.description == "Search with beams."
    assert beam_search.source.startswith("async def beam_search(")
    assert beam_search.source.endswith('"weight": weight}\n')
    # Annotations of this file are texts (`from __future__ import annotations`), and understood as such.
    assert beam_search.parameters == {
        "prompt": {"type": "string"},
        "beams": {"type": "int", "optional": True, "description": "default: 2"},
        "hot": {"type": "bool", "optional": True, "description": "default: False"},
        "weight": {"type": "float", "optional": True, "description": "default: 0.5"},
    }


@pytest.mark.anyio
async def test_it_can_still_be_called_here() -> None:
    """Called directly it is the function that it was."""
    assert await beam_search("hi", hot=True) == {"prompt": "hi", "beams": 2, "hot": True, "weight": 0.5}
    assert beam_search.fn.__name__ == "beam_search"


def test_the_manifest_is_read_back() -> None:
    """What is written is a manifest that says the same."""
    text = beam_search.manifest_toml()
    manifest = parse_manifest(text)
    assert (manifest.program, manifest.runtime_language) == (beam_search.program, "python")
    assert tomllib.loads(text) == {
        "package": {
            "name": "beam-search",
            "version": beam_search.version,
            "description": "Search with beams.",
        },
        "runtime": {"language": "python", "entry": "beam_search", "call": "kwargs"},
        "parameters": beam_search.parameters,
    }


def test_options_override() -> None:
    """Name, version and description can be given; an empty description leaves it out."""

    @inferlet(name="other", version="1.2.3", description="")
    def plain() -> int:
        """Not this."""
        return 1

    assert plain.program == "other@1.2.3"
    assert tomllib.loads(plain.manifest_toml()) == {
        "package": {"name": "other", "version": "1.2.3"},
        "runtime": {"language": "python", "entry": "plain", "call": "kwargs"},
    }
    assert plain() == 1


def test_the_version_follows_the_source(load: Load) -> None:
    """The same text gives the same version wherever it stands; any change gives another."""
    text = "@inferlet\ndef f(a):\n    return a\n"
    module = load(f"{text}\nif True:\n    @inferlet\n    def g(a):\n        return a\n")
    assert module.f.version == load(f"\n\nx = 1\n{text}").f.version
    assert module.f.version != load(text.replace("return a", "return  a")).f.version
    assert module.g.source == "def g(a):\n    return a\n"
    numbers = module.f.version.split(".")
    assert numbers[0] == "0"
    assert all(0 <= int(number) < 1 << 16 for number in numbers)


def test_values() -> None:
    """Equal inferlets are equal and hash alike, and none can be changed."""
    again: Any = inferlet(beam_search.fn)
    assert again == beam_search
    assert hash(again) == hash(beam_search)
    with pytest.raises(AttributeError):
        again.name = "x"


SELF_CONTAINED = {
    "imports": "import os\n    from json import loads as l\n    return os, l",
    "inner names": "def g(): return h()\n    def h(): return [x for x in range(3)]\n    return g",
    "inner class": "class A:\n        y = 1\n        z = y\n        def m(self): return super(), A\n    return A",
    "itself": "return f()",
    "globals of its own": "global cache\n    cache = 1\n    def g(): return cache\n    return g",
    "builtins": "print(__name__, len([]))\n    return ValueError",
    "except and walrus": "try: pass\n    except OSError as e: return e\n    return (n := 1) + n",
}


@pytest.mark.parametrize("body", SELF_CONTAINED.values(), ids=SELF_CONTAINED)
def test_self_contained_functions_are_accepted(load: Load, body: str) -> None:
    """Everything that a function binds itself is its own, however it is bound."""
    assert load(f"@inferlet\ndef f(a=None, *args, **kw):\n    {body}\n").f.entry == "f"


def test_annotations_may_name_anything(load: Load) -> None:
    """The engine's Python does not evaluate the annotations of the signature, so they need not exist there."""
    module = load(
        "from typing import Annotated, Any, Optional\n"
        "@inferlet\n"
        "def f(a: Optional[int], b: Annotated[str, []], *c: Any, d: 'Any' = 1, **e: Any) -> Any:\n    return a\n"
    )
    assert {name: entry["type"] for name, entry in module.f.parameters.items()} == {
        "a": "string",
        "b": "string",
        "d": "string",
    }


REFUSED = {
    "lambda": ("f = inferlet(lambda a: a)", "a lambda cannot be an inferlet"),
    "renamed lambda": (
        "l = lambda a: a\nl.__name__ = 'l'\nf = inferlet(l)",
        "source found for l is no def statement",
    ),
    "closure": (
        "def outer(x, y):\n    @inferlet\n    def f(): return x + y\nouter(1, 2)",
        "f closes over x, y; pass it as an argument",
    ),
    "module names": (
        "import os\nz = 1\n@inferlet\ndef f(): return os, z, q",
        "f uses os, q, z without defining it; import or define it inside",
    ),
    "nested use": (
        "@inferlet\ndef f():\n    def g(): return [w for _ in 'a']\n    return g",
        "f uses w without",
    ),
    "class body": ("@inferlet\ndef f():\n    class A(Base): pass\n    return A", "f uses Base without"),
    "default": ("LIMIT = 3\n@inferlet\ndef f(n=LIMIT): return n", "f uses LIMIT without"),
    "global never set": ("@inferlet\ndef f():\n    global g\n    return g", "f uses g without"),
    "positional only": ("@inferlet\ndef f(a, /): return a", "f takes a by position only"),
    "no function": ("inferlet(3)", "goes on a function, not on 3"),
    "builtin": ("inferlet(len)", "goes on a function, not on <built-in function len>"),
    "class": ("@inferlet\nclass A: pass", "goes on a function, not on <class"),
    "twice": ("@inferlet\n@inferlet\ndef f(): pass", "goes on a function, not on Inferlet"),
    "exec": (
        "exec('@inferlet\\ndef f(): pass')",
        "the source of f cannot be found; .* in a file or a notebook",
    ),
    "odd text": (
        "if 1:\n    @inferlet\n    def f():\n        return '''\nat the margin'''\n",
        "source of f cannot be read by itself; move it to the top level",
    ),
    "name": ("@inferlet\ndef _f(): pass", "invalid program name '-f'"),
    "foreign name": ("@inferlet\ndef größe(): pass", "invalid program name 'größe'"),
    "given name": ("@inferlet(name='a b')\ndef f(): pass", "invalid program name 'a b'"),
    "empty name": ("@inferlet(name='')\ndef f(): pass", "invalid program name ''"),
    "version": ("@inferlet(version='1')\ndef f(): pass", "invalid version '1'"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_functions_that_cannot_travel_are_refused(load: Load, text: str, message: str) -> None:
    """Each reason why a function could not run on an engine is told where it is defined."""
    with pytest.raises(InvalidRequest, match=message):
        load(text)


def test_other_decorators_are_refused() -> None:
    """A wrapper below would be dropped silently, since only the def travels; so it is refused."""

    def loud(fn: Callable[[], int]) -> Callable[[], int]:
        @functools.wraps(fn)
        def wrapper() -> int:
            return fn() + 1

        return wrapper

    @loud
    def one() -> int:
        return 1

    assert one() == 2
    with pytest.raises(InvalidRequest, match="one is wrapped by another decorator, which would not travel"):
        inferlet(one)


def test_odd_texts_survive_the_manifest() -> None:
    """Quotes, line ends, control characters, DEL and letters beyond ASCII are written as TOML wants them."""
    odd = "\"'\\ \n\r\t\x00\x1f\x7f\x85 é \U0001f600"

    @inferlet(description=odd)
    def f(größe: str = "\x7f", b: str = "\x80\"'\\ \U0001f600") -> str:  # noqa: PLC2401 - the subject of the test
        return größe + b

    text = tomllib.loads(f.manifest_toml())
    assert text["package"]["description"] == odd
    assert list(text["parameters"]) == ["größe", "b"]
    assert text["parameters"]["b"]["description"] == "default: '\\x80\"\\'\\\\ \U0001f600'"


# ---------------------------------------------------------------------------------------------------- official client

FUNCTIONS = '''
@inferlet
async def beam_search(prompt: str, beams: int = 2, ratio: float = 0.5, deep: bool = False, other=None, *args, **kw):
    """Search "with" beams \\\\ and more.

    Second line.
    """
    import json

    def inner(x):
        return json.dumps(x)

    return {"text": [inner(n) for n in range(beams)]}


@inferlet(name="named", version="1.2.3", description="given")
def f(a: list, b="text"):
    # a comment
    return a, b
# a comment behind


if True:

    @inferlet
    def in_block(
        a: int,
        b: str = "x",
    ): return a


@inferlet()
def no_doc(): pass
'''

FIELDS = ("name", "version", "entry", "source", "description", "parameters")
NAMES = ("beam_search", "f", "in_block", "no_doc")
OFFICIAL = """
import importlib.util, json, sys
from pie_client.inferlet import inferlet
spec = importlib.util.spec_from_file_location("functions", sys.argv[1])
module = importlib.util.module_from_spec(spec)
module.inferlet = inferlet
spec.loader.exec_module(module)
told = {}
for name in sys.argv[2].split():
    it = getattr(module, name)
    told[name] = {field: getattr(it, field) for field in sys.argv[3].split()} | {
        "program": it.program, "manifest": it.manifest_toml()
    }
print(json.dumps(told))
"""


def test_equal_to_the_official_client(
    load: Load, tmp_path: Path, official_client_python: Callable[[str], Path]
) -> None:
    """Name, version, source and manifest are those of pie-client 0.5.3, so both find each other's uploads."""
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    command = [
        str(official_client_python("0.5.3")),
        "-c",
        OFFICIAL,
        str(path),
        " ".join(NAMES),
        " ".join(FIELDS),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    official = json.loads(done.stdout)
    module = load(FUNCTIONS)
    for name in NAMES:
        ours, theirs = getattr(module, name), official[name]
        assert {field: getattr(ours, field) for field in FIELDS} == {field: theirs[field] for field in FIELDS}
        assert ours.program == theirs["program"]
        assert tomllib.loads(ours.manifest_toml()) == tomllib.loads(theirs["manifest"])
