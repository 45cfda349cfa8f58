"""Every Python block of the docs and the README runs, and prints what the page says it prints.

The blocks of a page run one after the other, in one module and one empty directory:

    python                  runs; `await` may stand at its top level
    python title="shop.py"  is a file: it is written, for later blocks to import and to run
    text                    right after one that runs: all that it prints
    console                 `$ commands`, run in that directory, each with what it prints; `headwater run` goes on
                            beside the rest until the page ends
    anything else           is only read

Times differ, and `...` in expected output stands for anything within its line.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

import pytest

import headwater
from headwater import errors

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

_BLOCK = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00:00)?|\d+ ms")
_TITLE = re.compile(r'title="(.+?)"')


@dataclass
class Block:
    kind: str
    line: int
    text: str
    title: str | None = None
    prints: str | None = None


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page that are run, with what each must print."""
    found: list[Block] = []
    end, content = 0, page.read_text()
    for block in _BLOCK.finditer(content):
        text = re.sub(rf"^{block[1]}", "", block[4], flags=re.MULTILINE)
        text = _SNIPPET.sub(lambda snippet: (ROOT / snippet[1]).read_text().rstrip(), text)
        title = _TITLE.search(block[3])
        follows = not content[end : block.start()].strip()
        if block[2] == "text" and follows and found and found[-1].kind == "python" and not found[-1].title:
            found[-1].prints = text
        elif block[2] in ("python", "console"):
            line = content.count("\n", 0, block.start()) + 2
            found.append(Block(block[2], line, text, title[1] if title else None))
        end = block.end()
    return iter(found)


def agrees(expected: str, printed: str) -> None:
    """Fail unless this was printed."""
    wanted, found = (_TIME.sub("TIME", re.sub(" +$", "", text.strip("\n"), flags=re.M)) for text in (expected, printed))
    pattern = ".*".join(re.escape(part) for part in wanted.split("..."))
    assert re.fullmatch(pattern, found), f"expected:\n{expected}\nprinted:\n{printed}"


class Page:
    """Runs the blocks of one page."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.module = ModuleType(f"page_{page.stem}")
        self.runner = asyncio.Runner()
        self.services: list[subprocess.Popen[str]] = []
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(headwater.__file__).parent.parent),
            "COLUMNS": "120",
            "TZ": "UTC",
        }

    def run(self, block: Block) -> None:
        if block.title:
            Path(block.title).write_text(block.text)
            importlib.invalidate_caches()
        elif block.kind == "console":
            for found in re.finditer(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
                self.run_command(found[1], found[2])
        else:
            self.run_python(block)

    def run_python(self, block: Block) -> None:
        source = "\n" * (block.line - 1) + block.text  # so that tracebacks name the line of the page
        code = compile(source, str(self.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if code.co_flags & 0x80:  # CO_COROUTINE
                self.runner.run(self._await(code))
            else:
                exec(code, self.module.__dict__)
        if block.prints is not None:
            agrees(block.prints, out.getvalue())

    async def _await(self, code: CodeType) -> None:
        await eval(code, self.module.__dict__)

    def run_command(self, command: str, expected: str) -> None:
        if command.startswith("headwater run"):
            service = subprocess.Popen(command.split(), stderr=subprocess.PIPE, text=True, env=self.environment)
            self.services.append(service)
            assert service.stderr is not None
            seen = ""
            while "is ready" not in seen:
                line = service.stderr.readline()
                assert line, f"{command} ended: {seen}"
                seen += line
            agrees(expected, seen)
            return
        done = subprocess.run(
            command,
            shell=True,
            env=self.environment,
            timeout=20,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        agrees(expected, done.stdout)

    def __enter__(self) -> Page:
        sys.modules[self.module.__name__] = self.module
        self.on_sigterm = signal.getsignal(signal.SIGTERM)
        return self

    def __exit__(self, *error: object) -> None:
        del sys.modules[self.module.__name__]
        signal.signal(signal.SIGTERM, self.on_sigterm)
        self.runner.close()
        for service in self.services:
            service.send_signal(signal.SIGTERM)
        for service in self.services:
            service.communicate(timeout=20)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_happens(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    with Page(page) as running:
        for block in blocks_of(page):
            running.run(block)
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_runs_to_its_end(example: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(headwater.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # an example may show what is logged of failures


@pytest.fixture
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "scripts/matrix.py")
    assert spec is not None
    assert spec.loader is not None
    matrix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(matrix)
    return matrix


def test_the_support_matrix_is_what_the_engines_declare(matrix: ModuleType) -> None:
    assert (ROOT / "docs/engines.md").read_text() == matrix.render(), "run `make docs`"


def test_the_support_matrix_knows_the_tests_of_the_contract(matrix: ModuleType) -> None:
    known = {test for seen in matrix.read(matrix.SEEN).values() for test in seen}
    assert known == set(matrix.tests()), "run `make matrix`"


def test_every_error_is_on_the_page_of_errors() -> None:
    page = (ROOT / "docs/errors.md").read_text()
    names = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {name for name in names if f"`{name}`" not in page and f" {name} " not in page} == set()


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs/api.md").read_text()
    listed = set(re.findall(r"^::: headwater\.(\w+)$", page, re.MULTILINE))
    not_errors = {name for name in headwater.__all__ if not hasattr(errors, name)}
    assert not_errors - listed == set()
