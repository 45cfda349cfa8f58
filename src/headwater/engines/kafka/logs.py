"""What the client library has to say, in our logs instead of on standard error."""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger("headwater.kafka.library")


class LibraryLog:
    """Takes the library's lines for debugging: what matters of them reaches us as an error, and is told once."""

    def log(self, _level: int, text: str, *arguments: Any) -> None:
        _log.debug(text, *arguments)
