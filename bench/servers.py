"""The peers' servers: started on loopback with their data in a temporary folder, stopped by their process."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, timeout: float = 15.0) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[int]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=15)


@contextlib.contextmanager
def nats(*, sync_always: bool = False) -> Iterator[int]:
    """JetStream with file storage; with `sync_always` it syncs before it acknowledges."""
    command = shutil.which("nats-server") or str(Path(sys.executable).parent / "nats-server")
    with tempfile.TemporaryDirectory() as data:
        port = free_port()
        config = Path(data) / "nats.conf"
        sync = "sync_interval: always" if sync_always else ""
        config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{\n store_dir: "{data}/js"\n {sync}\n}}\n')
        with _running([command, "-c", str(config)], port):
            yield port


def find_redis() -> str | None:
    return shutil.which("redis-server") or shutil.which("valkey-server")


@contextlib.contextmanager
def redis(*, fsync: str = "everysec") -> Iterator[int]:
    """Redis with its append-only file, synced `everysec` or `always`."""
    command = find_redis()
    if command is None:
        raise FileNotFoundError("no redis-server: install Debian's redis-server to measure beside Redis")
    with tempfile.TemporaryDirectory() as data:
        port = free_port()
        options = ["--appendonly", "yes", "--appendfsync", fsync, "--save", ""]
        where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", data]
        with _running([command, *where, *options], port):
            yield port
