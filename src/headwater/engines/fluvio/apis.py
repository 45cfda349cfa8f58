"""What Fluvio's servers are asked, and what they answer: the controller (SC) of objects, the SPUs of records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from ...errors import HeadwaterError
from .wire import (
    Fault,
    Reader,
    boolean,
    i16,
    i32,
    i64,
    many,
    mapping,
    option,
    sized,
    string,
    u8,
    u32,
)

T = TypeVar("T")

Place = tuple[str, int]  # a partition of a topic, by the server's name


class Api(NamedTuple):
    """A kind of request, and the versions of it that are spoken here."""

    key: int
    oldest: int
    newest: int
    told_as: int | None = None  # the kind of request whose versions are told for this one, too


VERSIONS: Final = Api(18, 1, 2)

CREATE: Final = Api(1001, 13, 19)
DELETE: Final = Api(1002, 13, 19)
LIST: Final = Api(1003, 13, 19)
UPDATE: Final = Api(1006, 13, 19)

PRODUCE: Final = Api(0, 23, 25)
FETCH_OFFSETS: Final = Api(1002, 24, 25)
STREAM: Final = Api(1003, 23, 25)
MOVE_STREAM: Final = Api(1005, 0, 0)
STORE_OFFSET: Final = Api(1006, 23, 25, told_as=STREAM.key)
DELETE_OFFSET: Final = Api(1007, 23, 25, told_as=STREAM.key)
LIST_OFFSETS: Final = Api(1008, 24, 25, told_as=STREAM.key)

SPEAKS: Final = "0.18.1"  # the version of Fluvio whose clients speak as we do
COMMITTED: Final = 1  # reading: only what enough replicas have

_ARRAY_OF_ALL: Final = many((), string)


# --- the versions a server speaks ---------------------------------------------------------------------


class Spoken(NamedTuple):
    """What a server speaks: versions by the key of a request, and its own version."""

    ranges: Mapping[int, tuple[int, int]]
    platform: str

    def version_of(self, api: Api) -> int:
        """The newest that both speak. Raises HeadwaterError if there is none: the server is too old or too new."""
        oldest, newest = self.ranges.get(api.told_as or api.key, (1, 0))
        version = min(newest, api.newest)
        if version < max(oldest, api.oldest):
            raise HeadwaterError(
                f"Fluvio {self.platform} speaks request {api.key} in versions {oldest} to {newest}, and Headwater in "
                f"{api.oldest} to {api.newest}: use a cluster that is as new as its clients {SPEAKS}"
            )
        return version


def introduce(system: str, machine: str) -> bytes:
    """Ask what a server speaks."""
    return string(SPEAKS) + string(system) + string(machine)


def read_versions(reader: Reader) -> Spoken:
    raise_fault(reader.fault())
    ranges = reader.many(lambda: (reader.i16(), (reader.i16(), reader.i16())))
    return Spoken({VERSIONS.key: (VERSIONS.oldest, VERSIONS.newest), **dict(ranges)}, reader.string())


def raise_fault(fault: Fault | None) -> None:
    if fault is not None:
        raise fault


# --- objects of the controller ------------------------------------------------------------------------


class Spu(NamedTuple):
    """A server that keeps partitions, and where clients reach it."""

    id: int
    host: str
    port: int
    online: bool


class TopicSettings(NamedTuple):
    """What a topic was made with; None is the server's default."""

    partitions: int = 1
    replicas: int = 1
    retention: int | None = None  # seconds
    segment_size: int | None = None  # bytes
    max_partition_size: int | None = None  # bytes
    compression: str = "any"
    system: bool = False


class TopicState(NamedTuple):
    """A topic and whether it can be used."""

    name: str
    settings: TopicSettings
    resolution: str
    reason: str


class Copy(NamedTuple):
    """How far one SPU has a partition: what is committed, and what is written."""

    spu: int
    committed: int
    written: int


class PartitionState(NamedTuple):
    """A partition, its leader and its copies. `size` is in bytes, -1 where it is not known."""

    topic: str
    number: int
    leader: int
    replicas: tuple[int, ...]
    resolution: str
    copies: tuple[Copy, ...]  # the leader's first
    size: int
    earliest: int


