"""Redis, or Valkey where there is no Redis."""

from __future__ import annotations

from typing import Any

from .certificate import Certificate, make_certificate
from .process import HOST, Process, Server, ask, find


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
        return Process([self._program, str(path)], log=self.folder / "log")

    def answers(self) -> bool:
        # -LOADING is an answer as well, but not one of a server that is ready.
        return ask(self.port, b"PING\r\n", tls=self.certificate is not None).startswith((b"+PONG", b"-NOAUTH"))
