"""Apache Kafka, one broker that is its own controller, from its jars."""

from __future__ import annotations

import base64
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any, ClassVar

from .process import HOST, MissingServerError, Process, Server, StartError, ask, find

VERSION = "4.3.1"
LIB = Path(os.environ.get("HEADWATER_CACHE", "~/.cache/headwater")).expanduser() / f"kafka-{VERSION}" / "lib"

# A request ApiVersions, version 0, of the client "r": what a broker answers before anybody has logged in.
API_VERSIONS = b"\x00\x00\x00\x0b\x00\x12\x00\x00\x00\x00\x00\x07\x00\x01r"
CORRELATION = b"\x00\x00\x00\x07"
READY = "Kafka Server started"  # said when the broker leads its partitions; the port answers before

JVM = ["-Xmx400m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Dlog4j2.level=INFO"]
SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
group.consumer.min.session.timeout.ms=500
group.consumer.min.heartbeat.interval.ms=100
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
num.io.threads=2
num.network.threads=2
background.threads=2
num.recovery.threads.per.data.dir=1
log.cleaner.dedupe.buffer.size=4194304
log.index.size.max.bytes=1048576
log.segment.delete.delay.ms=1000
log.retention.check.interval.ms=1000
log.initial.task.delay.ms=1000
"""


class KafkaServer(Server):
    """`url` is of the listener that asks for the credentials, if there are any; `open_address` never asks.

    Clients connect to the address the broker tells them: `advertise` is the port of a proxy to tell instead. `extra`
    are lines of the properties file. Sessions may be as short as half a second, so that a dead member is missed soon.
    `beside` another one it is of the same cluster; who votes in it is for `extra` to say.
    """

    PORTS: ClassVar[int] = 3

    def __init__(
        self,
        *,
        user: str = "",
        password: str = "",
        advertise: int | None = None,
        beside: KafkaServer | None = None,
        **options: Any,
    ) -> None:
        self._java = find("java")
        if not LIB.exists():
            raise MissingServerError(f"Apache Kafka {VERSION}")
        super().__init__(**options)
        self.user, self.password, self._advertise = user, password, advertise
        self._cluster: str = (
            beside._cluster if beside else base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        )

    @property
    def url(self) -> str:
        who = f"{self.user}:{self.password}@" if self.user else ""
        return f"kafka://{who}{self.address}"

    @property
    def open_address(self) -> str:
        return f"{HOST}:{self.ports[1]}"

    @property
    def controller(self) -> str:
        """Where it votes."""
        return f"{HOST}:{self.ports[2]}"

    def configure(self) -> Process:
        path = self.folder / "server.properties"
        path.write_text("\n".join([SETTINGS, *self._listeners(), f"log.dirs={self.folder}/data", *self.extra]) + "\n")
        command = self._command("kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster}", "-c", str(path))
        done = subprocess.run([*command, "--ignore-formatted"], capture_output=True, text=True, timeout=60)
        if done.returncode:
            said = "\n".join([*done.stdout.splitlines()[-10:], done.stderr])
            raise StartError(f"Kafka's folder could not be made (Java has to be 17 or newer):\n{said}")
        return self._run(self._command("kafka.Kafka", str(path)), log=READY)

    def answers(self) -> bool:
        return ask(self.port, API_VERSIONS)[4:8] == CORRELATION

    def _command(self, main: str, *arguments: str) -> list[str]:
        return [self._java, *JVM, "-cp", f"{LIB}/*", main, *arguments]

    def _listeners(self) -> list[str]:
        protocol = "SASL_PLAINTEXT" if self.user else "PLAINTEXT"
        lines = [
            f"listeners=CLIENT://{self.address},INTERNAL://{self.open_address},CONTROLLER://{self.controller}",
            f"advertised.listeners=CLIENT://{HOST}:{self._advertise or self.port},INTERNAL://{self.open_address}",
            f"listener.security.protocol.map=CLIENT:{protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            f"controller.quorum.voters=1@{self.controller}",
        ]
        if self.user:
            login = "org.apache.kafka.common.security.plain.PlainLoginModule"
            who = f'user_{self.user}="{self.password}"'
            lines += ["listener.name.client.sasl.enabled.mechanisms=PLAIN"]
            lines += [f"listener.name.client.plain.sasl.jaas.config={login} required {who};"]
        return lines
