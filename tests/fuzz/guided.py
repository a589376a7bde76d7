# SPDX-License-Identifier: Apache-2.0
"""The same checks, led by coverage: ``python -m tests.fuzz.guided client 60``, where atheris is installed.

libFuzzer ends the process itself: with 0 when the time is over, with a trace and another code at the first failure.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["pie_anyio._protocol"]):
    from tests.fuzz import test_fuzz as fuzz

from hypothesis import given
from tests.fuzz.conversations import FROM_CLIENT, FROM_ENGINE, conversations

TARGETS = {
    "client": lambda: given(generation=fuzz.GENERATIONS, data=conversations(FROM_ENGINE), cuts=fuzz.CUTS)(
        fuzz.check_client
    ),
    "engine": lambda: given(
        which=fuzz.WHICH,
        generation=fuzz.GENERATIONS,
        data=conversations(FROM_CLIENT).map(lambda data: fuzz.HANDSHAKE + data),
        cuts=fuzz.CUTS,
    )(fuzz.check_engine),
}


def main() -> None:
    """Run one target for a number of seconds."""
    target, seconds = sys.argv[1], int(float(sys.argv[2]))
    check = TARGETS[target]()
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", "-print_final_stats=1"],
        check.hypothesis.fuzz_one_input,  # type: ignore[attr-defined,unused-ignore]
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
