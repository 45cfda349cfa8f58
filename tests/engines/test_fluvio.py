"""What only Fluvio has: its records, names and profiles, groups that share by themselves, its own protocol."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.fluvio_peer import FluvioPeer, client
from headwater import (
    App,
    Broker,
    ConfigurationError,
    ConnectError,
    DecodeError,
    Fluvio,
    FluvioBroker,
    HeadwaterError,
    Message,
    MissingExtraError,
    OffsetOutOfRangeError,
    Outgoing,
    Position,
    Topic,
    TopicNameError,
    TopicNotFoundError,
)
from headwater.admin import MemberInfo
from headwater.engine import Change, Source
from headwater.engines.fluvio import names
from headwater.engines.fluvio.apis import VERSIONS, Stored
from headwater.engines.fluvio.batching import partition_of, write_batch, write_record
from headwater.engines.fluvio.membership import View, live_members, new_name
from headwater.engines.fluvio.records import CODECS, HEAD, Record, read_batches
from headwater.engines.fluvio.settings import Settings
from headwater.engines.fluvio.wire import i16, many, string
from headwater.testing.contract.tools import QUIET, held, reading, settled, taken
from servers.certificate import Certificate, make_certificate
from servers.process import free_ports
from waiting import until

# --- records ------------------------------------------------------------------------------------------


def batch_of(*values: tuple[bytes | None, bytes], codec: str = "none", time: int = 1_700_000_000_000) -> bytes:
    records = [write_record(number, *value) for number, value in enumerate(values)]
    return write_batch(records, time, CODECS[codec])


@given(
    st.lists(st.tuples(st.none() | st.binary(max_size=200), st.binary(max_size=200)), min_size=1, max_size=20),
    st.sampled_from(list(CODECS)),
)
def test_a_batch_is_read_as_it_was_written(values: list[tuple[bytes | None, bytes]], codec: str) -> None:
    records = [Record(number, 1_700_000_000_000, *value) for number, value in enumerate(values)]
    assert [*read_batches(batch_of(*values, codec=codec))] == [(len(values), records)]


THEIRS = (
    "000000000000000100000045ffffffff0253fb5511000000000001000001a203328367000001a203328367ffffffffffffffffffffffffffff"
    "000000021200000001026102310012000002010262023200"  # two records of Fluvio's own client, as the server sends them
)


def test_a_batch_is_written_and_read_as_the_client_does() -> None:
    theirs = bytes.fromhex(THEIRS)
    time = 1795349971815
    ((after, records),) = read_batches(theirs)
    assert (after, records) == (3, [Record(1, time, b"a", b"1"), Record(2, time, b"b", b"2")])
    ours = write_batch([write_record(n, key, value) for n, (_, _, key, value) in enumerate(records)], time, 0)
    assert ours[8:] == theirs[8:]  # the server says where it begins


@pytest.mark.parametrize("codec", CODECS)
def test_a_torn_last_batch_is_left_out(codec: str) -> None:
    whole, torn = batch_of((b"k", b"one"), codec=codec), batch_of((None, b"two"), (None, b"three"), codec=codec)
    for length in range(len(torn)):
        ((after, (record,)),) = read_batches(whole + torn[:length])
        assert (after, record.value) == (1, b"one")


@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_batch_is_an_error(codec: str) -> None:
    batch = batch_of((b"k", b"value" * 100), codec=codec)
    for damaged in (
        batch[:HEAD] + b"\x7f" + batch[HEAD + 1 :],  # how many records it has, or how its compression begins
        batch[:HEAD] + b"\x7f" * (len(batch) - HEAD),
        batch[:8] + (-12).to_bytes(4, "big", signed=True) + batch[12:],  # a length that leads nowhere
        batch[:21] + (5).to_bytes(2, "big") + batch[23:],  # a compression that nobody knows
    ):
        with pytest.raises(DecodeError, match="batch of Fluvio"):
            list(read_batches(damaged))


def test_a_record_without_a_time_has_none() -> None:
    ((_, (record,)),) = read_batches(batch_of((None, b"x"), time=-1))
    assert record.time == -1


@pytest.mark.parametrize(
    ("key", "of_a_thousand", "of_seven"),  # computed by another program, which passes SipHash's own test vector
    [(b"", 119, 3), (b"a", 587, 2), (b"ada", 864, 2), (b"customer-42", 367, 0), (b"0123456789abcdef", 283, 4)],
)
def test_a_key_belongs_to_the_partition_of_its_hash(key: bytes, of_a_thousand: int, of_seven: int) -> None:
    assert (partition_of(key, 1000), partition_of(key, 7)) == (of_a_thousand, of_seven)


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"), [("orders", "orders"), ("orders.dead", "orders--dead"), ("a-1.b.c", "a-1--b--c")]
)
def test_a_dot_is_two_hyphens_in_the_cluster(ours: str, theirs: str) -> None:
    assert names.native(ours) == theirs
    assert names.ours(theirs) == ours


@pytest.mark.parametrize("name", ["", "Orders", "a_b", "a--b", "-a", "a-", "a.-b", "a..b", ".a", "a/b", "ä", "a" * 64])
def test_a_name_that_fluvio_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(TopicNameError, match=repr(name)):
        Broker("fluvio://localhost").engine.check_topic(name)


def test_a_name_has_63_characters_where_a_dot_counts_for_two() -> None:
    assert len(names.native("a" * 63)) == len(names.native("a" * 30 + "." + "b" * 31)) == 63
    with pytest.raises(TopicNameError, match="it has 64 characters in Fluvio, at most 63"):
        names.native("a" * 31 + "." + "b" * 31)


# --- settings -----------------------------------------------------------------------------------------


def settings_of(url: str, **options: Any) -> Settings:
    return FluvioBroker(url, **options).engine.settings  # type: ignore[attr-defined]  # Fluvio's


def test_options_are_said_in_the_url_or_in_python() -> None:
    said = settings_of("fluvio://somewhere?acks=leader&partitions=3&session_timeout=4.5&auto_create=false")
    assert said == settings_of(
        "fluvio://somewhere:9003", acks="leader", partitions=3, session_timeout=4.5, auto_create=False
    )
    assert str(said.address) == "somewhere:9003"
    assert settings_of("fluvio://[::1]:19").address[:2] == ("::1", 19)
    assert settings_of("fluvio://?acks=leader", acks="all").acks == "all"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("fluvio://h?ack=all", "no option 'ack'; it has acks"),
        ("fluvio://h?acks=some", "Invalid enum value 'some'"),
        ("fluvio://h?compression=brotli", "Invalid enum value 'brotli'"),
        ("fluvio://h?partitions=0", "at least 1"),
        ("fluvio://h?replication=0", "at least 1"),
        ("fluvio://h?session_timeout=1", "session_timeout.* at least 3"),
        ("fluvio://h:x", "'x' is no port"),
        ("fluvio://h:0", "'0' is no port"),
        ("fluvio://ann:s3cret@h", "no user and password"),
        ("fluvio://h?tls_ca=ca.pem&tls_key=s3cret", r"tls_ca, tls_key is about TLS: use fluvio\+tls://"),
        ("fluvio+tls://h?tls_ca=missing.pem", "certificates for Fluvio cannot be read"),
        ("fluvio+profile://?tls_verify=false", "leave out tls_verify"),
    ],
)
def test_what_is_wrong_in_a_url_is_named_and_no_secret_is(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as wrong:
        settings_of(url)
    assert "s3cret" not in str(wrong.value)


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path)


def test_tls_is_said_with_its_files(certificate: Certificate) -> None:
    files = f"tls_ca={certificate.file}&tls_cert={certificate.file}&tls_key={certificate.key}"
    address = settings_of(f"fluvio+tls://h?{files}&tls_domain=other").address
    assert address.tls is not None
    assert address.server_name == "other"
    assert address.tls.check_hostname
    assert [found["subject"] for found in address.tls.get_ca_certs()] == [((("commonName", "localhost"),),)]
    careless = settings_of("fluvio+tls://h?tls_verify=false").address.tls
    assert careless is not None
    assert not careless.check_hostname


# --- profiles -----------------------------------------------------------------------------------------


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Fluvio's own command line keeps its profiles."""
    monkeypatch.setenv("FLV_PROFILE_PATH", str(tmp_path / "config"))
    return tmp_path / "config"


