"""Redis, or Valkey where there is no Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

from .certificate import Certificate, make_certificate
from .process import HOST, LOOK_AGAIN, Process, Server, ask, find, free_ports


class RedisServer(Server):
    """Keeps an append-only file: what it answered survives SIGKILL. `extra` are lines of its configuration file."""

    def __init__(self, *, password: str = "", tls: bool = False, **options: Any) -> None:
        self._program = find("redis-server", "valkey-server")
        super().__init__(**options)
        self.password = password
        self.certificate: Certificate | None = make_certificate(self.folder) if tls else None

    @property
    def url(self) -> str:
        scheme = "rediss" if self.certificate else "redis"
        who = f":{self.password}@" if self.password else ""
        return f"{scheme}://{who}{self.address}"

    def configure(self) -> Process:
        lines = [f"bind {HOST}", f"dir {self.folder}", "appendonly yes", "appendfsync everysec", 'save ""']
        if self.password:
            lines.append(f"requirepass {self.password}")
        if self.certificate:
            lines += ["port 0", f"tls-port {self.port}", "tls-auth-clients no"]
            lines += [f"tls-cert-file {self.certificate.file}", f"tls-key-file {self.certificate.key}"]
            lines.append(f"tls-ca-cert-file {self.certificate.file}")
        else:
            lines.append(f"port {self.port}")
        path = self.folder / "redis.conf"
        path.write_text("\n".join([*lines, *self.extra]) + "\n")
        return self._run([self._program, str(path)])

    def answers(self) -> bool:
        # -LOADING is an answer as well, but not one of a server that is ready.
        return ask(self.port, b"PING\r\n", tls=self.certificate is not None).startswith((b"+PONG", b"-NOAUTH"))


class RedisSentinel(RedisServer):
    """A sentinel that watches one master, and names another when it is gone for half a second."""

    def __init__(self, master: RedisServer) -> None:
        super().__init__()
        self._master = master

    def configure(self) -> Process:
        watch = [f"monitor mymaster {HOST} {self._master.port} 2", "down-after-milliseconds mymaster 500"]
        watch += ["failover-timeout mymaster 2000"]
        lines = [f"bind {HOST}", f"port {self.port}", f"dir {self.folder}", *(f"sentinel {line}" for line in watch)]
        path = self.folder / "sentinel.conf"
        path.write_text("\n".join(lines) + "\n")
        return self._run([self._program, str(path), "--sentinel"])


class Together:
    """Several servers that know one another, started and gone together."""

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []
        self._started = ExitStack()

    def up(self) -> None:
        """Start them, and wait until they are what they should be."""
        raise NotImplementedError

    def _start(self, server: RedisServer) -> RedisServer:
        self.servers.append(self._started.enter_context(server))
        return server

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self._started.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._started.close)


class RedisSentinels(Together):
    """A master, its replica, and three sentinels that have seen both."""

    def up(self) -> None:
        self.master = self._start(RedisServer())
        follow = [f"replicaof {HOST} {self.master.port}", "repl-diskless-sync-delay 0"]
        self.replica = self._start(RedisServer(extra=follow))
        until(lambda: b"master_link_status:up" in say(self.replica, "INFO replication"))
        self.sentinels = [self._start(RedisSentinel(self.master)) for _ in range(3)]
        for sentinel in self.sentinels:
            until(lambda: b"slaves=1,sentinels=3" in say(sentinel, "INFO sentinel"))  # noqa: B023 - called at once

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(sentinel.address for sentinel in self.sentinels)}/mymaster"


class RedisCluster(Together):
    """Three masters with a third of the slots each, and a replica of the first."""

    def up(self) -> None:
        for _ in range(4):
            lines = ["cluster-enabled yes", "cluster-node-timeout 1000", f"cluster-port {free_ports(1)[0]}"]
            self._start(RedisServer(extra=[*lines, "repl-diskless-sync-delay 0"]))
        self.masters, self.replica = self.servers[:3], self.servers[3]
        for index, master in enumerate(self.masters):
            first, last = 16384 * index // 3, 16384 * (index + 1) // 3 - 1
            say(master, f"CLUSTER ADDSLOTSRANGE {first} {last}")
            say(master, f"CLUSTER SET-CONFIG-EPOCH {index + 1}")
        for server in self.servers[1:]:
            port = server.extra[2].split()[1]
            say(self.masters[0], f"CLUSTER MEET {HOST} {server.port} {port}")
        for server in self.servers:
            until(lambda: b"cluster_state:ok" in say(server, "CLUSTER INFO"))  # noqa: B023 - called at once
            until(lambda: say(server, "CLUSTER NODES").count(b"connected") == 4)  # noqa: B023
        name = say(self.masters[0], "CLUSTER MYID").split()[1].decode()
        until(lambda: say(self.replica, f"CLUSTER REPLICATE {name}").startswith(b"+OK"))
        until(lambda: b"master_link_status:up" in say(self.replica, "INFO replication"))

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(server.address for server in self.servers)}"


def say(server: RedisServer, command: str) -> bytes:
    """The beginning of what a server answers to a command."""
    return ask(server.port, command.encode() + b"\r\n")


def until(condition: Callable[[], bool], within: float = 20.0) -> None:
    """Return once the condition holds."""
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("servers did not become what they should be")
        time.sleep(LOOK_AGAIN)
