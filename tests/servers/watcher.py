"""Outlives a test process by a moment, and clears away what it started. Run by `process`; imports nothing of ours.

It reads `+PID` and `-PID` from its standard input, one a line, and `=FOLDER`. That input ends with the test process,
however that died: the process groups that are left are then killed, and the folders removed. The kernel's own signal
for a parent's death is no answer: it comes when the *thread* that started a server ends, and a server is started from a
thread so as not to hold up a loop.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys


def main() -> None:
    groups: set[int] = set()
    folders: set[str] = set()
    for line in sys.stdin:
        kind, what = line[0], line[1:].rstrip("\n")
        if kind == "+":
            groups.add(int(what))
        elif kind == "-":
            groups.discard(int(what))
        else:
            folders.add(what)
    for group in groups:
        kill(group)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def kill(group: int) -> None:
    """Kill the group and wait for its leader, which may be writing to its folder still."""
    try:
        leader = os.pidfd_open(group)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    select.select([leader], [], [], 10)


if __name__ == "__main__":
    main()
