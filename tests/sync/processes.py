"""Scripts that run in a Python of their own, and what they said."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import headwater

SOURCES = str(Path(headwater.__file__).parent.parent)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": SOURCES, "PYTHONUNBUFFERED": "1"}


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A script that is running; its first lines are to be read from `stdout`."""
    return subprocess.Popen(
        [sys.executable, "-W", "default", "-c", textwrap.dedent(script), *arguments],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(script: str, *arguments: str, code: int = 0, quiet: bool = True) -> list[str]:
    """The lines a script printed. It must end by itself, with this code, and without a word on stderr if `quiet`."""
    with start(script, *arguments) as process:
        try:
            out, err = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"it hangs:\n{out}\n{err}") from None
    assert process.returncode == code, f"{process.returncode}:\n{out}\n{err}"
    if quiet:
        assert err == "", err
    return out.splitlines() if quiet else [*out.splitlines(), *err.splitlines()]
