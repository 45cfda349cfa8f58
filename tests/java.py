"""The Java server of the examples, for tests that want a real one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from servers.fixtures import REQUIRED

SOURCE = Path(__file__).resolve().parent.parent / "examples/java/Pricing.java"


def compile_pricing(folder: Path) -> str:
    """The class path with it. Skips the test without a compiler, unless all servers have to be here."""
    javac = shutil.which("javac")
    if javac is None:
        reason = "javac is not installed: run `make servers`"
        pytest.fail(reason, pytrace=False) if REQUIRED else pytest.skip(reason)
    subprocess.run([javac, "-d", folder, SOURCE], check=True, timeout=100)
    return str(folder)
