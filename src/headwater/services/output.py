"""What a service writes: split into lines, kept for errors, watched for patterns, and logged, within bounds."""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Final

READ: Final = 1 << 16  # bytes at a time
LONGEST: Final = 1 << 16  # bytes of a line; what is beyond is dropped
CUT: Final = b"... (cut here: the line is longer)"
KEPT: Final = 200  # lines for errors
BACKLOG: Final = 10_000, 1 << 22  # lines and bytes that wait to be logged; the oldest are dropped beyond that
SLICE: Final = 0.001  # seconds of logging before others have the loop
PATIENCE: Final = 0.2  # seconds until a line that has no end yet is shown as it is
REPORTS: Final = 5.0  # seconds between two warnings about lines that were dropped

Level = int | Callable[[str], int] | None
"""Of all lines, or of each; None guesses."""

_LEVELS: Final = {
    **dict.fromkeys(("trace", "debug", "fine", "10", "20"), logging.DEBUG),
    **dict.fromkeys(("info", "notice", "30"), logging.INFO),
    **dict.fromkeys(("warn", "warning", "40"), logging.WARNING),
    **dict.fromkeys(("error", "severe", "50"), logging.ERROR),
    **dict.fromkeys(("fatal", "critical", "panic", "60"), logging.CRITICAL),
}
# A field as JSON and logfmt have it, numbers as some JSON loggers write them, or a word that stands apart. Words are
# upper case, or in brackets: "no error found" is none.
_LEVEL: Final = re.compile(
    r"""\b(?:level|severity)["']?\s?[:=]\s?["']?(\w+)"""
    r"|\b(TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|SEVERE|FATAL|CRITICAL|PANIC)\b"
    r"|\[(trace|debug|info|notice|warn(?:ing)?|error|fatal|critical)\]"
)
_WITHIN: Final = 200  # characters of a line in which its level is looked for


def guess_level(line: str, before: int = logging.INFO) -> int:
    """The level a line seems to have. One that is indented, as in a traceback, has that of the line `before` it."""
    if line[:1] in (" ", "\t"):
        return before
    found = _LEVEL.search(line, 0, _WITHIN)
    return logging.INFO if found is None else _LEVELS.get(found[found.lastindex or 0].lower(), logging.INFO)


