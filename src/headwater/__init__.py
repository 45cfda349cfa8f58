"""The public names of Headwater, nothing else. Each is imported when it is first asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .admin import ClusterInfo as ClusterInfo
    from .admin import GroupInfo as GroupInfo
    from .admin import Health as Health
    from .admin import Lag as Lag
    from .admin import LagSample as LagSample
    from .admin import MemberInfo as MemberInfo
    from .admin import NodeInfo as NodeInfo
    from .admin import PartitionInfo as PartitionInfo
    from .admin import PartitionLag as PartitionLag
    from .admin import TopicChange as TopicChange
    from .admin import TopicInfo as TopicInfo
    from .app import App as App
    from .broker import Broker as Broker
    from .codecs import JSON as JSON
    from .codecs import MSGPACK as MSGPACK
    from .codecs import RAW as RAW
    from .codecs import TEXT as TEXT
    from .codecs import Codec as Codec
    from .dead import DeadLetter as DeadLetter
    from .depends import Context as Context
    from .depends import Depends as Depends
    from .depends import Header as Header
    from .depends import Key as Key
    from .depends import Path as Path
    from .engine import Topic as Topic
    from .engines.fluvio import Fluvio as Fluvio
    from .engines.fluvio import FluvioBroker as FluvioBroker
    from .engines.fluvio import SmartModules as SmartModules
    from .engines.kafka import Kafka as Kafka
    from .engines.kafka import KafkaBroker as KafkaBroker
    from .engines.local import LocalBroker as LocalBroker
    from .engines.memory import MemoryBroker as MemoryBroker
    from .engines.mqtt import Mqtt as Mqtt
    from .engines.mqtt import MqttBroker as MqttBroker
    from .engines.mqtt import MqttWill as MqttWill
    from .engines.nats import Nats as Nats
    from .engines.nats import NatsBroker as NatsBroker
    from .engines.rabbit import Rabbit as Rabbit
    from .engines.rabbit import RabbitBroker as RabbitBroker
    from .engines.redis import Redis as Redis
    from .engines.redis import RedisBroker as RedisBroker
    from .errors import AuthenticationError as AuthenticationError
    from .errors import BatchError as BatchError
    from .errors import ConfigurationError as ConfigurationError
    from .errors import ConnectError as ConnectError
    from .errors import DecodeError as DecodeError
    from .errors import DeliveryUnknownError as DeliveryUnknownError
    from .errors import EncodeError as EncodeError
    from .errors import GroupNotFoundError as GroupNotFoundError
    from .errors import HeadwaterError as HeadwaterError
    from .errors import MessageTooLargeError as MessageTooLargeError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import NoBrokerError as NoBrokerError
    from .errors import NotConnectedError as NotConnectedError
    from .errors import NotSupportedError as NotSupportedError
    from .errors import OffsetOutOfRangeError as OffsetOutOfRangeError
    from .errors import PartitionLostError as PartitionLostError
    from .errors import PublishError as PublishError
    from .errors import RefusedError as RefusedError
    from .errors import Reject as Reject
    from .errors import RemoteError as RemoteError
    from .errors import RequestTimeoutError as RequestTimeoutError
    from .errors import RetryLater as RetryLater
    from .errors import ServiceError as ServiceError
    from .errors import Skip as Skip
    from .errors import StopApp as StopApp
    from .errors import StopConsuming as StopConsuming
    from .errors import StoreBusyError as StoreBusyError
    from .errors import StoreCorruptError as StoreCorruptError
    from .errors import StoreError as StoreError
    from .errors import StoreFullError as StoreFullError
    from .errors import StoreNotFoundError as StoreNotFoundError
    from .errors import StoreVersionError as StoreVersionError
    from .errors import SyncInAsyncError as SyncInAsyncError
    from .errors import TooManyInFlightError as TooManyInFlightError
    from .errors import TopicNameError as TopicNameError
    from .errors import TopicNotFoundError as TopicNotFoundError
    from .message import Headers as Headers
    from .message import Message as Message
    from .message import Outgoing as Outgoing
    from .message import Position as Position
    from .message import Receipt as Receipt
    from .observe.logs import configure_logging as configure_logging
    from .results import Response as Response
    from .retry import Retry as Retry
    from .router import Router as Router
    from .services import Always as Always
    from .services import File as File
    from .services import HealthCheck as HealthCheck
    from .services import Http as Http
    from .services import Log as Log
    from .services import Never as Never
    from .services import Notify as Notify
    from .services import OnFailure as OnFailure
    from .services import Service as Service
    from .services import Services as Services
    from .services import Stop as Stop
    from .services import Tcp as Tcp
    from .settle import Batch as Batch
    from .stream import Stream as Stream
    from .sync import DeliveryFuture as DeliveryFuture
    from .sync import SyncBroker as SyncBroker
    from .testing import TestApp as TestApp

__version__ = "0.1.0"

_HOMES = {
    "admin": (
        "ClusterInfo",
        "GroupInfo",
        "Health",
        "Lag",
        "LagSample",
        "MemberInfo",
        "NodeInfo",
        "PartitionInfo",
        "PartitionLag",
        "TopicChange",
        "TopicInfo",
    ),
    "app": ("App",),
    "broker": ("Broker",),
    "codecs": (
        "Codec",
        "JSON",
        "MSGPACK",
        "RAW",
        "TEXT",
    ),
    "dead": ("DeadLetter",),
    "depends": (
        "Context",
        "Depends",
        "Header",
        "Key",
        "Path",
    ),
    "engine": ("Topic",),
    "engines.fluvio": (
        "Fluvio",
        "FluvioBroker",
        "SmartModules",
    ),
    "engines.kafka": (
        "Kafka",
        "KafkaBroker",
    ),
    "engines.local": ("LocalBroker",),
    "engines.memory": ("MemoryBroker",),
    "engines.mqtt": (
        "Mqtt",
        "MqttBroker",
        "MqttWill",
    ),
    "engines.nats": (
        "Nats",
        "NatsBroker",
    ),
    "engines.rabbit": (
        "Rabbit",
        "RabbitBroker",
    ),
    "engines.redis": (
        "Redis",
        "RedisBroker",
    ),
    "errors": (
        "BatchError",
        "ConfigurationError",
        "AuthenticationError",
        "ConnectError",
        "DecodeError",
        "DeliveryUnknownError",
        "EncodeError",
        "GroupNotFoundError",
        "HeadwaterError",
        "MessageTooLargeError",
        "MissingExtraError",
        "NoBrokerError",
        "NotConnectedError",
        "NotSupportedError",
        "OffsetOutOfRangeError",
        "PartitionLostError",
        "PublishError",
        "RefusedError",
        "Reject",
        "RemoteError",
        "RequestTimeoutError",
        "RetryLater",
        "ServiceError",
        "Skip",
        "StopApp",
        "StopConsuming",
        "StoreBusyError",
        "StoreCorruptError",
        "StoreError",
        "StoreFullError",
        "StoreNotFoundError",
        "StoreVersionError",
        "SyncInAsyncError",
        "TooManyInFlightError",
        "TopicNameError",
        "TopicNotFoundError",
    ),
    "message": (
        "Headers",
        "Message",
        "Outgoing",
        "Position",
        "Receipt",
    ),
    "observe.logs": ("configure_logging",),
    "results": ("Response",),
    "retry": ("Retry",),
    "router": ("Router",),
    "services": (
        "Always",
        "File",
        "HealthCheck",
        "Http",
        "Log",
        "Never",
        "Notify",
        "OnFailure",
        "Service",
        "Services",
        "Stop",
        "Tcp",
    ),
    "settle": ("Batch",),
    "stream": ("Stream",),
    "sync": ("DeliveryFuture", "SyncBroker"),
    "testing": ("TestApp",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = list(_HOME_OF)  # a test compares it with the imports above


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
