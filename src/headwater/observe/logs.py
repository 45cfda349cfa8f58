"""Logging as Headwater sets it up when it owns the process, through the standard library."""

from __future__ import annotations

import json
import logging
import logging.config
import sys
import time
from typing import Any, Final, Literal

from ..handler import HANDLED

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
_COLOURS: Final = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class TextFormatter(logging.Formatter):
    """Time, level, logger, text, and the message that was being handled; levels in colour on a terminal."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
        self._colour = colour

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        handled = getattr(record, "message_id", None)
        if handled is not None and handled not in record.message:
            text = f"{text} [{handled}]"
        if not self._colour:
            return text
        level = f"{record.levelname:<8}"
        return text.replace(level, f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m", 1)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, the `extra` fields, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)

    converter = staticmethod(time.gmtime)


def name_message(record: logging.LogRecord) -> bool:
    """Tell a record which message was being handled: its topic, partition, offset, group and id. A logging filter.

    Of a batch it is the first one, with `messages`, how many there are.
    """
    handled = HANDLED.get()
    if handled is not None:
        first = handled[0] if isinstance(handled, tuple) else handled
        record.topic, record.partition, record.offset = first.topic, first.partition, first.offset
        record.group, record.message_id = first.group, first.id
        if first is not handled:
            record.messages = len(handled)
    return True


def are_configured() -> bool:
    """Whether `configure_logging` did it, so that records want to name the message that is handled."""
    return any(name_message in handler.filters for handler in logging.getLogger().handlers)


def configure_logging(level: str | int = "INFO", format: Literal["text", "json"] = "text") -> None:
    """Send the logs of this process to stderr, as `headwater run` does. Call it before the app starts.

    What is logged while a message is handled names it: in brackets, or as the fields topic, partition, offset, group
    and message_id. `level` is for everything; loggers that other libraries configured themselves are left alone.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(name_message)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter(colour=sys.stderr.isatty()))
    logging.basicConfig(level=level if isinstance(level, int) else level.upper(), handlers=[handler], force=True)