TWO = """version = "2.0"
current_profile = "near"
[profile.near]
cluster = "local"
[profile.far]
cluster = "cloud"
[profile.lost]
cluster = "nowhere"
[cluster.local]
endpoint = "127.0.0.1:9103"
[cluster.cloud]
endpoint = "cloud.example:9003"
[cluster.cloud.tls]
"""


def test_a_profile_is_named_or_the_current_one(profiles: Path) -> None:
    profiles.write_text(TWO)
    for url, address in (("", "127.0.0.1:9103"), ("near", "127.0.0.1:9103"), ("far", "cloud.example:9003")):
        found = settings_of(f"fluvio+profile://{url}?partitions=2")
        assert (str(found.address), found.address.tls, found.partitions) == (address, None, 2)


def test_a_profile_that_is_not_there_is_told_with_those_that_are(profiles: Path) -> None:
    def refused(told: str, name: str = "shop") -> None:
        with pytest.raises(ConfigurationError, match=told) as wrong:
            settings_of(f"fluvio+profile://{name}")
        assert str(profiles) in str(wrong.value)
        assert "s3cret" not in str(wrong.value)

    refused("No such file.*fluvio profile add")
    profiles.write_bytes(b'key = "s3cret')
    refused("is no configuration of Fluvio")
    profiles.write_bytes(b'key = "s3cret \xff"')
    refused("is no configuration of Fluvio")
    profiles.write_text("")
    refused("no profile ''; it has: none", "")
    profiles.write_text(TWO)
    refused("no profile 'shop'; it has: far, lost, near")
    refused("'lost' names no cluster", "lost")