class Module(NamedTuple):
    """A SmartModule that is loaded: its name, and how many bytes it has, compressed."""

    name: str
    size: int


def list_of(label: str, *, summary: bool = False, system: bool = False, name: str = "") -> bytes:
    """Ask for the objects of a kind, or for the one of this name."""
    names = many((name,), string) if name else _ARRAY_OF_ALL
    return _typed(label, names + boolean(summary) + boolean(system))


def read_list(reader: Reader, read: Callable[[Reader, str], T]) -> list[T]:
    reader.string()  # its label
    reader.u32()
    return reader.many(lambda: read(reader, reader.string()))


def create(label: str, name: str, spec: bytes, timeout: float) -> bytes:
    return _typed(label, string(name) + boolean(False) + option(round(timeout * 1000), u32) + spec)


def delete(label: str, name: str) -> bytes:
    return _typed(label, string(name) + boolean(False))


def add_partitions(name: str, count: int) -> bytes:
    """`count` more."""
    return _typed(TOPIC, string(name) + u8(0) + u32(count))


def read_status(reader: Reader) -> None:
    """Raises Fault for what was refused."""
    reader.string()
    fault = reader.fault()
    message = reader.option(reader.string)
    if fault is not None:
        raise Fault(fault.code, str(fault), message=message)


def _typed(label: str, body: bytes) -> bytes:
    return string(label) + sized(body)


TOPIC: Final = "Topic"
PARTITION: Final = "Partition"
SPU: Final = "SPU"
CUSTOM_SPU: Final = "CustomSpu"
MODULE: Final = "SmartModule"

_COMPRESSION: Final = ("none", "gzip", "snappy", "lz4", "any", "zstd")
_TOPIC_RESOLUTION: Final = ("init", "pending", "insufficient resources", "invalid config", "provisioned", "deleting")
_PARTITION_RESOLUTION: Final = ("offline", "online", "leader offline", "election", "out of storage")


# --- topics


def topic_spec(settings: TopicSettings, version: int) -> bytes:
    """A topic whose partitions the controller places."""
    storage = None
    if settings.segment_size is not None or settings.max_partition_size is not None:
        storage = option(settings.segment_size, u32) + option(settings.max_partition_size, lambda n: i64(n))
    return b"".join(
        (
            u8(1) + u32(settings.partitions) + u32(settings.replicas) + boolean(False),
            option(settings.retention, lambda seconds: u8(0) + u32(seconds)),
            option(storage, bytes),
            u8(_COMPRESSION.index(settings.compression)),
            boolean(False),  # no deduplication
            boolean(False),  # none of the system's
        )
    )


def read_topic(reader: Reader, name: str) -> TopicState:
    partitions, replicas = _read_placement(reader)
    retention = reader.option(lambda: reader.u8() * 0 + reader.u32())
    storage = reader.option(lambda: (reader.option(reader.u32), reader.option(reader.u64)))
    compression = _COMPRESSION[reader.u8()]
    reader.option(lambda: _skip_deduplication(reader))
    system = reader.boolean()
    resolution = _TOPIC_RESOLUTION[reader.u8()]
    for _ in range(reader.u16()):  # where its partitions are
        reader.u32()
        reader.many(reader.i32)
    if reader.version >= 14:
        for _ in range(reader.u16()):
            reader.u32()
            reader.option(lambda: _skip_mirror(reader))
    segment, most = storage or (None, None)
    settings = TopicSettings(partitions, replicas, retention, segment, most, compression, system)
    return TopicState(name, settings, resolution, reader.string())


def _read_placement(reader: Reader) -> tuple[int, int]:
    """How many partitions, and how many copies of each."""
    kind = reader.u8()
    if kind == 1:
        partitions, replicas = reader.u32(), reader.u32()
        reader.boolean()
        return partitions, replicas
    if kind == 0:
        maps = reader.many(lambda: _read_map(reader))
        return len(maps), len(maps[0]) if maps else 0
    return _read_mirrored(reader), 1


