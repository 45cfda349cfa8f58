"""Probes and metrics of all workers, asked for in one place: the supervisor's."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..integrations.asgi import LIVE, METRICS, Receive, Scope, Send, path_asked, refuse, respond
from ..observe.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PATIENCE: Final = 2.0  # seconds that a worker has to answer
HANGS, STARTS = "it does not answer", "it is starting"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker said; status 0 if it could not be reached, or said nothing in time."""

    status: int
    body: bytes = b""
    problem: str = ""


class AllWorkers:
    """An ASGI application that asks every worker, each at a socket of its own, and answers for them together.

    All are ready, and all live, or it is said which are not. Metrics have the worker's number as a label.
    """

    def __init__(self, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="headwater-")
        self._paths = {number: str(Path(self._folder.name, f"{number}.sock")) for number in range(count)}

    def path_of(self, worker: int) -> str:
        """Where this worker is to answer."""
        return self._paths[worker]

    def close(self) -> None:
        self._folder.cleanup()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = path_asked(scope)
        if path is None:
            await refuse(send, scope)
            return
        answers = dict(
            zip(self._paths, await asyncio.gather(*(_ask(at, path) for at in self._paths.values())), strict=True)
        )
        if path == METRICS:
            await self._give_metrics(send, answers)
        else:
            await self._give_health(send, path, answers)

    async def _give_metrics(self, send: Send, answers: Mapping[int, Answer]) -> None:
        texts = {number: answer.body.decode() for number, answer in answers.items() if answer.status == 200}
        refused = next((answer for answer in answers.values() if answer.status), None)
        if texts:
            await respond(send, 200, _merged(texts), CONTENT_TYPE)
        elif refused is not None:  # they all say the same
            await respond(send, refused.status, refused.body)
        else:
            await respond(send, 503, {"error": "no worker answers"})

    async def _give_health(self, send: Send, path: str, answers: Mapping[int, Answer]) -> None:
        each = {str(number): _health(answer) for number, answer in answers.items()}
        live, ready = (all(health[what] for health in each.values()) for what in ("live", "ready"))
        reasons = [f"worker {number}: {reason}" for number, health in each.items() for reason in health["reasons"]]
        body = {"live": live, "ready": ready, "reasons": reasons, "workers": each}
        await respond(send, 200 if (live if path == LIVE else ready) else 503, body)


def _health(answer: Answer) -> dict[str, Any]:
    """What a worker said of itself. One that cannot be reached is starting; one that does not answer hangs."""
    if answer.status:
        with suppress(msgspec.DecodeError):  # it died over its answer
            return dict(msgspec.json.decode(answer.body))
    return {"live": answer.problem != HANGS, "ready": False, "reasons": [answer.problem or STARTS]}


async def _ask(path: str, what: str) -> Answer:
    """GET something at the socket of a worker."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(f"GET {what} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n".encode())
                head, end, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        return Answer(int(head.split(b" ", 2)[1]), body) if end else Answer(0, problem=STARTS)  # it died meanwhile
    except TimeoutError:
        return Answer(0, problem=HANGS)
    except OSError:
        return Answer(0, problem=STARTS)


def _merged(texts: Mapping[int, str]) -> bytes:
    """The metrics of all workers as one text; each sample has its worker's number."""
    from prometheus_client import generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    merged: dict[str, Metric] = {}
    for number, text in texts.items():
        for family in text_string_to_metric_families(text):
            whole = merged.setdefault(family.name, family)
            samples = [one._replace(labels={**one.labels, "worker": str(number)}) for one in family.samples]
            whole.samples = samples if whole is family else whole.samples + samples
    return generate_latest(_Collected(list(merged.values())))


class _Collected:
    """What a registry gives, from what was collected elsewhere."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
