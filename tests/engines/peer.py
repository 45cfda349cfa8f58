"""Another process on the same store: started by tests, spoken to through its output, killed for real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from headwater.engine import Assigned, Change, Source
from headwater.engines.local import LocalEngine
from headwater.errors import PartitionLostError
from headwater.message import Outgoing


class Peer:
    """A process that plays one of the roles below."""

    program: ClassVar[str] = __file__

    def __init__(self, role: str, path: Path | str, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, self.program, json.dumps({"role": role, "path": str(path), **options})],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seen: list[list[str]] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    def says(self, word: str) -> list[str]:
        """The next line that begins with this word; those before are kept in `seen`."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            self.seen.append(line.split())
            if self.seen[-1][0] == word:
                return self.seen[-1]
        raise AssertionError(f"it ended without saying {word!r}: {self.seen[-5:]}")

    async def saying(self, word: str) -> list[str]:
        """The same, while the event loop turns."""
        return await asyncio.wait_for(asyncio.to_thread(self.says, word), 20)

    def rest(self) -> list[list[str]]:
        """All it said until its end."""
        assert self._process.stdout is not None
        self.seen += [line.split() for line in self._process.stdout if line.endswith("\n")]
        self._process.wait()
        return self.seen

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how it speaks


async def tell(change: Change) -> None:
    say(type(change).__name__.lower(), len(change.partitions), *sorted(p for _, p in change.partitions))


async def accepted(sent: Any) -> Any:
    return await sent if isinstance(sent, Awaitable) else sent


async def consume(engine: LocalEngine, options: dict[str, Any]) -> None:
    """Say what comes; acknowledge it unless told not to; die over the message named `poison`."""
    source = Source(
        topics=tuple(options.get("topics", ["orders"])),
        group=options.get("group", "shop"),
        start=options.get("start", "earliest"),
        exclusive=options.get("exclusive", False),
    )
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, leaving.set)

    async def on_change(change: Change) -> None:
        await tell(change)
        if not isinstance(change, Assigned):
            await asyncio.sleep(options.get("drain", 0))
            say("drained")

    async with engine.subscribe(source, on_change) as subscription:
        say("ready")
        while not leaving.is_set():
            for message in await subscription.receive(options.get("limit", 100), 0.2):
                body = message.body.decode()
                if message.attempt > 1:
                    subscription.begin(message)
                say("got", message.topic, message.partition, message.offset, message.attempt, body)
                if body == options.get("poison"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if options.get("ack", True):
                    await subscription.ack([message])
                    say("acked", message.partition, message.offset)
                await asyncio.sleep(0)
    say("left")


async def publish(engine: LocalEngine, options: dict[str, Any]) -> None:
    """Send numbered messages and say which are accepted."""
    say("ready")
    for n in range(options.get("first", 0), options.get("end", 10**9)):
        message = Outgoing(None, "orders", key=str(n), body=str(n).encode(), delay=options.get("delay"))
        await accepted(engine.send([message]))
        say("sent", n)
        await asyncio.sleep(0)


async def transact(engine: LocalEngine, options: dict[str, Any]) -> None:
    """Move each message from orders to bills, exactly once."""
    source = Source(topics=("orders",), group="biller", start="earliest", exactly_once=True)
    async with engine.subscribe(source, tell) as subscription:
        say("ready")
        while True:
            by_partition: dict[int | None, list[Any]] = {}
            for message in await subscription.receive(20, 0.2):
                by_partition.setdefault(message.partition, []).append(message)
            for messages in by_partition.values():
                bills = [Outgoing(None, "bills", key=m.key_bytes, body=m.body) for m in messages]
                try:
                    await subscription.commit(messages, bills)
                    say("committed", len(messages))
                except PartitionLostError:
                    say("refused", len(messages))
                await asyncio.sleep(0)


ROLES = {"consume": consume, "publish": publish, "transact": transact}


async def main(options: dict[str, Any]) -> None:
    engine = LocalEngine(
        options["path"], durability=options.get("durability", "process"), lease=options.get("lease", 10.0)
    )
    await engine.connect()
    await engine.declare([], "create")
    try:
        await ROLES[options["role"]](engine, options)
    finally:
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
