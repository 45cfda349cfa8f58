"""A year of departures from New York: parse, enrich, watch for long delays, keep running figures per carrier.

Every line of the file is a message on `departures`. Each handler is one step; what it gives goes to the next topic.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from headwater import App, Batch, BatchError, Broker, Depends, Reject, Response

from .data import read_airlines

LONG_DELAY = 180  # minutes

app = App("flights", broker="local://./data/flights")


class Flight(msgspec.Struct, frozen=True):
    """A departure that took place. Delays are in minutes, early ones negative."""

    carrier: str
    airline: str
    number: int
    tail: str
    origin: str
    destination: str
    day: str
    departure_delay: int


class Cancelled(msgspec.Struct, frozen=True):
    """A departure that did not."""

    carrier: str
    number: int
    day: str


class Figures(msgspec.Struct, frozen=True):
    """What is known of a carrier so far."""

    airline: str
    flights: int = 0
    minutes: int = 0
    worst: int = 0

    @property
    def mean_delay(self) -> float:
        return self.minutes / self.flights

    def with_flight(self, flight: Flight) -> Figures:
        return Figures(
            self.airline,
            self.flights + 1,
            self.minutes + flight.departure_delay,
            max(self.worst, flight.departure_delay),
        )


AIRLINES = read_airlines()


def parse(line: str) -> Flight | Cancelled:
    """One line of the file. Raises Reject for one that is no departure."""
    fields = line.split(",")
    try:
        year, month, day, departed, _, delay, *_, carrier, number, tail, origin, destination = fields[:14]
        date = f"{int(year)}-{int(month):02}-{int(day):02}"
        if departed in ("", "NA"):
            return Cancelled(carrier, int(number), date)
        return Flight(carrier, AIRLINES[carrier], int(number), tail, origin, destination, date, int(delay))
    except (ValueError, KeyError) as error:
        raise Reject(f"not a departure: {error}") from error


@app.subscriber("departures", start="earliest", batch=Batch(1000, 0.2), exactly_once=True)
@app.publisher("flown", when=lambda found: isinstance(found, Flight))
@app.publisher("cancelled", when=lambda found: isinstance(found, Cancelled))
async def parse_departures(lines: list[str]) -> AsyncIterator[Response]:
    """Lines become flights, cancelled ones go to a topic of their own, and what is neither to the dead letters."""
    failed: dict[int, BaseException] = {}
    for index, line in enumerate(lines):
        try:
            found = parse(line)
        except Reject as error:
            failed[index] = error
        else:
            yield Response(found, key=found.carrier)
    if failed:
        raise BatchError(failed)


@app.subscriber("flown", group="watch", start="earliest", batch=Batch(1000, 0.2), exactly_once=True)
@app.publisher("long-delays")
async def watch_delays(flights: list[Flight]) -> AsyncIterator[Response]:
    """Long delays are worth a message of their own."""
    for flight in flights:
        if flight.departure_delay >= LONG_DELAY:
            yield Response(flight, key=flight.tail)


class Ledger:
    """The running figures per carrier. They live in the topic `figures`: the last message of each key."""

    def __init__(self) -> None:
        self.figures: dict[str, Figures] | None = None

    async def read(self, broker: Broker) -> dict[str, Figures]:
        if self.figures is None:
            self.figures = await read_figures(broker)
        return self.figures


class Draft:
    """The known figures with some flights added, kept apart from them."""

    def __init__(self, known: dict[str, Figures]) -> None:
        self.known = known
        self.changed: dict[str, Figures] = {}

    def add(self, flight: Flight) -> None:
        carrier = flight.carrier
        before = self.changed.get(carrier) or self.known.get(carrier) or Figures(flight.airline)
        self.changed[carrier] = before.with_flight(flight)


async def read_figures(broker: Broker) -> dict[str, Figures]:
    """The last figures of each carrier."""
    figures: dict[str, Figures] = {}
    for info in await broker.admin.partitions.list("figures"):
        if info.latest:
            stream = broker.stream(
                "figures", start="earliest", partitions=[info.partition], limit=info.latest, type=Figures
            )
            async for message in stream:
                figures[message.key or ""] = message.value
    return figures


ledger = Ledger()


async def drafted(broker: Broker) -> AsyncIterator[Draft]:
    """A draft for one batch. It becomes the ledger once the transaction went through, and is forgotten otherwise."""
    draft = Draft(await ledger.read(broker))
    yield draft
    draft.known.update(draft.changed)


@app.subscriber("flown", group="ledger", start="earliest", batch=Batch(1000, 0.2), exactly_once=True)
@app.publisher("figures")
async def keep_figures(flights: list[Flight], draft: Draft = Depends(drafted)) -> AsyncIterator[Response]:
    """The flights of a batch and the figures they lead to are one transaction: each flight counts exactly once."""
    for flight in flights:
        draft.add(flight)
    for carrier, figures in draft.changed.items():
        yield Response(figures, key=carrier)
