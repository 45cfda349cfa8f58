"""Every error Headwater raises, and the signals a handler raises on purpose.

HeadwaterError
├── ConfigurationError            something declared cannot work; raised before anything runs
│   ├── NoBrokerError             no broker was given, and the on_startup hooks gave none
│   ├── NotSupportedError         this engine cannot do it            .engine .operation .hint
│   ├── MissingExtraError         a package is not installed          .package .extra   (also ImportError)
│   └── TopicNameError            a name this engine cannot carry     .topic
├── NotConnectedError             used before it was connected, or after it was closed
├── ConnectError                  the server cannot be reached        .url .reason
│   └── AuthenticationError       it refuses who asks: waiting does not help
├── PublishError                  some of a batch were refused        .receipts .errors
├── TooManyInFlightError          no room for another message         .topic .limit
├── SyncInAsyncError              blocking in an event loop           .method .instead
├── DeliveryUnknownError          no answer in time; it may arrive    .topic            (also TimeoutError)
├── RequestTimeoutError           nobody answered a request           .topic .timeout   (also TimeoutError)
├── RemoteError                   the handler of a request failed     .type .reason
├── EncodeError                   a value no codec can write
├── RefusedError                  the server refused a message        .topic .reason
├── MessageTooLargeError          more than the engine takes          .topic .size .limit
├── DecodeError                   a body that is not what it should be
├── BatchError                    some members of a batch failed      .failed
├── TopicNotFoundError            .topic
├── GroupNotFoundError            .group
├── PartitionLostError            another member has it now           .topic .partition .group
├── OffsetOutOfRangeError         .topic .partition .offset .earliest .latest
├── ServiceError                  a child service failed              .name .exit_code .probe .lines
├── StoreError                    the embedded log                    .path
│   ├── StoreNotFoundError        there is no store in this directory
│   ├── StoreVersionError         written by a newer Headwater
│   ├── StoreCorruptError         a checksum does not match           .segment .position .affected
│   ├── StoreFullError            the disk is full
│   └── StoreBusyError            another process holds the lock      .pid
└── Signal                        not failures: what a handler says to the framework
    ├── Reject  ├── Skip  ├── RetryLater  ├── StopConsuming  └── StopApp
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class HeadwaterError(Exception):
    """The root: `except HeadwaterError` catches everything this library raises."""


class ConfigurationError(HeadwaterError):
    """Something that was declared cannot work. Raised while declaring or starting, never later."""


class NoBrokerError(ConfigurationError):
    """The app has no broker after its `on_startup` hooks ran."""

    def __init__(self, app: str) -> None:
        super().__init__(
            f"the app {app!r} has no broker: give App({app!r}, broker=URL), call app.set_broker(...) in an "
            f"on_startup hook, set HEADWATER_BROKER, or pass --broker URL to `headwater run`"
        )
        self.app = app


class NotSupportedError(ConfigurationError):
    """An engine cannot do what was asked, and says so instead of pretending."""

    def __init__(self, engine: str, operation: str, hint: str = "") -> None:
        super().__init__(f"{engine} does not support {operation}" + (f": {hint}" if hint else ""))
        self.engine, self.operation, self.hint = engine, operation, hint


class MissingExtraError(ConfigurationError, ImportError):
    """A package that an engine or a feature needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'headwater[{extra}]'")
        self.package, self.extra = package, extra


class TopicNameError(ConfigurationError):
    """A topic name that the engine cannot carry."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"topic {topic!r}: {reason}")
        self.topic, self.reason = topic, reason


class NotConnectedError(HeadwaterError):
    """The broker is not connected: not yet, or not any more."""

    def __init__(
        self,
        broker: str,
        reason: str = "publish in an after_startup hook or a handler, or inside `async with broker`",
    ) -> None:
        super().__init__(f"{broker} is not connected: {reason}")


class ConnectError(HeadwaterError):
    """The server could not be reached, or refused the connection."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"cannot connect to {url}: {reason}")
        self.url, self.reason = url, reason


