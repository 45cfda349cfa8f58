"""What results look like on a terminal and off it, and what it costs to have a command line at all."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from datetime import timedelta

import pytest
import typer

from headwater import Outgoing
from headwater.cli.output import duration, plain, size
from headwater.cli.parameters import read_duration, read_moment, read_place, read_size

from .conftest import PATIENCE, Shell


def on_terminal(shell: Shell, *arguments: object, typed: str = "", code: int = 0) -> str:
    """What a person sees who runs this and types that."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        shell.command(*arguments), cwd=shell.path, env=shell.environment | {"TERM": "xterm", "COLUMNS": "100"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    seen = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # how a terminal says that its last user has left
            break
        seen += data
    os.close(ours)
    assert process.wait(PATIENCE) == code, seen.decode()
    return seen.decode()


def test_a_terminal_gets_a_table(shell: Shell) -> None:
    shell.publish(Outgoing(1, "orders"))
    seen = on_terminal(shell, "topics", "list", shell.url)
    assert "────" in seen
    assert "orders" in seen


def test_a_terminal_is_asked_before_anything_is_destroyed(shell: Shell) -> None:
    shell.publish(Outgoing(1, "orders"))
    seen = on_terminal(shell, "topics", "delete", shell.url, "orders", typed="n\n", code=1)
    assert "Delete topic 'orders' and its 1 message?" in seen
    assert "nothing was changed" in seen
    assert "deleted orders" in on_terminal(shell, "topics", "delete", shell.url, "orders", typed="y\n")


def test_publishing_much_shows_on_a_terminal_how_many_and_how_fast(shell: Shell) -> None:
    shell.write("notes.txt", "note\n" * 5000)
    seen = on_terminal(shell, "publish", shell.url, "notes", "--file", "notes.txt")
    assert "a second" in seen
    assert "published 5000 messages to notes" in seen


def test_a_pipe_gets_plain_text(shell: Shell) -> None:
    shell.publish(Outgoing(1, "orders"))
    out = shell("topics", "list", shell.url).stdout
    assert out.isascii()
    assert out.splitlines()[0].split() == ["TOPIC", "PARTITIONS", "MESSAGES", "SIZE", "RETENTION"]
    assert shell("--help").stdout.isascii()


def test_the_version_is_told(shell: Shell) -> None:
    import headwater

    assert shell("--version").stdout == f"headwater {headwater.__version__}\n"


def test_wrong_usage_exits_2(shell: Shell) -> None:
    shell("run", code=2)
    shell("topics", "lst", "memory://", code=2)


def test_importing_headwater_imports_nothing_of_the_command_line() -> None:
    code = "import headwater, sys; print([m for m in ('typer', 'rich', 'headwater.cli') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_quantities_are_read_and_written() -> None:
    assert read_duration("90s") == timedelta(seconds=90)
    assert read_duration("1.5h") == timedelta(minutes=90)
    assert read_duration("forever") is None
    assert [duration(timedelta(seconds=s)) for s in (604800, 5400, 90, 0.5)] == ["7d", "90m", "90s", "0.5s"]
    assert (read_size("512MiB"), read_size("1GB"), read_size("10")) == (512 << 20, 10**9, 10)
    assert (size(None), size(10), size(1536), size(300 << 30)) == (None, "10 B", "1.5 KiB", "300 GiB")
    assert read_place("3:17") == (3, 17)
    assert read_place("0:1700-0") == (0, "1700-0")
    assert read_moment("2026-01-31T12:00").tzinfo is not None
    for read in (read_duration, read_size, read_moment, read_place):
        with pytest.raises(typer.BadParameter):
            read("x")


def test_json_carries_bytes_as_text_or_base64() -> None:
    assert plain({"text": b"abc", "other": b"\xff\xfe", "ages": [timedelta(minutes=1)]}) == {
        "text": "abc", "other": "//4=", "ages": [60.0],
    }  # fmt: skip
