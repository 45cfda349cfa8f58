"""Installs the servers that are missing: `make servers`. Quick when nothing is.

Debian's packages come by apt, and Apache Kafka, which is not among them, by Maven into a cache. NATS is a Python
package of the group `test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from .kafka import LIB, VERSION
from .process import MissingServerError, find

PACKAGES = {
    "redis-server": "redis-server",
    "mosquitto": "mosquitto",
    "rabbitmq-server": "rabbitmq-server",
    "openssl": "openssl",
    "javac": "default-jdk-headless",
}
POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>headwater</groupId><artifactId>kafka</artifactId><version>{VERSION}</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
"""


def is_here(program: str) -> bool:
    try:
        find(program)
    except MissingServerError:
        return False
    return True


def install_packages(packages: list[str]) -> None:
    """By apt, as root or with sudo; where there is no apt, say what to install instead."""
    if not is_here("apt-get"):
        sys.exit(f"there is no apt-get here: install {', '.join(packages)} yourself, or run `docker compose up`")
    become_root = [] if os.geteuid() == 0 else ["sudo"]
    # sudo forgets the environment, so it is said after it.
    apt = [*become_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "--no-install-recommends", *packages], check=True)


def install_kafka() -> None:
    """Apache Kafka and all it needs, into the cache; whole or not at all."""
    LIB.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=LIB.parent) as folder:
        (Path(folder) / "pom.xml").write_text(POM)
        command = [find("mvn"), "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"]
        subprocess.run(command, cwd=folder, check=True)
        shutil.move(Path(folder) / "lib", LIB)


def main() -> None:
    wanted = PACKAGES if LIB.exists() else {**PACKAGES, "mvn": "maven"}
    missing = [package for program, package in wanted.items() if not is_here(program)]
    if missing:
        print(f"installing {', '.join(missing)}", flush=True)
        install_packages(missing)
    if not LIB.exists():
        print(f"fetching Apache Kafka {VERSION} into {LIB}", flush=True)
        install_kafka()


if __name__ == "__main__":
    main()
