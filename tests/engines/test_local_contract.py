"""The local engine keeps the contract, with either durability, over new connections to one directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater import LocalBroker
from headwater.testing.contract import EngineContract, MakeBroker


class TestLocal(EngineContract):
    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> MakeBroker:
        return lambda: LocalBroker(tmp_path / "store", durability="process")


class TestLocalWithFsync(EngineContract):
    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> MakeBroker:
        return lambda: LocalBroker(tmp_path / "store")
