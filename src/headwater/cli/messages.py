"""`headwater publish`, `request` and `tail`: messages written and read by hand."""

from __future__ import annotations

import asyncio
import os
import stat
import string
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from ..broker import Broker
from ..codecs import JSON, RAW, TEXT, Codec
from ..engine import Start
from ..errors import NotSupportedError
from ..message import CONTENT_TYPE, Headers, Message, Outgoing, Receipt
from ..stream import Stream
from ..topics import is_pattern, match
from .output import Failure, counted, counting, leave_quietly, note, plain, show_json, to_json, write
from .parameters import AsJson, Target, TopicName, read_headers, read_start
from .target import ask

CHUNK: Final = 500  # messages published or printed together
QUIET: Final = 2.0  # seconds after which --no-follow believes that the last messages of a topic are not there

Key = Annotated[str | None, typer.Option(help="Messages of one key stay in order.")]
HeaderOptions = Annotated[list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="Repeatable.")]


# --- writing ----------------------------------------------------------------------------------------------


def publish(
    target: Target,
    topic: TopicName,
    value: Annotated[str, typer.Argument(help="JSON, or any text; - reads stdin, a message a line.")] = "-",
    key: Key = None,
    header: HeaderOptions = None,
    delay: Annotated[float | None, typer.Option(min=0, help="Seconds until it may be received.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="By hand, instead of by key.")] = None,
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A message a line, instead of VALUE.")
    ] = None,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="Lines are objects, as tail --json prints them: value, key, headers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a message, or each line of stdin or of a file.

    What parses as JSON travels as JSON, anything else as text. On a terminal it shows how many and how fast.
    """
    if value != "-" and (file is not None or json_lines):
        raise typer.BadParameter("give VALUE, or lines: --file and --json-lines read those")
    headers = read_headers(header or ())

    def outgoing(body: bytes) -> Outgoing:
        content, codec = _content(body)
        return Outgoing(content, topic, key, headers, partition, delay, codec)

    def from_object(line: bytes) -> Outgoing:
        found = _read_line(line)
        kept = [(name, text) for name, text in found.headers.items() if name != CONTENT_TYPE]
        text = found.headers.get(CONTENT_TYPE) == TEXT.content_type
        content: Any = msgspec.json.decode(found.value) if text else found.value
        place = found.partition if partition is None else partition
        return Outgoing(content, topic, key or found.key, [*kept, *headers], place, delay, TEXT if text else JSON)

    async def one(broker: Broker) -> None:
        receipts = await broker.publish_many([outgoing(os.fsencode(value))])
        if as_json:
            show_json(_fields(receipt) for receipt in receipts)
        else:
            write(f"{_place(receipts[0])}{f', in {delay:g} s' if delay else ''}\n")

    async def lines(broker: Broker) -> None:
        published: list[dict[str, Any]] = []
        make = from_object if json_lines else outgoing
        with _opened(file) as descriptor, counting("publishing") as count:
            async for batch in _lines(descriptor):
                for first in range(0, len(batch), CHUNK):
                    receipts = await broker.publish_many([make(line) for line in batch[first : first + CHUNK]])
                    count(len(receipts))
                    if as_json:
                        published += [_fields(receipt) for receipt in receipts]
        if as_json:
            show_json(published)
        else:
            write(f"published {counted(count.total, 'message')} to {topic}\n")

    if value == "-" and file is None and sys.stdin.isatty():
        note("a message a line; Ctrl-D ends")
    ask(target, lines if value == "-" else one)


@contextmanager
def _opened(file: Path | None) -> Iterator[int]:
    """The descriptor of a file, or of stdin."""
    if file is None:
        yield sys.stdin.fileno()
    else:
        with file.open("rb") as opened:
            yield opened.fileno()


class _Line(msgspec.Struct):
    """What an object of --json-lines may say of a message; other fields that `tail` prints are of no concern."""

    value: msgspec.Raw
    key: str | None = None
    headers: Mapping[str, str] = {}
    partition: int | None = None


def _read_line(line: bytes) -> _Line:
    try:
        return msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError as error:
        raise Failure(f"{line[:80].decode(errors='replace')!r} is no line of --json-lines: {error}") from None


def _content(body: bytes) -> tuple[Any, Codec]:
    """A body as it was typed, with the codec that says what it is."""
    try:
        msgspec.json.decode(body)
        return msgspec.Raw(body), JSON
    except msgspec.DecodeError:
        pass
    try:
        return body.decode(), TEXT
    except UnicodeDecodeError:
        return body, RAW


async def _lines(fd: int) -> AsyncIterator[list[bytes]]:
    """The lines of a file, pipe or terminal as they come, without empty ones; no thread is left waiting at the end."""
    loop, ready, rest = asyncio.get_running_loop(), asyncio.Event(), b""
    try:
        loop.add_reader(fd, ready.set)
        may_wait = True
    except PermissionError:  # epoll takes no regular file: reading one never waits
        ready.set()
        may_wait = False
    try:
        while True:
            await ready.wait()
            data = os.read(fd, 1 << 16)
            if may_wait:
                ready.clear()
            *lines, rest = (rest + data).split(b"\n") if data else (rest, b"")
            yield [line for line in (line.rstrip(b"\r") for line in lines) if line.strip()]
            if not data:
                return
    finally:
        loop.remove_reader(fd)


def _fields(receipt: Receipt) -> dict[str, Any]:
    return {
        "topic": receipt.topic,
        "partition": receipt.partition,
        "offset": receipt.offset,
        "timestamp": plain(receipt.timestamp),
    }


def _place(place: Receipt | Message) -> str:
    """Where a message is: `orders[3]@17`; a delayed one is nowhere yet."""
    partition = "" if place.partition is None else f"[{place.partition}]"
    return f"{place.topic}{partition}" + ("" if place.offset is None else f"@{place.offset}")


def request(
    target: Target,
    topic: TopicName,
    value: Annotated[str, typer.Argument(help="JSON, or any text.", show_default=False)],
    key: Key = None,
    header: HeaderOptions = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the answer.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Publish a question and print the answer."""
    headers = read_headers(header or ())
    content, codec = _content(os.fsencode(value))

    async def question(broker: Broker) -> Message:
        return await broker.request(content, topic, key=key, headers=headers, timeout=timeout, codec=codec)

    answer = ask(target, question)
    if as_json:
        show_json([_described(answer)])
    else:
        write(f"{_text(answer.value)}\n")


# --- reading ----------------------------------------------------------------------------------------------


def tail(
    target: Target,
    topics: Annotated[list[str], typer.Argument(metavar="TOPIC", help="May carry fields.", show_default=False)],
    start: Annotated[
        str, typer.Option("--from", help="earliest, latest, an offset, or a time in ISO 8601.")
    ] = "latest",
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many messages.")] = None,
    follow: Annotated[bool, typer.Option(help="Wait for what is published; or end at the current end.")] = True,
    format: Annotated[
        str | None, typer.Option(help="A Python format string, such as '{key} {value[id]}'.", show_default=False)
    ] = None,
    partition: Annotated[list[int] | None, typer.Option(min=0, help="Only this one; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print messages as they come, without a group: nobody else misses them.

    --format knows topic, partition, offset, timestamp, key, headers and value.
    """
    begin = read_start(start)
    line = _json_line if as_json else _plain_line if format is None else _formatted(format)

    async def read(broker: Broker) -> None:
        first = await _one_partition(broker, topics, begin, partition)
        ends = None if follow else await _ends(broker, topics, first, partition)
        if ends == {}:
            return
        wait = None if follow else QUIET
        stream = broker.stream(*topics, start=first, partitions=partition, limit=limit, wait=wait)
        async with stream, _while_somebody_reads(stream):
            async for batch in stream.batches(CHUNK):
                chosen = batch if ends is None else [message for message in batch if _is_before(message, ends)]
                write("".join(f"{line(message)}\n" for message in chosen))
                if ends is not None and _reached(batch, ends):
                    return

    ask(target, read)


Ends = dict[tuple[str, int], int]
"""Where each partition ended when reading began."""


async def _one_partition(
    broker: Broker, topics: Sequence[str], start: Start, partitions: Sequence[int] | None
) -> Start:
    """An offset means one partition: a number for several is refused in the words of the shell."""
    if isinstance(start, int) and len(partitions or ()) != 1:
        places = await _places(broker, topics, partitions)
        if len(places) > 1:
            raise typer.BadParameter(f"offset {start} is one of {len(places)} partitions: add --partition N")
    return start


async def _places(
    broker: Broker, topics: Sequence[str], partitions: Sequence[int] | None
) -> dict[tuple[str, int], Any]:
    admin = broker.admin
    names = [info.name for info in await admin.topics.list(internal=True)]
    chosen = [name for name in names if any(match(topic, name) is not None for topic in topics)]
    return {
        (name, info.partition): info
        for name in chosen
        for info in await admin.partitions.list(name)
        if not partitions or info.partition in partitions
    }


async def _ends(broker: Broker, topics: Sequence[str], start: Start, partitions: Sequence[int] | None) -> Ends | None:
    """The ends of the partitions that have something to read; None where the engine cannot tell."""
    if broker.engine.admin is None or broker.engine.admin.has_ids:
        return None
    try:
        places = await _places(broker, topics, partitions)
        if any(not is_pattern(topic) and all(topic != name for name, _ in places) for topic in topics):
            return None  # the stream says what is wrong with it
        begins = {name: await _begins(broker, name, start) for name, _ in places}
    except NotSupportedError:
        return None
    return {
        (name, number): info.latest
        for (name, number), info in places.items()
        if info.latest > max(info.earliest, begins[name].get(number, info.earliest))
    }


async def _begins(broker: Broker, topic: str, start: Start) -> Mapping[int, Any]:
    """The offsets at which reading begins; those left out begin at the earliest."""
    partitions = await broker.admin.partitions.list(topic)
    match start:
        case "latest":
            return {info.partition: info.latest for info in partitions}
        case int():
            return {info.partition: start for info in partitions}
        case datetime():
            admin = broker.engine.admin
            able = admin is not None and "offsets_at" in admin.operations
            return await admin.offsets_at(topic, start) if admin is not None and able else {}
    return {}


def _is_before(message: Message, ends: Ends) -> bool:
    end = ends.get((message.topic, message.partition or 0))
    return end is not None and isinstance(message.offset, int) and message.offset < end


def _reached(batch: Sequence[Message], ends: Ends) -> bool:
    """Note how far the partitions were read; whether all of them were."""
    for message in batch:
        place = message.topic, message.partition or 0
        if place in ends and isinstance(message.offset, int) and message.offset >= ends[place] - 1:
            del ends[place]
    return not ends


@asynccontextmanager
async def _while_somebody_reads(stream: Stream) -> AsyncIterator[None]:
    """Close the stream when the reader of our pipe goes away, though there is nothing to write just then."""
    loop, fd = asyncio.get_running_loop(), sys.stdout.fileno()
    closing: list[asyncio.Task[None]] = []

    def close() -> None:
        loop.remove_reader(fd)
        closing.append(loop.create_task(stream.close()))

    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        loop.add_reader(fd, close)  # the writing end of a pipe turns readable when its other end is closed
    try:
        yield
    finally:
        loop.remove_reader(fd)
        await asyncio.gather(*closing)
    if closing:
        leave_quietly()


# --- a message as a line ------------------------------------------------------------------------------------


def _described(message: Message) -> dict[str, Any]:
    return {
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": message.timestamp,
        "key": message.key,
        "headers": message.headers,
        "value": message.value,
    }


def _json_line(message: Message) -> str:
    return to_json(_described(message))


def _plain_line(message: Message) -> str:
    time = message.timestamp.astimezone().isoformat(sep=" ", timespec="milliseconds")
    return f"{time} {_place(message)} {message.key or '-'} {_text(message.value)}"


def _text(value: Any) -> str:
    """A value on one line: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else to_json(value)


FIELDS: Final = ("topic", "partition", "offset", "timestamp", "key", "headers", "value")


def _formatted(template: str) -> Callable[[Message], str]:
    """A line by a format string. Raises BadParameter for one that names no field of a message."""
    template = template.replace(r"\t", "\t").replace(r"\n", "\n")  # a shell hands them over as they were typed
    formatter = _Formatter()
    try:
        names = [name for _, name, _, _ in formatter.parse(template) if name is not None]
    except ValueError as error:
        raise typer.BadParameter(f"--format {template!r}: {error}") from None
    for name in names:
        if name.partition(".")[0].partition("[")[0] not in FIELDS:
            raise typer.BadParameter(f"--format has no {name!r}; it has {', '.join(FIELDS)}, and value[id] within them")
    return lambda message: formatter.vformat(template, (), _described(message))


class _Formatter(string.Formatter):
    """Formats what is not text as JSON, and what is not there as nothing."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return super().get_field(field_name, args, kwargs)
        except (LookupError, TypeError, AttributeError):
            return "", field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            value = ""
        elif isinstance(value, bool | dict | list | bytes | Headers):
            value = _text(value)
        return str(super().format_field(value, format_spec))
