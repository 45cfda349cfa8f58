"""What may be asked of NATS: by URL or argument for a connection, by `Nats(...)` for a topic or a subscriber."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import SplitResult, unquote

import msgspec

from ...errors import ConfigurationError
from .. import read_options

DEFAULT_PORT = 4222
Storage = Literal["file", "memory"]


class NatsOptions(TypedDict, total=False):
    """What a NATS URL may ask for after its `?`; `Settings` says what each means."""

    user: str
    password: str
    token: str
    credentials: str
    nkey: str
    tls: bool
    tls_ca: str
    tls_cert: str
    tls_key: str
    client: str
    ping_interval: float
    auto_create: bool
    storage: Storage
    replicas: int
    lease: float
    schedules: bool
    domain: str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach NATS and what to do there.

    Attributes:
        hosts: host:port of one or more servers of a cluster; others are learnt from these.
        user: with `password`; both may stand in the URL, `nats://user:password@host`.
        password: see `user`.
        token: instead of a user, also `nats://token@host`.
        credentials: path of a `.creds` file.
        nkey: path of a file with the seed of an nkey.
        tls: refuse a server without TLS, as the scheme `nats+tls://` does.
        tls_ca: path of the certificates to trust instead of the system's.
        tls_cert: path of the client's certificate, with `tls_key`.
        tls_key: see `tls_cert`.
        client: the name the server shows for the connection.
        ping_interval: seconds between two questions whether the server is still there; the third without an answer
            ends the connection.
        auto_create: JetStream: make a stream for a topic that no stream covers.
        storage: JetStream: where the streams made here are kept.
        replicas: JetStream: how many servers keep the streams made here.
        lease: JetStream: seconds until an unsettled message is given to somebody else; it is kept up while it is
            worked on.
        schedules: JetStream: allow delayed messages on the streams made here. They need a server of version 2.12.
        domain: JetStream: the domain to use, for leaf nodes.
    """

    hosts: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    nkey: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    client: str = "headwater"
    ping_interval: float = 0.6
    auto_create: bool = True
    storage: Storage = "file"
    replicas: int = 1
    lease: float = 30.0
    schedules: bool = True
    domain: str | None = None

    def __post_init__(self) -> None:
        if self.lease <= 0 or self.ping_interval <= 0:
            raise ConfigurationError("nats:// options: lease and ping_interval are more than 0 seconds")
        for name in ("credentials", "nkey", "tls_ca", "tls_cert", "tls_key"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigurationError(f"nats:// options: there is no file {path!r}, which {name} names")

    def __repr__(self) -> str:
        return f"Settings({self.address})"  # without what is secret

    @property
    def address(self) -> str:
        """The servers, fit for logs and errors."""
        return ",".join(self.hosts)

    def context(self) -> ssl.SSLContext | None:
        """What TLS needs, or None for what Python trusts by default, used where the server demands it."""
        if not (self.tls or self.tls_ca or self.tls_cert):
            return None
        context = ssl.create_default_context(cafile=self.tls_ca)
        if self.tls_cert:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        return context


class Nats(msgspec.Struct, frozen=True, kw_only=True):
    """What one topic, or one subscriber, asks of NATS.

    Attributes:
        stream: of a `Topic`: the stream that keeps it. Topics may share one.
        subjects: of a `Topic`: what that stream takes, with wildcards, such as `("orders.>",)`.
        storage: of a `Topic`: "file" or "memory".
        replicas: of a `Topic`: how many servers keep it.
        duplicates: of a `Topic`: seconds in which a second message of one `hw-id` is dropped, by default 120.
        lease: of a subscriber: seconds until an unsettled message is given to somebody else.
        max_deliver: of a subscriber: how often the server gives a message out at most; it is logged when it stops.
        max_ack_pending: of a subscriber: how many messages its group may hold unsettled.
        pending: of a subscriber on core NATS: how many messages wait here before more are dropped.
    """

    stream: str | None = None
    subjects: tuple[str, ...] = ()
    storage: Storage | None = None
    replicas: int | None = None
    duplicates: float | None = None
    lease: float | None = None
    max_deliver: int = -1
    max_ack_pending: int = 50_000
    pending: int = 65_536


def from_parts(parts: SplitResult, query: Mapping[str, str]) -> Settings:
    """The settings a URL asks for. Raises ConfigurationError for an option that NATS lacks."""
    options: dict[str, Any] = dict(read_options(NatsOptions, query, parts.scheme))
    credentials, at, hosts = parts.netloc.rpartition("@")
    if at:
        user, colon, password = credentials.partition(":")
        who = {"user": unquote(user), "password": unquote(password)} if colon else {"token": unquote(user)}
        options = {**who, **options}
    if parts.scheme.endswith("tls"):
        options["tls"] = True
    return Settings(hosts=_hosts(hosts), **options)


def _hosts(netloc: str) -> tuple[str, ...]:
    hosts = [host.strip() for host in netloc.split(",") if host.strip()] or ["localhost"]
    return tuple(host if _has_port(host) else f"{host}:{DEFAULT_PORT}" for host in hosts)


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]