def test_a_profile_brings_its_tls(profiles: Path, certificate: Certificate) -> None:
    cert, key = certificate.file, certificate.key
    files = f'ca_cert = "{cert}"\ncert = "{cert}"\nkey = "{key}"\n'
    inline = f'ca_cert = """{cert.read_text()}"""\ncert = """{cert.read_text()}"""\nkey = """{key.read_text()}"""\n'
    for source, certs in (("files", files), ("inline", inline)):
        policy = f'tls_policy = "verified"\ntls_source = "{source}"\n'
        profiles.write_text(f'{TWO}{policy}[cluster.cloud.tls.certs]\ndomain = "fluvio.example"\n{certs}')
        address = settings_of("fluvio+profile://far").address
        assert address.tls is not None
        assert len(address.tls.get_ca_certs()) == 1
        assert (address.server_name, address.tls.check_hostname) == ("fluvio.example", True)
    profiles.write_text(TWO + 'tls_policy = "anonymous"\n')
    anonymous = settings_of("fluvio+profile://far").address.tls
    assert anonymous is not None
    assert not anonymous.check_hostname


def test_a_wrong_certificate_of_a_profile_is_not_shown(profiles: Path) -> None:
    policy = (
        'tls_policy = "verified"\ntls_source = "inline"\n[cluster.cloud.tls.certs]\ncert = "s3cret"\nkey = "s3cret"'
    )
    profiles.write_text(TWO + policy)
    with pytest.raises(ConfigurationError, match="certificates for Fluvio cannot be read") as wrong:
        settings_of("fluvio+profile://far")
    assert "s3cret" not in str(wrong.value)


# --- groups -------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 40), st.booleans())
def test_every_partition_has_exactly_one_member(members: int, partitions: int, exclusive: bool) -> None:
    view = View(tuple(f"m{number:02}" for number in range(members)), partitions, exclusive)
    shares = [view.share(name) for name in view.members]
    assert sorted(number for share in shares for number in share) == list(range(partitions))
    sizes = sorted(map(len, shares))
    assert sizes == [0] * (members - 1) + [partitions] if exclusive else sizes[-1] - sizes[0] <= 1


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True), st.integers(1, 3), st.booleans())
def test_views_that_differ_have_different_numbers(members: list[int], partitions: int, exclusive: bool) -> None:
    view = View(tuple(map(str, members)), partitions, exclusive)
    assert view.number != 0
    for other in (view._replace(partitions=4), view._replace(exclusive=not exclusive), view._replace(members=("4",))):
        assert other.number != view.number


