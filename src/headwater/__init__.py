"""The public names of Headwater, nothing else."""

from typing import TYPE_CHECKING, Any

from .app import App
from .broker import Broker
from .codecs import Codec
from .depends import Context, Depends, Header, Key, Path
from .engine import Topic
from .errors import (
    BatchError,
    ConfigurationError,
    ConnectError,
    DecodeError,
    DeliveryUnknownError,
    EncodeError,
    GroupNotFoundError,
    HeadwaterError,
    MissingExtraError,
    NoBrokerError,
    NotConnectedError,
    NotSupportedError,
    OffsetOutOfRangeError,
    PublishError,
    Reject,
    RemoteError,
    RequestTimeoutError,
    Skip,
    StopApp,
    StopConsuming,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreVersionError,
    TopicNameError,
    TopicNotFoundError,
)
from .message import Headers, Message, Outgoing, Position, Receipt
from .results import Response
from .retry import Retry
from .router import Router
from .settle import Batch

if TYPE_CHECKING:
    from .engines.local import LocalBroker
    from .engines.memory import MemoryBroker
    from .observe.logs import configure_logging
    from .testing import TestApp

__version__ = "0.1.0"

__all__ = [
    "App",
    "Batch",
    "BatchError",
    "Broker",
    "Codec",
    "ConfigurationError",
    "ConnectError",
    "Context",
    "DecodeError",
    "DeliveryUnknownError",
    "Depends",
    "EncodeError",
    "GroupNotFoundError",
    "Header",
    "Headers",
    "HeadwaterError",
    "Key",
    "LocalBroker",
    "MemoryBroker",
    "Message",
    "MissingExtraError",
    "NoBrokerError",
    "NotConnectedError",
    "NotSupportedError",
    "OffsetOutOfRangeError",
    "Outgoing",
    "Path",
    "Position",
    "PublishError",
    "Receipt",
    "Reject",
    "RemoteError",
    "RequestTimeoutError",
    "Response",
    "Retry",
    "Router",
    "Skip",
    "StopApp",
    "StopConsuming",
    "StoreBusyError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreNotFoundError",
    "StoreVersionError",
    "TestApp",
    "Topic",
    "TopicNameError",
    "TopicNotFoundError",
    "configure_logging",
]

# Imported when first asked for: an engine with its client, and what a running service does not need.
_LAZY = {
    "LocalBroker": "headwater.engines.local",
    "MemoryBroker": "headwater.engines.memory",
    "TestApp": "headwater.testing",
    "configure_logging": "headwater.observe.logs",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
