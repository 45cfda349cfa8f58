"""What topics are called here and in the cluster, which takes lower case letters, digits and hyphens only."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from ...errors import TopicNameError

DOT: Final = "--"  # what a dot is in the cluster: orders.dead is orders--dead there
_LONGEST: Final = 63
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@lru_cache(maxsize=4096)
def native(name: str) -> str:
    """The topic in the cluster. Raises TopicNameError."""
    levels = name.split(".")
    if not all(_NAME.fullmatch(level) and DOT not in level for level in levels):
        rule = "a name in Fluvio has lower case letters, digits, single hyphens, and dots (which are -- there)"
        raise TopicNameError(name, rule)
    found = DOT.join(levels)
    if len(found) > _LONGEST:
        raise TopicNameError(name, f"it has {len(found)} characters in Fluvio, at most {_LONGEST} are possible")
    return found


@lru_cache(maxsize=4096)
def ours(native: str) -> str:
    """What a topic of the cluster is called here."""
    return native.replace(DOT, ".")
