"""What the contract suite saw of each engine, kept for the support matrix."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final

import msgspec
import pytest

ENGINE: Final = "headwater engine"  # the property by which a test of the contract names the engine it ran on

Seen = dict[str, dict[str, str]]  # by engine and test: "passed", "skipped", "failed", or "mixed" over several modes


class Matrix:
    """A pytest plugin that writes what it saw to a file, in place of what was known of the same tests before.

    `HEADWATER_MATRIX=FILE` turns it on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        engine = dict(report.user_properties).get(ENGINE)
        if engine is not None and (report.when == "call" or report.outcome != "passed"):
            test = report.nodeid.rpartition("::")[2].partition("[")[0].removeprefix("test_")
            self._outcomes[str(engine), test].add(report.outcome)

    def pytest_sessionfinish(self) -> None:
        seen = read(self._path)
        for (engine, test), outcomes in self._outcomes.items():
            alike = "failed" if "failed" in outcomes else "mixed"
            seen.setdefault(engine, {})[test] = alike if len(outcomes) > 1 else min(outcomes)
        self._path.write_bytes(msgspec.json.format(msgspec.json.encode(seen, order="sorted"), indent=1) + b"\n")


def read(path: Path) -> Seen:
    """What was seen up to now."""
    return msgspec.json.decode(path.read_bytes(), type=Seen) if path.exists() else {}