class Output:
    """Reads a pipe in the running loop, once it is told which, so that the service never waits for us to read.

    Lines that come faster than they can be logged are dropped, the oldest first, and counted in a warning. `watch`
    sees them all the same.
    """

    def __init__(self, logger: logging.Logger, level: Level = None) -> None:
        self._logger, self._level = logger, level
        self._pipe = -1
        self._loop = asyncio.get_running_loop()
        self._kept: deque[bytes] = deque(maxlen=KEPT)
        self._watches: dict[asyncio.Future[re.Match[str]], re.Pattern[str]] = {}
        self._rest = b""  # the line that has no end yet, and how much of it was shown
        self._shown = 0
        self._rest_is_old = False
        self._timer: asyncio.TimerHandle | None = None
        self._cutting = False
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._logging: asyncio.Handle | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        self._dropped, self._report_at = 0, 0.0
        self._last_level = logging.INFO

    def read(self, pipe: int) -> None:
        """Read from this descriptor, and close it in the end."""
        self._pipe = pipe
        self._loop.add_reader(pipe, self._read)

    @property
    def lines(self) -> list[str]:
        """The last that were written, the unfinished one included."""
        rest = [self._rest] if self._rest else []
        return [_text(line) for line in [*self._kept, *rest]][-KEPT:]

    def watch(self, pattern: re.Pattern[str]) -> asyncio.Future[re.Match[str]]:
        """Done with the first match in a line from here on. Cancel it to end the watch."""
        found: asyncio.Future[re.Match[str]] = self._loop.create_future()
        self._watches[found] = pattern
        found.add_done_callback(lambda done: self._watches.pop(done, None))
        return found

    async def finish(self) -> None:
        """Take what is in the pipe, whoever still holds its other end, log it all, and close."""
        if self._pipe >= 0:
            for _ in range(BACKLOG[1] // READ):
                if not self._read():
                    break
            self._close()
        self._show_rest()
        if self._rest:
            self._kept.append(self._rest)
            self._rest = b""
        await self._drained.wait()

    def _close(self) -> None:
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)
        self._pipe = -1

    # --- bytes to lines -------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Whether there was something."""
        try:
            data = os.read(self._pipe, READ)
        except BlockingIOError:
            return False
        if not data:  # nobody has the other end any more
            self._close()
            return False
        self._split(data)
        return self._pipe >= 0

    def _split(self, data: bytes) -> None:
        first, *others = data.split(b"\n")
        if not others:
            self._extend_rest(first)
            return
        *lines, rest = others
        whole = self._extend_rest(first)
        fresh = [whole[self._shown :], *lines]
        lines = [whole, *lines]
        if max(map(len, lines)) > LONGEST:
            lines, fresh = [_cut(line) for line in lines], [_cut(line) for line in fresh]
        self._rest, self._shown, self._cutting = b"", 0, False
        self._extend_rest(rest)
        self._kept.extend(lines)
        if self._watches:
            self._match(lines)
        self._log_later(fresh)

    def _extend_rest(self, data: bytes) -> bytes:
        """Lengthen the line that has no end yet, up to the longest there may be."""
        if data and not self._cutting:
            self._rest += data
            self._rest_is_old = False
            if len(self._rest) > LONGEST:
                self._rest, self._cutting = _cut(self._rest), True
            if self._timer is None:
                self._timer = self._loop.call_later(PATIENCE, self._on_timer)
        return self._rest

    def _on_timer(self) -> None:
        self._timer = None
        if not self._rest:
            return
        if self._rest_is_old:
            self._show_rest()
        else:  # it has grown: once more
            self._rest_is_old = True
            self._timer = self._loop.call_later(PATIENCE, self._on_timer)

    def _show_rest(self) -> None:
        """Log what there is of the last line, but no half character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(self._rest[self._shown :])
        end = len(self._rest) - len(decoder.getstate()[0])
        if end > self._shown:
            fresh, self._shown = self._rest[self._shown : end], end
            if self._watches:
                self._match([self._rest[:end]])
            self._log_later([fresh])

    def _match(self, lines: list[bytes]) -> None:
        for line in lines:
            text = _text(line)
            for waiting, pattern in list(self._watches.items()):
                if not waiting.done() and (found := pattern.search(text)):
                    waiting.set_result(found)

    # --- lines to records -----------------------------------------------------------------------------

    def _log_later(self, lines: list[bytes]) -> None:
        self._backlog.extend(lines)
        self._backlog_bytes += sum(map(len, lines))
        most_lines, most_bytes = BACKLOG
        while len(self._backlog) > most_lines or self._backlog_bytes > most_bytes:
            self._backlog_bytes -= len(self._backlog.popleft())
            self._dropped += 1
        if self._logging is None and self._backlog:
            self._drained.clear()
            self._logging = self._loop.call_soon(self._log_some)

    def _log_some(self) -> None:
        end = time.perf_counter() + SLICE
        while self._backlog and time.perf_counter() < end:
            for _ in range(min(16, len(self._backlog))):
                line = self._backlog.popleft()
                self._backlog_bytes -= len(line)
                self._log(_text(line))
        if self._dropped and (not self._backlog or end > self._report_at):
            self._report(end)
        if self._backlog:
            self._logging = self._loop.call_soon(self._log_some)
        else:
            self._logging = None
            self._drained.set()

    def _report(self, now: float) -> None:
        dropped, self._dropped, self._report_at = self._dropped, 0, now + REPORTS
        self._logger.warning("%d lines were dropped here: they came faster than they can be logged", dropped)

    def _log(self, line: str) -> None:
        if not line:
            return
        if self._level is None:
            level = guess_level(line, self._last_level)
        else:
            level = self._level(line) if callable(self._level) else self._level
        self._last_level = level
        logger = self._logger
        if logger.isEnabledFor(level):  # and without `log`, which would look for the caller of each line
            logger.handle(logger.makeRecord(logger.name, level, "(service)", 0, line, (), None))


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")


def _cut(line: bytes) -> bytes:
    return line if len(line) <= LONGEST else line[:LONGEST] + CUT
