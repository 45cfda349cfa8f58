"""What the contract suite saw is kept for the support matrix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import headwater
from headwater.testing.matrix import ENGINE, Matrix, read

SUITE = """
import pytest
from headwater import Broker
from headwater.testing.contract import EngineContract

class TestMine(EngineContract):
    @pytest.fixture
    def make_broker(self):
        return lambda: Broker("memory://contract")
"""


def report(test: str, outcome: str, engine: str | None = "mine", when: str = "call") -> Any:
    properties = [] if engine is None else [(ENGINE, engine)]
    return SimpleNamespace(
        nodeid=f"test_it.py::Test::test_{test}", outcome=outcome, when=when, user_properties=properties
    )


def noted(path: Path, *reports: Any) -> dict[str, dict[str, str]]:
    matrix = Matrix(path)
    for one in reports:
        matrix.pytest_runtest_logreport(one)
    matrix.pytest_sessionfinish()
    return read(path)


def test_a_run_of_the_suite_notes_what_passed_and_what_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(SUITE)
    names = "nobody_answering_is_a_timeout or a_lease_can_be_extended"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "anyio_mode=auto", "-k", names]
    source = str(Path(headwater.__file__).parent.parent)
    environment = os.environ | {"HEADWATER_MATRIX": "seen.json", "PYTHONPATH": source}
    subprocess.run([*command, "test_mine.py"], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert read(tmp_path / "seen.json") == {
        "memory": {"a_lease_can_be_extended": "skipped", "nobody_answering_is_a_timeout": "passed"}
    }


def test_several_modes_of_an_engine_are_one_column(tmp_path: Path) -> None:
    seen = noted(
        tmp_path / "seen.json",
        report("alike", "passed"),
        report("alike", "passed"),
        report("differs", "skipped", when="setup"),
        report("differs", "passed"),
        report("fails", "passed"),
        report("fails", "failed"),
    )
    assert seen == {"mine": {"alike": "passed", "differs": "mixed", "fails": "failed"}}


def test_other_tests_and_what_was_seen_before_stay(tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    noted(path, report("old", "passed"), report("again", "failed"), report("theirs", "passed", "other"))
    seen = noted(path, report("again", "passed"), report("no contract", "passed", None))
    assert seen == {"mine": {"old": "passed", "again": "passed"}, "other": {"theirs": "passed"}}


def test_setting_up_and_taking_down_are_no_results(tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    assert noted(path, report("x", "passed", when="setup"), report("x", "passed", when="teardown")) == {}
    assert noted(path, report("x", "failed", when="setup")) == {"mine": {"x": "failed"}}
