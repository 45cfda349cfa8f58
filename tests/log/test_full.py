import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import fill, put, values
from headwater import errors
from headwater.log.store import Run, Store


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Two megabytes. Not below pytest's folder: a mount that a killed run left would fail every later one."""
    if os.getuid() != 0:
        pytest.skip("mounting takes root")
    place = Path(tempfile.mkdtemp(prefix="headwater-small-disk-"))
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], check=False)
        if mounted.returncode:
            pytest.skip("this machine does not let us mount")
        yield place
        subprocess.run(["umount", "--lazy", place], check=True)  # an error may hold a file until it is collected
    finally:
        place.rmdir()


def test_a_full_disk_refuses_whole_messages_and_takes_more_when_there_is_room(small_disk: Path) -> None:
    with Store.open(small_disk / "store", create=True, segment_bytes=1 << 18) as store:
        first, second = store.create_topic("orders", 2).streams
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(1 << 19))
        written: list[bytes] = []

        def write_on() -> None:
            while True:
                value = b"%d" % len(written) * 1000
                done = store.append([Run(s, [None], [b""], [value]) for s in (first, second)])
                store.sync(done.end)
                written.append(value)

        with pytest.raises(errors.StoreFullError, match=r"\.log.*free some space"):
            write_on()
        with pytest.raises(errors.StoreFullError):
            put(store, first, bytes(100_000))
        with pytest.raises(errors.StoreFullError):
            store.create_topic("big" * 200_000, 8)
        assert values(store, first) == values(store, second) == written
        ballast.unlink()
        assert put(store, first, b"after") == [len(written)]
        store.create_topic("another", 1)
        assert values(store, first) == [*written, b"after"]
    with Store.open(small_disk / "store", boot=b"another boot id.") as store:
        assert values(store, first) == [*written, b"after"]
        assert values(store, second) == written


def test_a_full_disk_can_be_cleaned(small_disk: Path) -> None:
    with Store.open(small_disk / "store", create=True, segment_bytes=1 << 18) as store:
        stream = store.create_topic("orders", 1, retention_bytes=100_000).streams[0]
        with pytest.raises(errors.StoreFullError):
            fill(store, stream, 10_000, size=1000)
        store.clean()
        fill(store, stream, 100, size=1000)


def test_a_store_is_not_begun_on_a_full_disk(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes((2 << 20) - (1 << 14)))
    with pytest.raises(errors.StoreFullError):
        Store.open(small_disk / "store", create=True)
    (small_disk / "ballast").unlink()
    with Store.open(small_disk / "store", create=True) as store:
        assert put(store, store.create_topic("orders", 1).streams[0], b"v") == [0]


def test_a_write_cut_short_is_not_half_there(directory: Path) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            with Store.open(directory, create=True) as store:
                stream = store.create_topic("orders", 1).streams[0]
                put(store, stream, b"before")
                resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
                try:
                    put(store, stream, bytes(5_000_000))
                except errors.StoreFullError:
                    put(store, stream, b"after")
                    status = 0 if values(store, stream) == [b"before", b"after"] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
