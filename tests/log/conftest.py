import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.log.store import Record, Run, Store

Opener = Callable[..., Store]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def opened(directory: Path) -> Iterator[Opener]:
    """Opens the store of this test, with small segments; closes it afterwards."""
    stores: list[Store] = []

    def open_store(**options: Any) -> Store:
        stores.append(Store.open(directory, **{"create": True, "segment_bytes": 1 << 16, **options}))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def put(store: Store, stream: int, *values: bytes, key: bytes | None = None) -> list[int]:
    """Append and sync; the offsets."""
    count = len(values)
    done = store.append([Run(stream, [key] * count, [b""] * count, list(values))])
    store.sync(done.end)
    return list(range(done.bases[0], done.bases[0] + count))


def everything(store: Store, stream: int, limit: int = 1000) -> list[Record]:
    """All kept records, read in pieces."""
    records: list[Record] = []
    offset = 0
    while found := store.read(stream, offset, limit):
        records += found
        offset = found[-1].offset + 1
    return records


def values(store: Store, stream: int) -> list[bytes]:
    return [record.value for record in everything(store, stream)]


def fill(store: Store, stream: int, count: int, size: int = 100, batch: int = 10, start: int = 0) -> list[bytes]:
    """Append `count` distinct values in frames of `batch`."""
    made = [b"%08d" % (start + i) * (size // 8) for i in range(count)]
    for low in range(0, count, batch):
        put(store, stream, *made[low : low + batch])
    return made


def clock_from(start: float, step: float = 0.0) -> Callable[[], float]:
    ticks = itertools.count()
    return lambda: start + step * next(ticks)
