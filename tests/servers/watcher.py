"""Outlives a test process by a moment: kills what it started, once it is gone. Run by `process`, imports nothing of ours.

It reads `+PID` and `-PID` from its standard input, one a line. That input ends with the test process, however that
died; what is left then is killed with its process group. The kernel's own signal for a parent's death is no answer: it
comes when the *thread* that started a server ends, and a server is started from a thread so as not to hold up a loop.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            groups.add(pid)
        else:
            groups.discard(pid)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass


if __name__ == "__main__":
    main()