def test_a_member_lives_as_long_as_its_signs_by_the_servers_clock() -> None:
    def stored(name: str, time: int) -> Stored:
        return Stored(name, ("orders", 0), 7, time)

    first, second, dead = (new_name("shop", "app") for _ in range(3))
    others = [new_name(group, "app") for group in ("shop-2", "sho", "shop/x")]
    signs = [stored(name, 100) for name in (second, first, *others, "shop")]
    members = live_members([*signs, stored(dead, 89)], "shop", 100, 10)
    assert [member.name for member in members] == sorted((first, second))
    assert members[0].client.startswith("app@")
    assert members[0].view == 7


# --- servers that are away, silent, or something else --------------------------------------------------

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handle: Handle) -> AsyncIterator[str]:
    """A server that treats each connection so, until its client goes."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass  # its client has gone
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None: ...


async def handshake(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, versions: tuple[int, int] = (13, 19)
) -> None:
    """Say what is spoken here, as the controller does, and nothing more."""
    asked = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
    assert asked[:2] == i16(VERSIONS.key)
    spoken = [i16(key) + i16(versions[0]) + i16(versions[1]) for key in (1001, 1002, 1003, 1006)]
    answer = asked[4:8] + i16(0) + many(spoken, bytes) + string("0.18.1")
    writer.write(len(answer).to_bytes(4, "big") + answer)


@asynccontextmanager
async def ticking(without: float = 0.5) -> AsyncIterator[None]:
    """Fail unless the loop went on all the time, but for less than so many seconds."""
    gaps = list[float]()

    async def tick() -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - before)
            before += gaps[-1]

    ticker = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticker.cancel()
    assert max(gaps) < without


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """All patience is short."""
    for place in ("cluster.ANSWER_WITHIN", "cluster.READY_WITHIN", "sending.ANSWER_WITHIN"):
        monkeypatch.setattr(f"headwater.engines.fluvio.{place}", 0.2)


async def test_nobody_there_is_an_error_at_once_that_says_where_and_why() -> None:
    (port,) = free_ports(1)
    began = time.monotonic()
    with pytest.raises(ConnectError, match=rf"127\.0\.0\.1:{port}: .*refused"):
        await Broker(f"fluvio://127.0.0.1:{port}").connect()
    assert time.monotonic() - began < 1


async def test_a_server_that_never_answers_is_an_error_in_time() -> None:
    async with serving(silent) as address, ticking():
        with pytest.raises(ConnectError, match=rf"{address}: no answer within 0\.3 s"):
            await Broker(f"fluvio://{address}?dial_timeout=0.3").connect()


CALLS: list[Callable[[Broker], Awaitable[object]]] = [
    lambda broker: broker.publish(1, "orders"),
    lambda broker: broker.engine.check(),
    lambda broker: anext(broker.stream("orders")),
    lambda broker: broker.get("orders", group="shop", timeout=5),
    lambda broker: broker.admin.topics.list(),
    lambda broker: broker.admin.topics.describe("orders"),
    lambda broker: broker.admin.topics.create("orders"),
    lambda broker: broker.admin.topics.delete("orders"),
    lambda broker: broker.admin.partitions.list("orders"),
    lambda broker: broker.admin.partitions.add("orders", 2),
    lambda broker: broker.admin.groups.list(),
    lambda broker: broker.admin.groups.lag("shop"),
    lambda broker: broker.admin.groups.reset("shop", "orders", to=datetime.now(UTC)),
    lambda broker: broker.admin.groups.delete("shop"),
    lambda broker: broker.admin.cluster.describe(),
]


@pytest.mark.usefixtures("hurried")
async def test_a_server_that_falls_silent_ends_every_call_in_time(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(handshake) as address, Broker(f"fluvio://{address}?dial_timeout=0.2") as broker, ticking():
        for call in CALLS:
            with pytest.raises(ConnectError, match=address):
                await asyncio.wait_for(call(broker), 1.5)
        health = await asyncio.wait_for(broker.admin.cluster.health(), 1.5)
        assert not health.healthy
        assert address in health.problems[0]
        await until(lambda: not broker.engine.available)
    assert caplog.text.count("it does not answer") == 1


async def test_a_server_of_another_age_is_told_and_nobody_waits_for_it() -> None:
    for versions in ((1, 9), (40, 50)):
        speaking = partial(handshake, versions=versions)
        async with serving(speaking) as address, Broker(f"fluvio://{address}") as broker:
            for call in (broker.publish(1, "orders"), broker.admin.topics.list(), broker.admin.topics.create("orders")):
                with pytest.raises(HeadwaterError, match=rf"in versions {versions[0]} to {versions[1]}.*as new as"):
                    await asyncio.wait_for(call, 1)


async def test_what_is_no_fluvio_is_told_apart() -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def noise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(b"\0\0\0\7\0\0\0\1\0\0\xff")  # an answer to the first request that ends too soon

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.close()

    for handle, told in ((web, "no Fluvio"), (noise, "makes no sense"), (closing, "closed the connection")):
        async with serving(handle) as address:
            with pytest.raises(ConnectError, match=rf"{address}: .*{told}"):
                await Broker(f"fluvio://{address}").connect()


async def test_an_app_in_the_background_waits_and_stops_cleanly(caplog: pytest.LogCaptureFixture) -> None:
    (port,) = free_ports(1)
    app = App("shop", f"fluvio://127.0.0.1:{port}", startup="background")

    @app.subscriber("orders")
    async def handle(n: int) -> None: ...

    with caplog.at_level(logging.INFO):
        async with app:
            await until(lambda: f"127.0.0.1:{port}" in caplog.text)
            assert not app.is_ready
            began = time.monotonic()
    assert time.monotonic() - began < 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- packages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "package", "compression"),
    [("google_crc32c", "google-crc32c", "none"), *(("cramjam", "cramjam", name) for name in ("snappy", "lz4", "zstd"))],
)
async def test_a_missing_package_names_its_extra_when_connecting(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str, compression: str
) -> None:
    for loaded in ("sending", "batching", "records"):
        monkeypatch.delitem(sys.modules, f"headwater.engines.fluvio.{loaded}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed: pip install 'headwater\[fluvio\]'"):
        await Broker(f"fluvio://127.0.0.1:1?compression={compression}").connect()


# --- on a cluster: beside Fluvio's own client ----------------------------------------------------------

MakeBroker = Callable[..., FluvioBroker]


@pytest.fixture
def topic() -> str:
    return f"numbers-{os.urandom(4).hex()}"


@pytest.fixture
def make_broker(fluvio_endpoint: str) -> MakeBroker:
    """Makes brokers whose members are missed soon."""

    def make(**options: Any) -> FluvioBroker:
        return FluvioBroker(f"fluvio://{fluvio_endpoint}", **{"session_timeout": 3, **options})

    return make


@pytest.fixture
async def broker(make_broker: MakeBroker, topic: str) -> AsyncIterator[FluvioBroker]:
    async with make_broker() as broker:
        await broker.declare([Topic(topic, partitions=3)])
        yield broker
        with suppress(TopicNotFoundError):  # the test deleted it
            await broker.admin.topics.delete(topic)


async def read_all(broker: Broker, topic: str, count: int, **options: Any) -> list[Message]:
    async with broker.stream(topic, limit=count, **{"start": "earliest", **options}) as stream, asyncio.timeout(20):
        return [message async for message in stream]


@pytest.mark.parametrize("compression", CODECS)
async def test_what_the_client_publishes_is_read_and_keys_go_where_it_puts_them(
    broker: FluvioBroker, make_broker: MakeBroker, fluvio_endpoint: str, topic: str, compression: str
) -> None:
    pytest.importorskip("fluvio")
    sent = [(f"key {n}", f'{{"n":{n}}}') for n in range(30)]
    theirs = await client(fluvio_endpoint, "publish", topic, sent, compression)
    now = datetime.now(UTC)
    found = {(m.partition, m.offset): (m.key, m.value, m.headers) for m in await read_all(broker, topic, 30)}
    assert found == {
        tuple(place): (key, {"n": n}, {}) for n, (place, (key, _)) in enumerate(zip(theirs, sent, strict=True))
    }
    times = [message.timestamp for message in await read_all(broker, topic, 30)]
    assert max(abs(time - now) for time in times) < timedelta(seconds=30)
    async with make_broker(compression=compression) as ours:
        receipts = await ours.publish_many([Outgoing({"n": n}, topic, key=key) for n, (key, _) in enumerate(sent)])
    assert [receipt.partition for receipt in receipts] == [partition for partition, _ in theirs]


@pytest.mark.parametrize("compression", CODECS)
async def test_what_has_nothing_to_carry_is_a_plain_record_for_the_client(
    broker: FluvioBroker, make_broker: MakeBroker, fluvio_endpoint: str, topic: str, compression: str
) -> None:
    pytest.importorskip("fluvio")
    async with make_broker(compression=compression) as ours:
        sent = [Outgoing({"n": n}, topic, key=key, partition=1) for n, key in enumerate((None, "", "ada", "x" * 1000))]
        receipts = await ours.publish_many(sent)
    read = await client(fluvio_endpoint, "read", topic, 1, 4)
    assert [one[0] for one in read] == [receipt.offset for receipt in receipts]
    assert [(key, value) for _, _, key, value in read] == [
        (key, f'{{"n":{n}}}')
        for n, key in enumerate(("No key", "", "ada", "x" * 1000))  # what it says where there is none
    ]
    assert {time for _, time, _, _ in read} == {round(receipt.timestamp.timestamp() * 1000) for receipt in receipts}


# --- reading ------------------------------------------------------------------------------------------


async def test_a_start_by_time_is_found_among_and_inside_batches(broker: FluvioBroker, topic: str) -> None:
    times = []
    for first in range(0, 300, 100):
        outgoing = [Outgoing(n, topic, partition=n % 3) for n in range(first, first + 100)]
        receipts = await broker.publish_many(outgoing)
        times.append(min(receipt.timestamp for receipt in receipts))
        await asyncio.sleep(0.01)  # the next ones are later
    for first, moment in enumerate(times):
        values = {message.value for message in await read_all(broker, topic, 300 - 100 * first, start=moment)}
        assert values == set(range(100 * first, 300))
    assert len(await read_all(broker, topic, 300, start=times[0] - timedelta(days=1))) == 300
    assert await read_all(broker, topic, 1, start=datetime.now(UTC) + timedelta(days=1), wait=QUIET) == []


async def test_messages_larger_than_what_is_read_ahead_arrive(
    broker: FluvioBroker, make_broker: MakeBroker, topic: str
) -> None:
    bodies = [os.urandom(size) for size in (10, 2_000_000, 70_000, 10, 900_000)]
    for body in bodies:
        await broker.publish(body, topic, partition=0)
    async with make_broker(fetch_bytes=1 << 16) as frugal:
        assert [message.body for message in await read_all(frugal, topic, 5, partitions=[0])] == bodies


async def test_streams_end_where_they_should_and_leave_nothing_behind(broker: FluvioBroker, topic: str) -> None:
    await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(50)])
    tasks = asyncio.all_tasks()
    async with broker.stream(topic, start="earliest", until=lambda message: message.value == 20) as stream:
        assert [message.value async for message in stream] == list(range(20))
    async with broker.stream(topic, start={0: 40}, partitions=[0], wait=QUIET) as stream:
        assert [message.value async for message in stream] == list(range(40, 50))
    async with broker.stream(topic, start="earliest") as stream:
        await anext(stream)  # and no more
    async with broker.stream(topic) as stream:
        waiting = asyncio.create_task(anext(stream))
        await until(lambda: broker.engine.available)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: asyncio.all_tasks() <= tasks)


async def nothing_moves(_change: Change) -> None:
    """There is one member."""


async def test_a_stream_or_a_group_begins_so_many_messages_from_either_end(broker: FluvioBroker, topic: str) -> None:
    await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
    for own, wanted in (
        (Fluvio(from_beginning=7), [7, 8, 9]),
        (Fluvio(from_end=2), [8, 9]),
        (Fluvio(from_end=99), list(range(10))),
        (Fluvio(from_beginning=99), []),
    ):
        found = await read_all(broker, topic, 11, partitions=[0], options=[own], wait=QUIET)
        assert [message.value for message in found] == wanted
    source = Source(topics=(topic,), group="shop", options=(Fluvio(from_end=3),))
    async with broker.engine.subscribe(source, nothing_moves) as place:
        assert [message.value for message in await taken(place, 3)] == [7, 8, 9]
    for wrong in ({"from_end": 1, "from_beginning": 1}, {"from_end": -1}):
        with pytest.raises(ConfigurationError):
            Fluvio(**wrong)


async def test_partitions_that_are_added_are_read_and_written(
    broker: FluvioBroker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.engines.fluvio.consuming.RECOUNT_EVERY", 0.1)
    monkeypatch.setattr("headwater.engines.fluvio.membership.RECOUNT_EVERY", 0.1)
    async with reading(broker, topic, None) as reader, reading(broker, topic, "shop") as member:
        await broker.admin.partitions.add(topic, 5)
        await broker.publish("new", topic, partition=4)
        for place in (reader, member):
            assert [(message.value, message.partition) for message in await taken(place, 1)] == [("new", 4)]


async def test_an_offset_that_is_not_kept_is_an_error_that_says_which_are(broker: FluvioBroker, topic: str) -> None:
    await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(5)])
    with pytest.raises(OffsetOutOfRangeError, match=rf"offset 9 of '{topic}'\[0\].* 0 up to, not including, 5"):
        await read_all(broker, topic, 1, start=9, partitions=[0])
    async with reading(broker, topic, None, start="earliest") as place:
        await taken(place, 5)
        for offset in (6, -1):
            with pytest.raises(OffsetOutOfRangeError):
                await place.seek(Position(topic, 0, offset))
        with pytest.raises(TopicNotFoundError, match=rf"{topic}\[7\]"):
            await place.seek(Position(topic, 7, 0))
        await place.seek(Position(topic, 0, 3))
        assert [message.value for message in await taken(place, 2)] == [3, 4]


async def test_a_group_that_cannot_begin_where_it_should_says_so_at_once(broker: FluvioBroker, topic: str) -> None:
    with pytest.raises(OffsetOutOfRangeError, match="offset 999"):
        async with asyncio.timeout(10), reading(broker, topic, "shop", start=999):
            pass


async def test_a_topic_that_is_deleted_under_its_readers_is_an_error(broker: FluvioBroker, topic: str) -> None:
    await broker.publish(1, topic)
    async with reading(broker, topic, None, start="earliest") as reader, reading(broker, topic, "shop") as member:
        await taken(reader, 1)
        await broker.admin.topics.delete(topic)
        for place in (reader, member):
            with pytest.raises(TopicNotFoundError, match=f"'{topic}': it was deleted"):
                await taken(place, 1)


async def test_a_group_begins_anew_on_a_topic_that_was_made_again(broker: FluvioBroker, topic: str) -> None:
    await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
    async with reading(broker, topic, "shop", start="earliest") as place:
        await place.ack(await taken(place, 10))
    await broker.admin.topics.delete(topic)
    await broker.declare([Topic(topic, partitions=3)])
    await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(3)])
    async with reading(broker, topic, "shop", start="earliest") as place:
        assert [message.value for message in await taken(place, 3)] == [0, 1, 2]


# --- groups that share --------------------------------------------------------------------------------


async def test_a_place_that_is_given_up_at_any_moment_is_free_for_others(broker: FluvioBroker, topic: str) -> None:
    async def stay() -> None:
        async with reading(broker, topic, "shop", start="earliest"):
            await asyncio.Event().wait()

    for n in range(12):
        staying = asyncio.create_task(stay())
        await asyncio.sleep(n * 0.03)  # it is in the middle of something
        staying.cancel()
        (outcome,) = await asyncio.gather(staying, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError)
    changes, began = list[Change](), time.monotonic()
    async with reading(broker, topic, "shop", start="earliest", changes=changes):
        await settled(lambda: len(held(changes)) == 3)
    assert time.monotonic() - began < 2  # nobody has to be taken for dead


@asynccontextmanager
async def two_members(broker: FluvioBroker, topic: str) -> AsyncIterator[tuple[FluvioPeer, list[int]]]:
    """A process and an app that share, and what the app has handled; both have had something of the first 300."""
    assert broker.url is not None
    app, handled = App(f"shop-{topic}", FluvioBroker(broker.url, session_timeout=3)), list[int]()

    @app.subscriber(topic, start="earliest", concurrency=4)
    async def handle(n: int) -> None:
        handled.append(n)

    with FluvioPeer("consume", broker.url, topic=topic, group=f"shop-{topic}") as peer:
        await peer.saying("ready")
        async with app:
            await publish(broker, topic, 0)
            await peer.saying("done")
            await settled(lambda: handled)
            yield peer, handled


async def publish(broker: Broker, topic: str, first: int) -> None:
    await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(first, first + 300)])


def done(peer: FluvioPeer) -> set[int]:
    """What it handled in its life."""
    peer.kill()
    return {int(line[1]) for line in peer.rest() if line[0] == "done"}


async def test_a_member_that_is_killed_is_replaced_in_time_and_nothing_is_lost(
    broker: FluvioBroker, topic: str
) -> None:
    async with two_members(broker, topic) as (peer, handled):
        theirs, began = done(peer), time.monotonic()
        await publish(broker, topic, 300)
        await settled(lambda: {*handled} | theirs == {*range(600)})
        assert time.monotonic() - began < 3 + 3  # its session, and what sharing anew takes


async def test_a_member_that_hangs_is_replaced_and_comes_back_as_another(broker: FluvioBroker, topic: str) -> None:
    async with two_members(broker, topic) as (peer, handled):
        (before,) = [one for one in await members_of(broker, topic) if str(peer.pid) in one.client]
        peer.signal(signal.SIGSTOP)
        began = time.monotonic()
        await publish(broker, topic, 300)
        await settled(lambda: {*handled} >= {*range(300, 600)})
        assert time.monotonic() - began < 3 + 3
        peer.signal(signal.SIGCONT)
        while "went on without us" not in " ".join(await peer.saying("log")):
            pass

        async def shares_again() -> bool:
            members = await members_of(broker, topic)
            return len(members) == 2 and all(member.partitions for member in members)

        await settled(shares_again)
        assert before.id in [one.id for one in await members_of(broker, topic)]
        sofar = len(handled)
        await publish(broker, topic, 600)
        await settled(lambda: len(handled) > sofar)
        await peer.saying("done")
        theirs = done(peer)
        await settled(lambda: {*handled} | theirs == {*range(900)})
        assert not [line for line in peer.seen if line[:2] == ["log", "ERROR"]]


async def members_of(broker: Broker, topic: str) -> tuple[MemberInfo, ...]:
    return (await broker.admin.groups.describe(f"shop-{topic}")).members


async def test_a_group_whose_offsets_the_cluster_lost_goes_on_where_it_was(
    broker: FluvioBroker, make_broker: MakeBroker, topic: str
) -> None:
    cluster, group = broker.engine.cluster, f"shop-{topic}"

    async def stored() -> list[Stored]:
        return await cluster.stored((topic, 0), group)

    async with reading(broker, topic, group) as one:
        await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
        await one.ack((await taken(one, 10))[:5])
        while [at.offset for at in await stored()] != [4]:
            await asyncio.sleep(0.05)
        for lost in await cluster.stored():
            if lost.place[0] == topic:
                await cluster.delete_stored(lost.place, lost.consumer)
        while [at.offset for at in await stored()] != [4]:  # by who has it
            await asyncio.sleep(0.05)
    async with make_broker() as other, reading(other, topic, group) as two:
        assert [message.value for message in await taken(two, 5)] == [5, 6, 7, 8, 9]
