"""Imports point down: message ← engine protocol ← engines and log ← app ← tools; no engine is asked for by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import headwater

ROOT = Path(headwater.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# The floors of the house, the lowest first. A module imports from its own floor and those below, at import time;
# what it needs from above only for its types, or only when called, it imports there.
FLOORS = [
    ("clock", "errors", "forks", "places", "topics"),
    ("message",),
    ("codecs", "retry"),
    ("engine", "inbox", "letters", "order", "watermark"),
    ("depends", "handler", "results", "settle", "worker", "router", "consumer", "publisher", "replies", "stream"),
    ("admin", "dead", "broker"),
    ("log", "engines"),
    ("wiring",),
    ("app", "services", "middleware", "observe", "sync"),
    ("__init__", "testing", "asyncapi", "integrations", "cli", "console", "__main__"),
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}

# A broker finds its engine by URL: the one place that looks up, and it imports no engine by doing so.
ALLOWED = {("broker", "engines")}


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules of headwater that a file imports, as dotted names below it, and whether at import time."""
    tree = ast.parse(path.read_text())
    package = path.relative_to(ROOT).parent.parts if path.name != "__init__.py" else path.parent.relative_to(ROOT).parts
    late = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)
        and (not isinstance(node, ast.If) or "TYPE_CHECKING" in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            name = ".".join((*base, *(node.module or "").split("."))).strip(".")
            for alias in node.names:
                yield (name or alias.name), node not in late
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headwater"):
            yield (node.module or "").removeprefix("headwater").lstrip(".") or "__init__", node not in late
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("headwater"):
                    yield alias.name.removeprefix("headwater").lstrip(".") or "__init__", node not in late


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_from_its_own_floor_and_those_below(path: Path) -> None:
    mine = room_of(path)
    assert mine in FLOOR, f"{mine} is a new room: give it a floor"
    for name, at_import_time in imports_of(path):
        room = name.partition(".")[0]
        if at_import_time and (mine, room) not in ALLOWED and name != "__version__":
            assert FLOOR[room] <= FLOOR[mine], f"{path.relative_to(ROOT)} imports {name}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_outside_engines_asks_for_an_engine_by_name(path: Path) -> None:
    if room_of(path) in ("engines", "log"):
        return
    engines = {found.stem for found in (ROOT / "engines").iterdir() if found.stem != "__init__"} - {"__pycache__"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                assert not (isinstance(side, ast.Constant) and side.value in engines), (
                    f"{path.relative_to(ROOT)}:{node.lineno} asks for {side.value!r}: ask for a capability"  # type: ignore[attr-defined]  # a Constant
                )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_lazy_names_testing_and_the_shell_import_an_engine(path: Path) -> None:
    if room_of(path) in ("engines", "log", "__init__", "testing", "cli"):
        return
    for name, _ in imports_of(path):
        assert not name.startswith("engines."), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_knows(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert not {"utils", "base", "helpers", "mixins", "common", "misc"} & {path.stem, *path.relative_to(ROOT).parts}
