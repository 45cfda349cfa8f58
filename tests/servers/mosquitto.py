"""Mosquitto, an MQTT broker."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import time
from typing import Any

from .certificate import Certificate, make_certificate
from .process import HOST, LOOK_AGAIN, Process, Server, ask, find

# CONNECT of MQTT 3.1.1: a clean session, 60 seconds of keep-alive, and the client id "ready?"
CONNECT = b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06ready?"
CONNACK = 0x20


class MosquittoServer(Server):
    """Keeps sessions and messages over `stop`; over `kill` only what was there at the last `save`.

    Mosquitto holds everything in memory and writes it to a file when it stops, or is told to: no option makes an
    accepted message survive SIGKILL. `extra` are lines of its configuration file.
    """

    def __init__(self, *, user: str = "", password: str = "", tls: bool = False, **options: Any) -> None:
        self._program = find("mosquitto")
        super().__init__(**options)
        self.user, self.password = user, password
        self.certificate: Certificate | None = make_certificate(self.folder) if tls else None

    @property
    def url(self) -> str:
        scheme = "mqtts" if self.certificate else "mqtt"
        who = f"{self.user}:{self.password}@" if self.user else ""
        return f"{scheme}://{who}{self.address}"

    def configure(self) -> Process:
        lines = [f"listener {self.port} {HOST}"]
        if self.certificate:
            lines += [f"certfile {self.certificate.file}", f"keyfile {self.certificate.key}"]
        lines += ["persistence true", f"persistence_location {self.folder}/", "sys_interval 1", "log_dest stderr"]
        lines += ["max_queued_messages 100000", f"user {getpass.getuser()}"]  # root's would be given up for `mosquitto`
        if self.user:
            lines += ["allow_anonymous false", f"password_file {self._write_passwords()}"]
        else:
            lines.append("allow_anonymous true")
        path = self.folder / "mosquitto.conf"
        path.write_text("\n".join([*lines, *self.extra]) + "\n")
        return self._run([self._program, "-c", str(path)])

    def answers(self) -> bool:
        return ask(self.port, CONNECT, tls=self.certificate is not None)[:1] == bytes([CONNACK])

    def write_down(self) -> None:
        path = self.folder / "mosquitto.db"
        before = path.stat().st_mtime_ns if path.exists() else 0
        os.kill(self.process.pid, signal.SIGUSR1)
        end = time.monotonic() + 10
        # It writes beside the file and moves it into place, so what is new is whole.
        while not path.exists() or path.stat().st_mtime_ns == before:
            if time.monotonic() > end:
                raise TimeoutError(f"mosquitto did not save:\n{self.process.said()}")
            time.sleep(LOOK_AGAIN)

    def _write_passwords(self) -> str:
        path = self.folder / "passwords"
        command = [find("mosquitto_passwd"), "-b", "-c", str(path), self.user, self.password]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        return str(path)
