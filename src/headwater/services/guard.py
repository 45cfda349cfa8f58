"""The guard of one service: a small process that starts the program and ends all of it, whatever becomes of us.

Run as `python -I -S guard.py`, it imports nothing of ours and as little as it can: every service waits for it to start.
Its line to us is a socket of packets. It says `refused ERRNO`, or `running PID` and later `exited CODE`, and closes the
line when nothing of the service is left. It hears `stop` and `kill`; the end of the line, which comes when our process
is gone, however it died, means `stop`.

It adopts what the service leaves behind (it is a "child subreaper"), so that no grandchild escapes by leaving the
process group, and none stays a zombie. When the guard itself is killed, the kernel kills the program.
"""

from __future__ import annotations

# What `signal` wraps, without the enums, whose import would take as long as the rest of the start.
import _signal as signal  # type: ignore[import-not-found]  # private, so it has no stubs
import ctypes
import os
import select
import sys
import time
from errno import ENOENT, ENOTDIR, ESRCH

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LOOK_AGAIN = 0.02  # seconds between two looks for what was not killed yet

_libc = ctypes.CDLL(None, use_errno=True)


class Guard:
    def __init__(self, line: int, stop_signal: int, grace: float) -> None:
        self.line = line
        self.stop_signal, self.grace = stop_signal, grace
        self.leader = 0  # the program's pid, which is its group's and its session's too
        self.leads = True  # until the program has ended and was reaped
        self.group_was_asked = self.rest_was_asked = False
        self.deadline: float | None = None  # after it everything is killed

    def start(self, command: list[str], user: str, handed: list[int]) -> bool:
        """Whether the program could be executed; `handed` are descriptors for it alone."""
        told, tell = os.pipe()  # closed by a successful exec
        guard = os.getpid()
        self.leader = os.fork()
        if not self.leader:
            become(command, user, self.stop_signal, guard, tell)
        os.close(tell)
        for descriptor in handed:
            os.close(descriptor)
        os.dup2(0, 1)  # the output belongs to the service: hold it open no longer than that does
        os.dup2(0, 2)
        refused = os.read(told, 16)
        os.close(told)
        self.say(b"refused " + refused if refused else b"running %d" % self.leader)
        return not refused

    def watch(self) -> None:
        """Return when nothing of the service is left."""
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(woken, select.POLLIN)
        poll.register(self.line, select.POLLIN)
        while self.reap():
            for descriptor, _ in poll.poll(self.patience()):
                if descriptor == woken:
                    os.read(woken, 4096)
                else:
                    self.hear(poll)

    def patience(self) -> float | None:
        """Milliseconds to sleep at most. Everything is asked or killed here when it is time."""
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.kill()
            left = LOOK_AGAIN
        return left * 1000 + 1

    def hear(self, poll: select.poll) -> None:
        try:
            word = os.read(self.line, 16)
        except OSError:  # our process is gone, and had not heard all that was said
            word = b""
        if word == b"kill":
            self.deadline = 0.0
            return
        if not word:
            poll.unregister(self.line)
        self.ask()

    def reap(self) -> bool:
        """Collect who has ended; whether anybody is left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return True
                if pid == self.leader:
                    self.leads = False
                    self.say(b"exited %d" % os.waitstatus_to_exitcode(status))
                    self.ask()  # a service ends with its program: what it left behind goes too
        except ChildProcessError:
            return False

    def ask(self) -> None:
        """Have it end: at first its group; the others when the program, which may look after them, is gone."""
        if self.deadline is None:
            self.deadline = time.monotonic() + self.grace
        if self.leads and not self.group_was_asked:
            self.group_was_asked = True
            send(-self.leader, self.stop_signal)
            send(-self.leader, signal.SIGCONT)  # one that is stopped would not hear it
        elif not self.leads and not self.rest_was_asked:
            self.rest_was_asked = True
            for pid, group in descendants():
                if not (self.group_was_asked and group == self.leader):
                    send(pid, self.stop_signal)
                    send(pid, signal.SIGCONT)

    def kill(self) -> None:
        if self.leads:
            send(-self.leader, signal.SIGKILL)
        for pid, _ in descendants():  # by descent: once it is reaped, the leader's number may be another group's
            send(pid, signal.SIGKILL)

    def say(self, words: bytes) -> None:
        try:
            os.write(self.line, words)
        except OSError:  # nobody listens any more
            pass


def become(command: list[str], user: str, stop_signal: int, guard: int, tell: int) -> None:
    """In the new process: turn into the program. Does not return; a failure's number is written to `tell`."""
    try:
        os.setsid()
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ, stop_signal):  # exec would keep that they are
            signal.signal(ignored, signal.SIG_DFL)
        if user:
            name, uid, gid = user.split(":")
            os.initgroups(name, int(gid))
            os.setgid(int(gid))
            os.setuid(int(uid))
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after setuid, which takes it back
        if os.getppid() != guard:  # too late, it is dead already
            raise OSError(ESRCH, "no guard")
        execute(command)
    except OSError as error:
        os.write(tell, b"%d" % (error.errno or 0))
    finally:
        os._exit(127)


def execute(command: list[str]) -> None:
    """As `os.execvp`, which imports modules: another user may not be allowed to read those."""
    program, refusal = command[0], OSError(ENOENT, "not found")
    folders = [""] if "/" in program else os.environ.get("PATH", os.defpath).split(":")
    for folder in folders:
        try:
            os.execv(os.path.join(folder, program), command)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR):
                refusal = error
    raise refusal


def descendants() -> list[tuple[int, int]]:
    """The pid and the process group of all that descend from this process."""
    children: dict[int, list[tuple[int, int]]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    _, parent, group = stat.read().rpartition(b")")[2].split()[:3]  # the name before may hold anything
            except OSError:
                continue  # it has just ended
            children.setdefault(int(parent), []).append((int(entry), int(group)))
    found = children.get(os.getpid(), [])
    for pid, _ in found:
        found.extend(children.get(pid, []))
    return found


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:  # it is gone, or it became somebody we may not signal
        pass


def prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    line, stop_signal, grace, handed, user, _name, *command = sys.argv[1:]  # the name is for who reads `ps`
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a handler, for exec would keep what is ignored
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the thread that started us may have blocked some
    os.set_inheritable(int(line), False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    guard = Guard(int(line), int(stop_signal), float(grace))
    if guard.start(command, user, [int(one) for one in handed.split(",") if one]):
        guard.watch()
    os._exit(0)


if __name__ == "__main__":
    main()