def _read_map(reader: Reader) -> list[int]:
    reader.u32()
    spus = reader.many(reader.i32)
    if reader.version >= 14:
        reader.option(lambda: _skip_mirror(reader))
    return spus


def _read_mirrored(reader: Reader) -> int:
    if reader.u8() == 0:  # a remote one of this cluster
        reader.string()
        count = len(reader.many(lambda: (reader.i32(), reader.string(), reader.string())))
    else:
        count = len(reader.many(lambda: _skip_home(reader)))
    if reader.version >= 18:
        reader.boolean()
    return count


def _skip_mirror(reader: Reader) -> None:
    if reader.u8() == 0:
        reader.string(), reader.string(), reader.i32(), reader.string()
        if reader.version >= 18:
            reader.boolean()
    else:
        _skip_home(reader)


def _skip_home(reader: Reader) -> None:
    reader.string(), reader.string()
    if reader.version >= 18:
        reader.boolean()


def _skip_deduplication(reader: Reader) -> None:
    reader.u64()
    reader.option(lambda: (reader.u64(), reader.u32()))
    reader.string()
    reader.mapping()


# --- partitions, servers, SmartModules


def read_partition(reader: Reader, name: str) -> PartitionState:
    topic, _, number = name.rpartition("-")
    leader, replicas = reader.i32(), tuple(reader.many(reader.i32))
    reader.option(lambda: reader.u8() * 0 + reader.u32())
    reader.option(lambda: (reader.option(reader.u32), reader.option(reader.u64)))
    reader.u8()  # compression
    reader.option(lambda: _skip_deduplication(reader))
    reader.boolean()  # the system's
    if reader.version >= 14:
        reader.option(lambda: _skip_mirror(reader))
    resolution = _PARTITION_RESOLUTION[reader.u8()]
    copies = [_read_copy(reader)]
    reader.u32()
    copies += reader.many(lambda: _read_copy(reader))
    size = reader.i64()
    reader.boolean()  # being deleted
    earliest = reader.i64() if reader.version >= 16 else -1
    return PartitionState(topic, int(number), leader, replicas, resolution, tuple(copies), size, earliest)


def _read_copy(reader: Reader) -> Copy:
    return Copy(reader.i32(), reader.i64(), reader.i64())


def read_spu(reader: Reader, name: str) -> Spu:
    number = reader.i32()
    reader.u8()  # managed or not
    port, hosts, _ = reader.u16(), reader.many(lambda: _read_host(reader)), reader.u8()
    _read_endpoint(reader)
    reader.option(reader.string)
    local = reader.option(lambda: _read_endpoint(reader))
    host = next((host for host in hosts if host), None)
    if host is None and local is not None:
        host, port = local
    return Spu(number, host or "", port, reader.u8() == 0)


def _read_host(reader: Reader) -> str | None:
    name, address = reader.option(reader.string), reader.option(reader.string)
    return name or address


def _read_endpoint(reader: Reader) -> tuple[str, int]:
    port, host, _ = reader.u16(), reader.string(), reader.u8()
    return host, port


def module_spec(wasm: bytes) -> bytes:
    """A SmartModule of no package; `wasm` is its WebAssembly, compressed with gzip."""
    return boolean(False) + boolean(False) + u8(0) + sized(wasm)


def read_module(reader: Reader, name: str) -> Module:
    reader.option(lambda: _skip_package(reader))
    size = reader.option(reader.u32)
    reader.u8()
    wasm = reader.raw(reader.u32())
    return Module(name, len(wasm) if size is None else size)


def _skip_package(reader: Reader) -> None:
    for _ in range(4):
        reader.string()
    reader.option(reader.string), reader.option(reader.string)
    if reader.version >= 19:
        reader.u8()
    reader.option(reader.string)
    for _ in range(reader.u16()):
        reader.string(), reader.option(reader.string), reader.boolean()


# --- records of the SPUs ------------------------------------------------------------------------------