class AuthenticationError(ConnectError):
    """The server was reached and refused the credentials, or what they may do. Trying again does not help."""


class PublishError(HeadwaterError):
    """Some messages of one `publish_many` were not accepted.

    `receipts[i]` is the receipt of item i or None, `errors[i]` its error or None.
    """

    def __init__(self, receipts: Sequence[Any], errors: Sequence[BaseException | None]) -> None:
        failed = [error for error in errors if error is not None]
        super().__init__(
            f"{len(failed)} of {len(errors)} messages were not accepted; the first: {failed[0]!r}. "
            f"See .errors, one entry per item, and publish those again"
        )
        self.receipts, self.errors = receipts, errors


class DeliveryUnknownError(HeadwaterError, TimeoutError):
    """No answer came in time: the message may have been accepted or not. Publishing again may double it."""

    def __init__(self, topic: str, timeout: float) -> None:
        super().__init__(
            f"no confirmation for a message to {topic!r} within {timeout:g} s: it may or may not have been accepted"
        )
        self.topic, self.timeout = topic, timeout


class TooManyInFlightError(HeadwaterError):
    """So many messages are unconfirmed that this one was not taken; it was not sent."""

    def __init__(self, topic: str, limit: int) -> None:
        super().__init__(
            f"no room for a message to {topic!r}: {limit} are unconfirmed. Is the server away or slow? "
            f"SyncBroker(max_in_flight=) and when_full= say how many may be, and what then"
        )
        self.topic, self.limit = topic, limit


class SyncInAsyncError(HeadwaterError):
    """A blocking method was called in a thread that runs an event loop: it would stop everything else there."""

    def __init__(self, method: str, instead: str) -> None:
        super().__init__(
            f"SyncBroker.{method} would block this event loop: use `{instead}`. In a notebook, where nothing else "
            f"runs: SyncBroker(..., allow_in_loop=True)"
        )
        self.method, self.instead = method, instead


class RequestTimeoutError(HeadwaterError, TimeoutError):
    """Nobody answered a request in time."""

    def __init__(self, topic: str, timeout: float) -> None:
        super().__init__(
            f"no reply from {topic!r} within {timeout:g} s: is a handler for it running, and does it return a value?"
        )
        self.topic, self.timeout = topic, timeout


class RemoteError(HeadwaterError):
    """The handler that took a request failed for good; `type` is its exception's name, `reason` its text."""

    def __init__(self, type: str, reason: str) -> None:
        super().__init__(f"{type}: {reason}" if reason else type)
        self.type, self.reason = type, reason


class EncodeError(HeadwaterError):
    """A value that the codec cannot write."""


class MessageTooLargeError(HeadwaterError):
    """A message of `size` bytes, where the engine takes `limit`, or fewer than these if `limit` is None."""

    def __init__(self, topic: str, size: int, limit: int | None = None) -> None:
        most = "more than the server takes" if limit is None else f"the server takes {limit}"
        super().__init__(
            f"a message of {size} bytes to {topic!r}: {most}. Raise the limit there, or publish a reference to it"
        )
        self.topic, self.size, self.limit = topic, size, limit


