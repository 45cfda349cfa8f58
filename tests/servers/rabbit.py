"""RabbitMQ with its management and stream plugins."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, ClassVar

from .process import HOST, Process, Server, ask, find

# On loopback alone, and statistics that are a second old at most: by default they are five to ten.
ADVANCED = """[
 {kernel, [{inet_dist_use_interface, {127, 0, 0, 1}}]},
 {rabbit, [{quorum_tick_interval, 500}]},
 {rabbitmq_management_agent, [{sample_retention_policies,
   [{global, [{600, 1}]}, {basic, [{600, 1}]}, {detailed, [{600, 1}]}]}]}
].
"""
PLUGINS = "[rabbitmq_management,rabbitmq_stream,rabbitmq_stream_management]."
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"
READY = "Server startup complete"  # said after the plugins have started; the ports answer before


def _script() -> str:
    """RabbitMQ's own script: what distributions put on PATH before it changes to the user of their service."""
    for folder in ("/usr/lib/rabbitmq", "/opt/rabbitmq"):
        for path in sorted(Path(folder).glob("**/sbin/rabbitmq-server"), reverse=True):
            return str(path)
    return find("rabbitmq-server")


class RabbitServer(Server):
    """`management_port` serves the HTTP API, `stream_port` the stream protocol. `extra` are lines of `rabbitmq.conf`.

    Clients of streams connect to the address the server tells them: `advertise_stream` is the port of a proxy to tell
    instead. Statistics of the management are a second old at most. Nodes `beside` another one find it and are trusted
    by it; that they are a cluster is for `extra` to say.
    """

    PORTS: ClassVar[int] = 5

    def __init__(
        self,
        *,
        user: str = "guest",
        password: str = "guest",
        advertise_stream: int | None = None,
        beside: RabbitServer | None = None,
        **options: Any,
    ) -> None:
        self._program, self._epmd_program = _script(), find("epmd")
        super().__init__(**options)
        self.user, self.password = user, password
        self._advertise_stream = advertise_stream
        self._first = beside or self
        self._epmd: Process | None = None
        self._epmd_lock = threading.Lock()

    @property
    def node(self) -> str:
        return f"headwater{self.port}@localhost"

    @property
    def management_port(self) -> int:
        return self.ports[1]

    @property
    def stream_port(self) -> int:
        return self.ports[2]

    @property
    def url(self) -> str:
        return f"amqp://{self.user}:{self.password}@{self.address}/"

    @property
    def management_url(self) -> str:
        return f"http://{self.user}:{self.password}@{HOST}:{self.management_port}"

    def configure(self) -> Process:
        self._write_files()
        places = {
            "MNESIA_BASE": "data",
            "LOG_BASE": "logs",
            "CONFIG_FILE": "rabbitmq.conf",
            "ADVANCED_CONFIG_FILE": "advanced.config",
            "ENABLED_PLUGINS_FILE": "plugins",
            "PID_FILE": "pid",
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        environment |= {f"RABBITMQ_{name}": str(self.folder / place) for name, place in places.items()}
        environment |= {
            "HOME": str(self._first.folder),  # where the cookie is
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self.ports[3]),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",  # idle is idle
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the server, instead of waiting for it
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self._first.ports[4]),
        }
        self._environment = environment
        return self._run([self._program], log=READY, environment=environment)

    def answers(self) -> bool:
        amqp = ask(self.port, PROTOCOL_HEADER)
        web = ask(self.management_port, b"GET /api/ready HTTP/1.0\r\n\r\n")
        return amqp.startswith(METHOD_FRAME) and web.startswith(b"HTTP/") and self._streams_listen()

    def write_down(self) -> None:
        # Mnesia, which holds queues and bindings, collects what it logs for up to two seconds.
        if (said := self.control("eval", "mnesia:sync_log().").strip()) != "ok":
            raise RuntimeError(f"rabbitmqctl did not write it down: {said}")

    def control(self, *words: str) -> str:
        """What rabbitmqctl says to that."""
        command = [str(Path(self._program).with_name("rabbitmqctl")), *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {words[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def down(self, *, kill: bool = False) -> None:
        with self._lock:
            super().down(kill=kill)
            epmd, self._epmd = self._epmd, None
            if epmd is not None:
                epmd.kill()

    def _up(self) -> None:
        self._first._have_epmd()
        super()._up()

    def _have_epmd(self) -> None:
        """By which nodes find each other; Erlang would start one by itself, as a daemon that nobody ends."""
        with self._epmd_lock:
            if self._epmd is None:
                cookie = self.folder / ".erlang.cookie"
                if not cookie.exists():
                    cookie.write_text(os.urandom(10).hex())
                    cookie.chmod(0o400)
                self._epmd = Process([self._epmd_program, "-address", HOST, "-port", str(self.ports[4])])
                self._epmd.start()

    def _streams_listen(self) -> bool:
        socket.create_connection((HOST, self.stream_port), timeout=1).close()
        return True

    def _write_files(self) -> None:
        lines = [f"listeners.tcp.1 = {self.address}", f"default_user = {self.user}", f"default_pass = {self.password}"]
        lines += [f"management.tcp.ip = {HOST}", f"management.tcp.port = {self.management_port}"]
        lines += [f"stream.listeners.tcp.1 = {HOST}:{self.stream_port}", f"stream.advertised_host = {HOST}"]
        lines.append(f"stream.advertised_port = {self._advertise_stream or self.stream_port}")
        lines += ["collect_statistics_interval = 1000", "disk_free_limit.absolute = 50MB"]
        lines += ["log.file = false", "log.console = true", "log.console.level = info"]
        (self.folder / "rabbitmq.conf").write_text("\n".join([*lines, *self.extra]) + "\n")
        (self.folder / "advanced.config").write_text(ADVANCED)
        (self.folder / "plugins").write_text(PLUGINS + "\n")
