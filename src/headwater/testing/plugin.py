"""The pytest fixture that comes with the package, and the record of what the contract suite saw."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..app import App
    from .app import SyncTestApp


pytest.register_assert_rewrite("headwater.testing.contract")


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("HEADWATER_MATRIX")
    if path:
        from .matrix import Matrix  # wanted by authors of engines alone

        config.pluginmanager.register(Matrix(Path(path)))


@pytest.fixture
def test_app() -> Iterator[Callable[[App], SyncTestApp]]:
    """Start an app in memory for a synchronous test: `t = test_app(app)`; it is stopped with the test."""
    from .app import TestApp  # a plugin is imported by every pytest run: keep it light

    with ExitStack() as started:
        yield lambda app: started.enter_context(TestApp(app))
