"""What can be asked of the MQTT engine: by its URL or broker, by a subscriber, a topic or a publish."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypedDict
from urllib.parse import SplitResult, unquote

import msgspec

from ...errors import ConfigurationError
from .. import read_options, redacted

PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
DAY: Final = 86_400.0  # seconds

QoS = Annotated[int, msgspec.Meta(ge=0, le=2)]


class Mqtt(msgspec.Struct, frozen=True, kw_only=True):
    """MQTT's own options, for `options=[Mqtt(...)]` of a subscriber, a stream, a publisher or a publish.

    Attributes:
        qos: 0 at most once, 1 at least once, 2 publishing: exactly once on the way to the server, as long as its
            connection lasts. Subscribing, 2 is 1: the server would forget a message before its handler has run.
            None as the broker says.
        retain: publishing: the server keeps this message for those who subscribe later; an empty body clears it.
        expiry: publishing: seconds after which the server drops the message where it was not delivered. 5.0 only.
        retained: subscribing: begin with the messages the server retained. A group never gets them.
        session_expiry: subscribing: seconds for which the server keeps what comes for a member that is away;
            None as the broker says.
    """

    qos: QoS | None = None
    retain: bool = False
    expiry: float | None = None
    retained: bool = False
    session_expiry: float | None = None

    def __post_init__(self) -> None:
        if self.qos not in (None, 0, 1, 2):
            raise ConfigurationError(f"Mqtt(qos={self.qos!r}): it is 0, 1 or 2")


class MqttWill(msgspec.Struct, frozen=True, kw_only=True):
    """What the server publishes when this broker's process dies, or is cut off, without saying goodbye.

    `delay` is in seconds, 5.0 only: a process that is back by then was not away.
    """

    topic: str
    payload: bytes | str = b""
    qos: QoS = 1
    retain: bool = False
    delay: float = 0.0


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection introduces itself. `expiry` is in seconds: how long its session outlives it."""

    client_id: str
    clean: bool
    expiry: float = 0.0
    will: MqttWill | None = None  # to the topic as the server calls it


class MqttOptions(TypedDict, total=False):
    """What an `mqtt://` URL may ask for after its `?`; `MqttBroker` says what each means."""

    protocol: Literal["5.0", "3.1.1"]
    qos: QoS
    keepalive: float
    session_expiry: float
    receive_maximum: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    client_id: str
    map_separators: bool
    max_packet_size: int
    ca: str
    cert: str
    key: str
    insecure: bool


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the servers are, who asks, and how."""

    url: str  # fit for logs and errors
    servers: tuple[tuple[str, int], ...]
    secure: bool = False
    username: str | None = None
    password: str | None = None
    protocol: Literal["5.0", "3.1.1"] = "5.0"
    qos: QoS = 1
    keepalive: float = 10.0
    session_expiry: float = DAY
    receive_maximum: int = 10_000
    client_id: str | None = None
    map_separators: bool = True
    max_packet_size: int | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    insecure: bool = False
    will: MqttWill | None = None

    def __post_init__(self) -> None:
        if not self.secure and (self.ca or self.cert or self.key or self.insecure):
            raise ConfigurationError("ca, cert, key and insecure are about TLS: use mqtts://")
        if self.keepalive <= 0 or self.session_expiry < 0:
            raise ConfigurationError("keepalive is more than 0 seconds, session_expiry at least 0")
        if self.will is not None and self.will.delay and not self.five:
            raise ConfigurationError("a will has a delay on MQTT 5.0 only: leave it out, or use protocol='5.0'")

    def __repr__(self) -> str:
        return f"Settings({self.url})"  # the password is nobody's

    @property
    def five(self) -> bool:
        """Whether it is MQTT 5.0."""
        return self.protocol == "5.0"

    def tls(self) -> ssl.SSLContext | None:
        """What makes the connection secure. Raises ConfigurationError for files that cannot be read."""
        if not self.secure:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except OSError as error:
            raise ConfigurationError(f"{self.url}: the certificates cannot be read: {error}") from error
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


def read_settings(parts: SplitResult, query: Mapping[str, str], **options: Any) -> Settings:
    """`mqtt://user:password@host:port,host:port?qos=1`. Raises ConfigurationError for what it cannot mean."""
    if parts.scheme not in PORTS:
        raise ConfigurationError(f"{parts.scheme}:// is not MQTT: use mqtt:// or mqtts://")
    if parts.path.strip("/"):
        raise ConfigurationError(f"{parts.scheme}:// has no path; it was given {parts.path!r}")
    who, _, hosts = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    return Settings(
        url=redacted(parts._replace(query="", fragment="").geturl()),
        servers=tuple(_server(host, parts.scheme) for host in hosts.split(",")),
        secure=parts.scheme == "mqtts",
        username=unquote(user) or None,
        password=unquote(password) or None,
        **{**read_options(MqttOptions, query, parts.scheme), **options},
    )


def _server(text: str, scheme: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(PORTS[scheme])
    if not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigurationError(f"{scheme}://{text}: {port!r} is no port")
    return host.strip("[]") or "127.0.0.1", int(port)
