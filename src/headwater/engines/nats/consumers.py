"""Consumers, JetStream's cursors: durable ones that a group shares, and passing ones for a reader alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec

from ...engine import Source, Start
from ...errors import ConfigurationError, OffsetOutOfRangeError
from .api import CONSUMER_THERE, NAME_TAKEN, NO_CONSUMER, NO_MESSAGE, NO_RESET, NO_STREAM, Api, JetStreamError
from .connection import log
from .options import Nats, Settings
from .streams import StreamInfo, Streams, nanoseconds
from .subjects import consumer_name, subject_of

GROUP: Final = "headwater-group"  # in a consumer's metadata: the group as its subscriber named it ...
TOPIC: Final = "headwater-topic"  # ... and the topic or pattern
PRIORITY: Final = "headwater"  # the one priority group of an exclusive consumer
PIN_FOR: Final = 6.0  # seconds without a request after which another member becomes the active one
_FORGOTTEN_AFTER: Final = 60.0  # seconds without its reader after which a passing consumer is gone


class ConsumerInfo(msgspec.Struct):
    """A consumer: its configuration and how far it is."""

    name: str
    stream_name: str
    config: dict[str, Any]
    delivered: dict[str, Any]
    ack_floor: dict[str, Any]
    num_ack_pending: int = 0
    num_pending: int = 0
    num_waiting: int = 0

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.config.get("metadata") or {}

    @property
    def group(self) -> str:
        """The group as its subscriber named it."""
        return self.metadata.get(GROUP, self.name)

    @property
    def topic(self) -> str:
        """The topic or pattern; of a consumer that others made, its filter."""
        filters = self.config.get("filter_subjects") or (self.config.get("filter_subject", ">"),)
        return self.metadata.get(TOPIC, ", ".join(filters))


class Cursor(Protocol):
    """A consumer as its pull sees it."""

    stream: str
    name: str
    acknowledges: bool
    pinned: bool  # one member of the group is active at a time

    async def prepare(self) -> None:
        """Have the consumer there, where reading is to go on. Called again after anything may have happened."""
        ...

    def seen(self, sequence: int) -> None:
        """The message at this sequence number of the stream came."""
        ...

    async def notice(self) -> None:
        """Have the server see that nobody waits any more where it was asked to send to."""
        ...

    async def leave(self) -> None: ...


class Durable:
    """The consumer of a group on one topic or pattern, in one stream."""

    acknowledges = True

    def __init__(
        self, api: Api, streams: Streams, settings: Settings, source: Source, topic: str, stream: str, start: Start
    ) -> None:
        assert source.group is not None
        self.stream = stream
        self.name = consumer_name(source.group, topic)
        self.start = start
        self.pinned = source.exclusive
        self._api, self._streams = api, streams
        self._option = source.option(Nats) or Nats()
        self._lease = self._option.lease or settings.lease
        self._source, self._topic = source, topic
        self._next = 0  # the sequence number to go on at, should somebody delete the consumer

    def _config(self) -> dict[str, Any]:
        source, option = self._source, self._option
        config: dict[str, Any] = {
            "name": self.name,
            "durable_name": self.name,
            "filter_subject": subject_of(self._topic),
            "ack_policy": "explicit",
            "ack_wait": nanoseconds(self._lease),
            "max_deliver": option.max_deliver,
            "max_ack_pending": max(option.max_ack_pending, 10_000 + source.prefetch),
            "metadata": {GROUP: source.group, TOPIC: self._topic},
        }
        if source.exclusive:
            config["priority_groups"] = [PRIORITY]
            config["priority_policy"] = "pinned_client"
            config["priority_timeout"] = nanoseconds(PIN_FOR)
        return config

    async def prepare(self) -> None:
        try:
            there = await find_consumer(self._api, self.stream, self.name)
        except JetStreamError as error:
            if error.code != NO_CONSUMER:
                raise
            await self._create()
        else:
            self._next = max(self._next, int(there.ack_floor["stream_seq"]) + 1)
            await self._update(there)

    async def _update(self, there: ConsumerInfo) -> None:
        """Have what this source asks for now, where that can be changed; where it began cannot."""
        wanted = self._config()
        kept = {name: value for name, value in there.config.items() if not name.startswith("priority_")}
        config = {**kept, **wanted, "metadata": {**there.metadata, **wanted["metadata"]}}
        if config != there.config:
            await create_consumer(self._api, self.stream, config)

    async def _create(self) -> None:
        info = await self._streams.info(self.stream)
        if self._next:  # it was deleted under us; a stream that was made anew counts anew
            begin = _at(self._next) if self._next <= info.latest else dict(_ALL)
        else:
            begin = beginning(self.start, self._topic, info)
            self._note_skipped(int(begin.get("opt_start_seq", info.earliest)) - info.earliest)
        try:
            await create_consumer(self._api, self.stream, {**self._config(), **begin}, action="create")
        except JetStreamError as error:
            if error.code != CONSUMER_THERE:  # another member was faster
                raise
        self._next = int(begin.get("opt_start_seq", info.earliest))

    def _note_skipped(self, skipped: int) -> None:
        if skipped > 0:
            text = "the new group %r begins at %s and skips up to %d message(s) of the stream %s"
            log.info(text, self._source.group, self.start, skipped, self.stream)

    def seen(self, sequence: int) -> None:
        if sequence >= self._next:
            self._next = sequence + 1

    async def notice(self) -> None:
        # It sees so when asked. A message given back before would be tried on the old place, and put behind the others.
        await find_consumer(self._api, self.stream, self.name)

    async def leave(self) -> None:
        pass


class Passing:
    """The consumer of one reader without a group: it keeps nothing, the reader knows how far it is."""

    acknowledges = False
    pinned = False

    def __init__(self, api: Api, streams: Streams, topic: str, stream: str, start: Start) -> None:
        self.stream, self.name = stream, ""
        self._api, self._streams = api, streams
        self._topic, self._start = topic, start
        self._resolved: dict[str, Any] | None = None

    async def prepare(self) -> None:
        info = await self._streams.info(self.stream)
        if self._resolved is None:
            self._resolved = beginning(self._start, self._topic, info)
        begin = dict(self._resolved)
        if begin.get("opt_start_seq", 0) > info.latest:  # the stream was made anew
            begin = dict(_ALL)
        await self.leave()
        config = {
            "filter_subject": subject_of(self._topic),
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": nanoseconds(_FORGOTTEN_AFTER),
            **begin,
        }
        found = await self._api.ask(f"CONSUMER.CREATE.{self.stream}", {"stream_name": self.stream, "config": config})
        self.name = str(found["name"])

    def seen(self, sequence: int) -> None:
        self._resolved = _at(sequence + 1)

    def seek(self, sequence: int) -> None:
        """Go on at this message, once it is prepared again."""
        self._resolved = _at(sequence)

    async def notice(self) -> None:
        pass  # it has nothing to give back

    async def leave(self) -> None:
        name, self.name = self.name, ""
        if name:
            await delete_consumer(self._api, self.stream, name)


_ALL: Final[Mapping[str, Any]] = {"deliver_policy": "all"}


def _at(sequence: int) -> dict[str, Any]:
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, sequence)}


def beginning(start: Start, topic: str, info: StreamInfo) -> dict[str, Any]:
    """Where a consumer begins, so that it stays there. Raises OffsetOutOfRangeError."""
    match start:
        case "earliest":
            return dict(_ALL)
        case "latest":
            return _at(info.latest)
        case datetime():
            return {"deliver_policy": "by_start_time", "opt_start_time": start.astimezone(UTC).isoformat()}
        case int():
            if not info.earliest <= start <= info.latest:
                raise OffsetOutOfRangeError(topic, 0, start, info.earliest, info.latest)
            return _at(start)
        case str():
            raise ConfigurationError(f"start={start!r}: give 'earliest', 'latest', an offset or an aware datetime")
        case _:
            return beginning(start.get(0, "earliest"), topic, info)


class Marks:
    """Which groups have begun on which patterns: on a topic that comes later they begin at its first message."""

    STREAM: Final = "headwater-groups"
    SUBJECT: Final = "hw.groups."

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api, self._settings = api, settings

    async def has(self, group: str, topic: str) -> bool:
        question = {"last_by_subj": self.SUBJECT + consumer_name(group, topic)}
        try:
            await self._api.ask(f"STREAM.MSG.GET.{self.STREAM}", question)
        except JetStreamError as error:
            if error.code not in (NO_MESSAGE, NO_STREAM):
                raise
            return False
        return True

    async def set(self, group: str, topic: str) -> None:
        config = {
            "name": self.STREAM,
            "subjects": [f"{self.SUBJECT}*"],
            "max_msgs_per_subject": 1,
            "storage": self._settings.storage,
            "num_replicas": self._settings.replicas,
        }
        try:
            await self._api.ask(f"STREAM.CREATE.{self.STREAM}", config)
        except JetStreamError as error:
            if error.code != NAME_TAKEN:
                raise
        await self._api.store(self.SUBJECT + consumer_name(group, topic), {GROUP: group, TOPIC: topic})


# --- what the API has for consumers -------------------------------------------------------------------


async def find_consumer(api: Api, stream: str, name: str) -> ConsumerInfo:
    return msgspec.convert(await api.ask(f"CONSUMER.INFO.{stream}.{name}"), ConsumerInfo)


async def consumers_of(api: Api, stream: str) -> list[ConsumerInfo]:
    """All consumers of a stream."""
    found: list[ConsumerInfo] = []
    while True:
        page = await api.ask(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
        consumers = page.get("consumers") or []
        found += msgspec.convert(consumers, list[ConsumerInfo])
        if not consumers or len(found) >= page["total"]:
            return found


async def create_consumer(api: Api, stream: str, config: Mapping[str, Any], action: str = "") -> None:
    """Make or change one; with the action "create" one that is there with other settings is refused."""
    question = {"stream_name": stream, "config": config, "action": action}
    await api.ask(f"CONSUMER.CREATE.{stream}.{config['name']}.{config['filter_subject']}", question)


async def reset_consumer(api: Api, stream: str, name: str, sequence: int) -> bool:
    """Have one go on at this sequence number; False where that is not possible: before where it was made to begin."""
    try:
        await api.ask(f"CONSUMER.RESET.{stream}.{name}", {"seq": sequence})
    except JetStreamError as error:
        if error.code != NO_RESET:
            raise
        return False
    return True


async def delete_consumer(api: Api, stream: str, name: str) -> None:
    """Forget one; nothing if it is gone already."""
    try:
        await api.ask(f"CONSUMER.DELETE.{stream}.{name}")
    except JetStreamError as error:
        if error.code != NO_CONSUMER:
            raise
