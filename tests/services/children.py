"""Small programs to be services, and how to find out what is left of them."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

# A line is one write, so that those of several processes do not mix.
FOREVER = r"import os, signal; os.write(1, b'up\n'); signal.pause()"
DEAF = r"""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b'up\n')
while True: signal.pause()
"""
# A daemon as the books have it: forked twice, in a session of its own, deaf to SIGTERM.
STRAY = r"""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not os.fork():
    os.setsid()
    if not os.fork():
        os.write(1, b'stray %d\n' % os.getpid())
        while True: signal.pause()
    os._exit(0)
os.wait()
"""


def python(code: str, *arguments: str) -> list[str]:
    """A command that runs this code in an interpreter that starts quickly."""
    return [sys.executable, "-I", "-S", "-u", "-c", code, *arguments]


class Tag:
    """A mark in the environment of a service, by which all that it starts is found."""

    def __init__(self) -> None:
        self.env = {"HEADWATER_TEST": uuid.uuid4().hex}

    def alive(self) -> list[int]:
        """The pids of the processes, zombies among them, that have the mark; guards do as well."""
        wanted = b"HEADWATER_TEST=" + self.env["HEADWATER_TEST"].encode()
        return [int(place.parent.name) for place in Path("/proc").glob("[0-9]*/environ") if wanted in read(place)]

    def services(self) -> list[int]:
        """Those of them that run `FOREVER`."""
        wanted = "\0".join([*python(FOREVER), ""]).encode()
        return [pid for pid in self.alive() if read(Path(f"/proc/{pid}/cmdline")) == wanted]


def read(place: Path) -> bytes:
    try:
        return place.read_bytes()
    except OSError:
        return b""  # it has ended


def state(pid: int) -> str:
    """As in /proc/PID/stat: "S", "Z" and so on; "" if there is no such process."""
    said = read(Path(f"/proc/{pid}/stat"))
    return said.rpartition(b")")[2].split()[0].decode() if said else ""


def children_of(parent: int) -> list[int]:
    """The pids of its children, zombies among them."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        said = read(place).rpartition(b")")[2].split()
        if said and int(said[1]) == parent:
            found.append(int(place.parent.name))
    return found


def parent_of(pid: int) -> int:
    return int(read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()[1])