def produce(batches: Mapping[Place, bytes], acks: int, timeout: float) -> bytes:
    """Write one batch to each of these partitions. `acks` is -1 for all replicas in sync, 1 for the leader."""
    topics = [string(topic) + many((number,), u32) + sized(batch) for (topic, number), batch in batches.items()]
    return option(None, string) + i16(acks) + i32(round(timeout * 1000)) + many(topics, bytes) + many((), bytes)


class Produced(NamedTuple):
    """What became of a batch: the offset of its first record, or why it was refused."""

    base: int
    fault: Fault | None


def read_produced(reader: Reader) -> dict[Place, Produced]:
    found: dict[Place, Produced] = {}

    def partition(topic: str) -> None:
        number, fault, base = reader.u32(), reader.fault(), reader.i64()
        reader.i64(), reader.i64()  # times of the log, which it does not tell
        found[topic, number] = Produced(base, fault)

    def topic() -> None:
        name = reader.string()
        reader.many(lambda: partition(name))

    reader.many(topic)
    return found


def fetch_offsets(topic: str, number: int) -> bytes:
    return many((string(topic) + many((number,), u32),), bytes)


def read_offsets(reader: Reader) -> tuple[int, int]:
    """The first offset kept, and the one the next message will get. Raises Fault."""
    reader.u32(), reader.string(), reader.u32()
    fault = reader.fault()
    reader.u32()
    raise_fault(fault)
    return reader.i64(), reader.i64()


class SmartModule(NamedTuple):
    """A SmartModule that a stream passes through, with its parameters."""

    name: str
    params: Mapping[str, str]


def stream(
    place: Place, offset: int, max_bytes: int, consumer: str | None, modules: Sequence[SmartModule] = ()
) -> bytes:
    """Have records sent from an offset on. With a consumer its offset can be stored through this stream."""
    where = string(place[0]) + u32(place[1]) + i64(offset) + i32(max_bytes) + u8(COMMITTED)
    return where + many(modules, _invocation) + option(consumer, string)


def _invocation(module: SmartModule) -> bytes:
    generic = u8(7) + u8(0)
    return u8(0) + string(module.name) + generic + mapping(module.params) + boolean(False) + option(None, string)


class Streamed(NamedTuple):
    """What a stream brings: raw batches, and where to read on if SmartModules left some out."""

    stream: int
    fault: Fault | None
    next_offset: int
    batches: bytes


def read_streamed(reader: Reader) -> Streamed:
    reader.string()
    number = reader.u32()
    reader.u32()
    fault = reader.fault()
    reader.i64()
    next_offset = reader.i64()
    reader.i64()
    reader.option(lambda: reader.many(lambda: (reader.i64(), reader.i64())))
    return Streamed(number, fault, next_offset, reader.raw(reader.i32()))


def move_stream(stream: int, offset: int) -> bytes:
    """All below this offset was taken: send what comes from there on."""
    return many((i64(offset) + u32(stream),), bytes)


def store_offset(stream: int, offset: int) -> bytes:
    """The consumer of this stream is done with this offset and all below it."""
    return i64(offset) + u32(stream)


def read_stored(reader: Reader) -> None:
    reader.i64()
    raise_fault(reader.fault())


def delete_offset(consumer: str, place: Place) -> bytes:
    return string(place[0]) + u32(place[1]) + string(consumer)


def read_deleted(reader: Reader) -> None:
    raise_fault(reader.fault())


class Stored(NamedTuple):
    """An offset that a consumer stored, and when, in seconds since the epoch by the server's clock."""

    consumer: str
    place: Place
    offset: int
    time: int


def list_offsets(place: Place | None = None, consumer: str | None = None) -> bytes:
    """Of this partition and this consumer, or of all."""
    where = option(place, lambda place: string(place[0]) + u32(place[1]))
    return option(where + option(consumer, string), bytes)


def read_stored_offsets(reader: Reader) -> list[Stored]:
    fault = reader.fault()
    found = reader.many(lambda: Stored(reader.string(), (reader.string(), reader.u32()), reader.i64(), reader.u64()))
    raise_fault(fault)
    return found


Read = Callable[[Reader], Any]
