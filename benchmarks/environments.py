# SPDX-License-Identifier: Apache-2.0
"""The environments that the peers run in, built once and kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from catalogue import ENVIRONMENTS, JS_PACKAGES


class Environments:
    """Virtual environments by name; `overrides` names interpreters to use instead of building one."""

    def __init__(self, root: Path, overrides: dict[str, str] | None = None) -> None:
        self.root = root
        self.folder = Path(os.environ.get("PIE_TEST_CACHE") or root / ".cache") / "bench"
        self.overrides = overrides or {}
        self.built: dict[str, Path] = {}

    def available(self, name: str) -> bool:
        """Say whether the environment can be had on this machine."""
        return name != "js" or bool(shutil.which("node") and shutil.which("npm"))

    def command(self, name: str) -> list[str]:
        """Return the interpreter of an environment, as the start of a command."""
        if name == "js":
            self.js()
            return [shutil.which("node") or "node"]
        return [str(self.python(name))]

    def python(self, name: str) -> Path:
        """Return the interpreter of an environment, after building it where that is needed."""
        if name in self.overrides:
            return Path(self.overrides[name])
        if name not in self.built:
            self.built[name] = self._build(name)
        return self.built[name]

    def _build(self, name: str) -> Path:
        packages = [word.format(root=self.root) for word in ENVIRONMENTS[name]]
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        folder = self.folder / f"{name}-py{version}"
        python, ready = folder / "bin" / "python", folder / ".complete"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # The marker holds what was asked for, so that another choice of packages builds the environment again.
            wanted = "\n".join(packages)
            if not (ready.exists() and python.exists() and ready.read_text() == wanted):
                print(f"building {folder} ({', '.join(packages)})", flush=True)
                _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
                pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet")
                _run(*pip, "--disable-pip-version-check", *packages)
                ready.write_text(wanted)
        return python

    def js(self) -> Path:
        """Return the folder whose node_modules hold the JavaScript client."""
        folder = self.folder / "js"
        if "js" in self.overrides:
            return Path(self.overrides["js"])
        if not (folder / "node_modules" / "ws").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text('{"private": true}\n')
            _run("npm", "install", "--silent", "--prefix", str(folder), *JS_PACKAGES)
        return folder


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
