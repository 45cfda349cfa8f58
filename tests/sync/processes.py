"""Scripts that run in a Python of their own, and what they said."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import headwater

SOURCES = Path(headwater.__file__).parent.parent
TESTS = Path(__file__).parent.parent


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A script, running in a file of its own, as the processes it starts may want to import it."""
    folder = tempfile.mkdtemp(prefix="headwater-script-")
    path = Path(folder, "script.py")
    path.write_text(textwrap.dedent(script))
    return subprocess.Popen(
        [sys.executable, "-W", "default", str(path), *arguments],
        env=os.environ | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{TESTS}", "PYTHONUNBUFFERED": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What a script says until it ends, with this code; a script that hangs is killed with all it started."""
    with process:
        try:
            out, err = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            out, err = process.communicate()
            raise AssertionError(f"it hangs:\n{out}\n{err}") from None
    assert process.returncode == code, f"{process.returncode}:\n{out}\n{err}"
    return out, err


def run(script: str, *arguments: str, code: int = 0) -> list[str]:
    """The lines a script prints. It must end by itself, with this code and without a word on stderr."""
    out, err = finish(start(script, *arguments), code)
    assert err == "", err
    return out.splitlines()
