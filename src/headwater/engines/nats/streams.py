"""The streams that keep topics: found where one covers a topic, made where none does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec

from ...engine import Topic, option_of
from ...errors import NotSupportedError, TopicNotFoundError
from .api import NAME_TAKEN, NO_STREAM, OVERLAP, Api, JetStreamError
from .connection import Connection
from .options import Nats, Settings
from .subjects import LATER, covers, other_stream_name, schedules_of, stream_name

SECOND: Final = 1_000_000_000  # JetStream counts in nanoseconds
DUPLICATES: Final = 120.0  # seconds in which a stream knows the ids of its messages, unless told otherwise
SCHEDULES_SINCE: Final = (2, 12)
_REMEMBERED: Final = 100_000  # topics whose stream is known


class StreamInfo(msgspec.Struct):
    """A stream: its configuration and what it keeps."""

    config: dict[str, Any]
    state: dict[str, Any]
    cluster: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def subjects(self) -> list[str]:
        """What it takes, without the subjects on which delayed messages wait."""
        return [subject for subject in self.config.get("subjects", ()) if not subject.startswith(LATER)]

    @property
    def leader(self) -> str | None:
        """The server that leads it, if that is known."""
        return (self.cluster or {}).get("leader")

    @property
    def copies(self) -> tuple[str, ...]:
        """The servers that keep it, as far as they are known."""
        others = [str(replica["name"]) for replica in (self.cluster or {}).get("replicas") or ()]
        return tuple(others if self.leader is None else [self.leader, *others])

    @property
    def earliest(self) -> int:
        return max(1, int(self.state["first_seq"]))

    @property
    def latest(self) -> int:
        """The sequence number that the next message will get."""
        return int(self.state["last_seq"]) + 1


class Streams:
    """Finds and makes streams."""

    def __init__(self, api: Api, connection: Connection, settings: Settings) -> None:
        self._api = api
        self._connection = connection
        self._settings = settings
        self._known: dict[str, str] = {}  # topic → stream

    @property
    def can_schedule(self) -> bool:
        """Whether streams made here take delayed messages: yes, until a server says that it is too old."""
        version = self._connection.version
        return self._settings.schedules and (version == (0,) or version >= SCHEDULES_SINCE)

    def known(self, topic: str) -> bool:
        return topic in self._known

    def forget(self, topic: str) -> None:
        self._known.pop(topic, None)

    async def find(self, subject: str) -> list[str]:
        """The names of all streams with anything that matches this subject, which may have wildcards."""
        names: list[str] = []
        while True:
            page = await self._api.ask("STREAM.NAMES", {"subject": subject, "offset": len(names)})
            found = page.get("streams") or []
            names += found
            if not found or len(names) >= page["total"]:
                return names

    async def of(self, topic: str) -> str:
        """The stream of a topic. Raises TopicNotFoundError."""
        found = self._known.get(topic)
        if found is None:
            names = await self.find(topic)
            if not names:
                raise TopicNotFoundError(topic)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[topic] = names[0]
        return found

    async def info(self, name: str) -> StreamInfo:
        return msgspec.convert(await self._api.ask(f"STREAM.INFO.{name}"), StreamInfo)

    async def counts(self, name: str, subject: str = ">") -> dict[str, int]:
        """How many messages a stream has on each subject, or on this one, without those that wait for their time."""
        found: dict[str, int] = {}
        seen = 0
        while True:
            page = await self._api.ask(f"STREAM.INFO.{name}", {"subjects_filter": subject, "offset": seen})
            subjects = page["state"].get("subjects") or {}
            seen += len(subjects)
            found |= {subject: count for subject, count in subjects.items() if not subject.startswith(LATER)}
            if not subjects or seen >= page.get("total", 0):
                return found

    async def all(self) -> Sequence[StreamInfo]:
        found: list[StreamInfo] = []
        while True:
            page = await self._api.ask("STREAM.LIST", {"offset": len(found)})
            streams = page.get("streams") or []
            found += msgspec.convert(streams, list[StreamInfo])
            if not streams or len(found) >= page["total"]:
                return found

    async def ensure(self, topic: Topic) -> str:
        """The stream of a topic, made if none takes it."""
        try:
            return await self.of(topic.name)
        except TopicNotFoundError:
            return await self._make(topic)

    async def check_schedules(self, topic: str) -> None:
        """Raise NotSupportedError if the stream of this topic takes no delayed messages."""
        name = await self.of(topic)
        if not (await self.info(name)).config.get("allow_msg_schedules"):
            hint = "give it allow_msg_schedules, leave the retry topics out of it, or use schedules=False"
            raise NotSupportedError("nats", f"delayed messages to {topic!r} in the stream {name!r}", hint)

    async def _make(self, topic: Topic) -> str:
        option = option_of(topic.options, Nats) or Nats()
        if option.stream is not None:
            return await self._join(topic, option)
        for name in (stream_name(topic.name), other_stream_name(topic.name)):
            try:
                await self._create(self._config(name, topic, option))
                return await self.of(topic.name)
            except JetStreamError as error:
                if error.code not in (NAME_TAKEN, OVERLAP):
                    raise
                if found := await self.find(topic.name):  # somebody else made it meanwhile
                    return found[0]
        raise TopicNotFoundError(topic.name, "its stream cannot be made: the names of others are in the way")

    async def _join(self, topic: Topic, option: Nats) -> str:
        """Have the topic in a stream with a name of its owner's choice, which may be there already."""
        assert option.stream is not None
        wanted = self._config(option.stream, topic, option)
        try:
            there = await self.info(option.stream)
        except JetStreamError as error:
            if error.code != NO_STREAM:
                raise
            await self._create(wanted)
        else:
            missing = [s for s in wanted["subjects"] if not any(covers(have, s) for have in there.config["subjects"])]
            there.config["subjects"] = [*there.config["subjects"], *missing]
            await self._api.ask(f"STREAM.UPDATE.{option.stream}", there.config)
        return await self.of(topic.name)

    async def _create(self, config: dict[str, Any]) -> None:
        await self._api.ask(f"STREAM.CREATE.{config['name']}", config)

    def _config(self, name: str, topic: Topic, option: Nats) -> dict[str, Any]:
        settings, subjects = self._settings, list(option.subjects or (topic.name,))
        age = seconds(topic.retention)
        known_for = DUPLICATES if option.duplicates is None else option.duplicates
        config: dict[str, Any] = {
            "name": name,
            "storage": option.storage or settings.storage,
            "num_replicas": option.replicas or settings.replicas,
            "retention": "limits",
            "discard": "old",
            "max_age": nanoseconds(age),
            "max_bytes": topic.retention_bytes or -1,
            "duplicate_window": nanoseconds(min(known_for, age or known_for)),
        }
        if self.can_schedule:
            config["allow_msg_schedules"] = True
            subjects += [schedules_of(subject) for subject in subjects]
        return {**config, "subjects": subjects}


def seconds(retention: timedelta | None) -> float:
    """An age; 0 is none."""
    return 0.0 if retention is None else retention.total_seconds()


def nanoseconds(duration: float) -> int:
    return round(duration * SECOND)
