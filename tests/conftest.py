"""What all tests share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from headwater import Broker
from headwater.engines.memory import CAPABILITIES, MemoryEngine

pytest_plugins = ["servers.fixtures"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def less_capable() -> Callable[..., Broker]:
    """Makes a broker in memory whose engine says it can do less: `less_capable(groups=False)`."""

    def make(**changes: Any) -> Broker:
        broker = Broker()
        capabilities = msgspec.structs.replace(CAPABILITIES, **changes)
        broker.replace_engine(MemoryEngine(capabilities=lambda _source: capabilities))
        return broker

    return make


# A shell's background job ignores SIGINT, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
