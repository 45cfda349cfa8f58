"""`make bench`: every table, or those named: `make bench ARGS="overhead imports"`."""

from __future__ import annotations

import platform
import sys
from importlib import import_module

TABLES = (
    "overhead",
    "imports",
    "publishing",
    "consuming",
    "latency",
    "blocking",
    "growth",
    "services",
    "streams",
    "fluvio",
)


def main() -> None:
    wanted = sys.argv[1:] or TABLES
    unknown = set(wanted) - set(TABLES)
    if unknown:
        sys.exit(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print("Ratios say how many times better Headwater is; medians of interleaved rounds in this one run.\n")
    for table in wanted:
        print(import_module(f"bench.{table}").main(), flush=True)


if __name__ == "__main__":
    main()