class RefusedError(HeadwaterError):
    """The server did not accept a message: `reason` says why in its own words."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"a message to {topic!r} was refused: {reason}")
        self.topic, self.reason = topic, reason


class DecodeError(HeadwaterError):
    """A body that is not what its reader expects. Retrying cannot help, so it is dead-lettered at once."""


class BatchError(HeadwaterError):
    """Raised by a batch handler: the members in `failed` (index → error) failed, the rest are done."""

    def __init__(self, failed: Mapping[int, BaseException]) -> None:
        super().__init__(f"{len(failed)} members of the batch failed: {dict(failed)!r}")
        self.failed = dict(failed)


class TopicNotFoundError(HeadwaterError):
    """There is no such topic, and nothing here may create it."""

    def __init__(self, topic: str, hint: str = "") -> None:
        super().__init__(f"there is no topic {topic!r}" + (f": {hint}" if hint else "; see `headwater topics list`"))
        self.topic = topic


class GroupNotFoundError(HeadwaterError):
    """There is no such consumer group."""

    def __init__(self, group: str, topic: str | None = None) -> None:
        where = f" on topic {topic!r}" if topic else ""
        super().__init__(f"there is no group {group!r}{where}; see `headwater groups list`")
        self.group, self.topic = group, topic


class PartitionLostError(HeadwaterError):
    """A commit by a member that the partition was taken from: nothing was done, the new owner does it."""

    def __init__(self, topic: str, partition: int, group: str) -> None:
        super().__init__(
            f"{topic!r}[{partition}] belongs to another member of group {group!r} now: nothing was committed, the "
            f"messages are handled there"
        )
        self.topic, self.partition, self.group = topic, partition, group


class OffsetOutOfRangeError(HeadwaterError):
    """An offset that is not stored: expired, or not written yet."""

    def __init__(self, topic: str, partition: int, offset: int, earliest: int, latest: int) -> None:
        super().__init__(
            f"offset {offset} of {topic!r}[{partition}] is not stored: "
            f"it keeps {earliest} up to, not including, {latest}"
        )
        self.topic, self.partition, self.offset = topic, partition, offset
        self.earliest, self.latest = earliest, latest


class ServiceError(HeadwaterError):
    """A child service could not be started, was not ready in time, or has ended for good.

    `exit_code` is None while its program runs; a negative one is the signal that ended it. `probe` is the part of the
    readiness, or the health, that failed; `lines` are the last that the service wrote, of which the text shows some.
    """

    def __init__(
        self, name: str, reason: str, *, exit_code: int | None = None, probe: str = "", lines: Sequence[str] = ()
    ) -> None:
        said = "".join(f"\n  | {line}" for line in lines[-20:])
        super().__init__(f"service {name!r} {reason}" + (f"; its last lines:{said}" if said else ""))
        self.name, self.reason, self.exit_code, self.probe, self.lines = name, reason, exit_code, probe, tuple(lines)


class StoreError(HeadwaterError):
    """Something is wrong with the directory of an embedded log."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


class StoreNotFoundError(StoreError):
    """There is no store in this directory. A reader never creates one."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "there is no store here; an app or a publisher creates one, a reader does not")


class StoreVersionError(StoreError):
    """The store was written by a newer version."""


class StoreCorruptError(StoreError):
    """A checksum does not match. Nothing of the damaged frame is served.

    `segment` is the file, `position` the byte in it; `affected` says which topics and offsets are concerned.
    """

    def __init__(self, path: str | Path, segment: str, position: int, affected: str) -> None:
        super().__init__(
            path,
            f"damaged at byte {position} of {segment} ({affected}). "
            f"`headwater log check` says what is lost, `headwater log repair` removes the damage",
        )
        self.segment, self.position, self.affected = segment, position, affected


class StoreFullError(StoreError):
    """The disk is full: nothing was written, what was acknowledged before is safe."""


class StoreBusyError(StoreError):
    """Another process held the store's lock for too long, probably because it is stopped."""

    def __init__(self, path: str | Path, pid: int | None, waited: float) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(path, f"{who} has held the lock for {waited:g} s; is it stopped (SIGSTOP, a debugger)?")
        self.pid, self.waited = pid, waited


class Signal(HeadwaterError):
    """What a handler raises to say something to the framework. Not a failure."""


class Reject(Signal):
    """This message can never be handled: to the dead letters at once, without retries."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Skip(Signal):
    """Nothing to do: acknowledge the message and publish nothing."""


class RetryLater(Signal):
    """Handle this message again after `delay` seconds; made by `Retry.later(seconds)`."""

    def __init__(self, delay: float) -> None:
        super().__init__(f"again in {delay:g} s")
        self.delay = delay


class StopConsuming(Signal):
    """Acknowledge this message and end its subscriber."""


class StopApp(Signal):
    """Acknowledge this message and stop the whole app, gracefully."""
