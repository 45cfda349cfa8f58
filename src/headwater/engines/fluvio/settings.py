"""What a Fluvio broker was told: where its cluster is, and how to publish and consume there."""

from __future__ import annotations

import os
import ssl
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypedDict
from urllib.parse import SplitResult

import msgspec

from ...errors import ConfigurationError
from .. import read_options
from .connection import Address

PORT: Final = 9003
PROFILE_SCHEME: Final = "fluvio+profile"
SCHEMES: Final = ("fluvio", "fluvio+tls", PROFILE_SCHEME)

Acks = Literal["all", "leader"]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]


class FluvioOptions(TypedDict, total=False):
    """What a `fluvio://` URL may ask for after its `?`; `Settings` says what each means."""

    auto_create: bool
    partitions: int
    replication: int
    acks: Acks
    compression: Compression
    commit_interval: float
    session_timeout: float
    drain_timeout: float
    dial_timeout: float
    fetch_bytes: int
    tls_ca: str
    tls_cert: str
    tls_key: str
    tls_domain: str
    tls_verify: bool


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a cluster is, and how it is used.

    Attributes:
        address: of its controller (SC), and TLS, which its SPUs are spoken to with, too.
        auto_create: whether a missing topic is created when it is published to.
        partitions: of a topic that is made, where nobody says otherwise.
        replication: how many SPUs keep such a topic.
        acks: "all": a message is confirmed once all replicas in sync have it; "leader": once its leader has.
        compression: of what is published.
        commit_interval: seconds between two times that acknowledgements are stored.
        session_timeout: seconds without a sign of life after which a member of a group is taken for dead; at least 3.
        drain_timeout: seconds that handlers have to finish before their partition goes to another member.
        dial_timeout: seconds for a connection.
        fetch_bytes: that are read ahead at once from each partition.
    """

    address: Address
    auto_create: bool = True
    partitions: int = 1
    replication: int = 1
    acks: Acks = "all"
    compression: Compression = "none"
    commit_interval: float = 0.5
    session_timeout: float = 10.0
    drain_timeout: float = 30.0
    dial_timeout: float = 5.0
    fetch_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if self.session_timeout < 3:  # the server's clock tells whole seconds
            raise ConfigurationError("session_timeout of Fluvio is at least 3 seconds")
        if self.partitions < 1 or self.replication < 1:
            raise ConfigurationError("partitions and replication of Fluvio are at least 1")


def read_settings(parts: SplitResult, query: Mapping[str, str], own: FluvioOptions) -> Settings:
    """Of `fluvio://host:9003?acks=leader`, `fluvio+tls://...` or `fluvio+profile://name`. Raises ConfigurationError."""
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(f"{parts.scheme}:// is not Fluvio: use {', '.join(f'{name}://' for name in SCHEMES)}")
    asked: dict[str, Any] = {**read_options(FluvioOptions, query, parts.scheme), **own}
    tls = {name: asked.pop(name) for name in list(asked) if name.startswith("tls_")}
    if parts.scheme == PROFILE_SCHEME:
        if tls:
            raise ConfigurationError(f"{PROFILE_SCHEME}:// has its TLS in the profile: leave out {', '.join(tls)}")
        return Settings(address=_of_profile(parts.netloc), **asked)
    if tls and parts.scheme == "fluvio":
        raise ConfigurationError(f"{', '.join(tls)} is about TLS: use fluvio+tls://")
    return Settings(address=_address(parts, tls), **asked)


def _address(parts: SplitResult, tls: Mapping[str, Any]) -> Address:
    if "@" in parts.netloc:
        raise ConfigurationError(
            "Fluvio knows no user and password: leave them out, or use fluvio+tls:// with tls_cert"
        )
    host, port = _host_and_port(parts.netloc, parts.scheme)
    if parts.scheme == "fluvio":
        return Address(host, port)
    return Address(host, port, _context(tls), tls.get("tls_domain"))


def _host_and_port(text: str, scheme: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(PORT)
    if not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigurationError(f"{scheme}://{text}: {port!r} is no port")
    return host.strip("[]") or "127.0.0.1", int(port)


def _context(tls: Mapping[str, Any]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.get("tls_ca"))
        if "tls_cert" in tls:
            context.load_cert_chain(tls["tls_cert"], tls.get("tls_key"))
    except OSError as error:
        raise ConfigurationError(f"the certificates for Fluvio cannot be read: {error}") from error
    if not tls.get("tls_verify", True):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# --- profiles, as Fluvio's own command line keeps them ------------------------------------------------


def _of_profile(name: str) -> Address:
    """The cluster of this profile, or of the current one."""
    path = Path(os.environ.get("FLV_PROFILE_PATH") or Path.home() / ".fluvio" / "config")
    try:
        config = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(
            f"no profile of Fluvio can be read from {path} ({error.strerror}): run `fluvio profile add`, or name the "
            f"cluster with fluvio://host:{PORT}"
        ) from error
    except ValueError as error:  # no TOML, or not even text
        raise ConfigurationError(f"{path} is no configuration of Fluvio: {error}") from error
    name = name or config.get("current_profile", "")
    profiles = config.get("profile", {})
    if name not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise ConfigurationError(f"{path} has no profile {name!r}; it has: {known}")
    cluster = config.get("cluster", {}).get(profiles[name].get("cluster"))
    if cluster is None or not (endpoint := cluster.get("endpoint") or cluster.get("addr")):
        raise ConfigurationError(f"{path}: the profile {name!r} names no cluster that is there")
    host, port = _host_and_port(endpoint, PROFILE_SCHEME)
    tls = cluster.get("tls", {})
    policy = tls.get("tls_policy", "disabled")
    if policy in ("disabled", "disable"):
        return Address(host, port)
    if policy == "anonymous":
        return Address(host, port, _context({"tls_verify": False}))
    certs = tls.get("certs", {})
    context = _inline(certs) if tls.get("tls_source") == "inline" else _files(certs)
    return Address(host, port, context, certs.get("domain"))


def _files(certs: Mapping[str, str]) -> ssl.SSLContext:
    names = {"tls_ca": "ca_cert", "tls_cert": "cert", "tls_key": "key"}
    return _context({ours: certs[theirs] for ours, theirs in names.items() if theirs in certs})


def _inline(certs: Mapping[str, str]) -> ssl.SSLContext:
    """The standard library reads certificates of clients from files only."""
    with tempfile.TemporaryDirectory() as folder:  # nobody else may look into it
        written = {}
        for name in ("ca_cert", "cert", "key"):
            if name in certs:
                written[name] = str(Path(folder, name))
                Path(folder, name).write_text(certs[name])
        return _files(written)
