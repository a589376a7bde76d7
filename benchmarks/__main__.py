# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks` is `python benchmarks/run.py`; `python -m benchmarks real` is `benchmarks/real_engine.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import real_engine
import run

if __name__ == "__main__":
    if sys.argv[1:2] == ["real"]:
        sys.exit(real_engine.main(sys.argv[2:]))
    sys.exit(run.main(sys.argv[1:]))
