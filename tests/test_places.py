"""Numbers that tell the processes of one machine apart."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headwater import ConfigurationError
from headwater.places import number_of_process, take_place

PROGRAM = "import sys; from headwater.places import number_of_process as n; print(n(sys.argv[1]), flush=True); input()"
FORKING = """
import os, sys
from headwater.places import number_of_process
print(number_of_process(sys.argv[1]), flush=True)
if os.fork() == 0:
    print(number_of_process(sys.argv[1]), flush=True)
else:
    os.wait()
"""


@pytest.fixture
def name() -> str:
    return f"name-{uuid.uuid4().hex}"


@contextmanager
def other_process(name: str) -> Iterator[int]:
    """Another process of this name; its number."""
    command = [sys.executable, "-c", PROGRAM, name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def test_each_process_has_the_lowest_free_number_and_keeps_it(name: str) -> None:
    assert number_of_process(name) == number_of_process(name) == 0
    with other_process(name) as other:
        assert other == 1
        with other_process(name) as third:
            assert third == 2
    with other_process(name) as heir:  # whoever died left its number, however it died
        assert heir == 1
    assert number_of_process(f"another {name}") == 0


def test_a_forked_child_has_a_number_of_its_own(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKING, name], capture_output=True, text=True, timeout=20)
    assert done.stdout.split() == ["0", "1"]


def test_a_worker_of_headwater_run_has_the_number_it_was_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_WORKER_ID", "7")
    assert number_of_process(name) == 7


def test_a_folder_that_cannot_be_made_is_said(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="TMPDIR"):
        take_place(name)
