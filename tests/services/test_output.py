"""What a service writes becomes lines, kept and logged, within bounds that hold whatever it writes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from headwater.services import Service
from headwater.services.output import BACKLOG, CUT, KEPT, LONGEST, Output, guess_level
from waiting import until

from .children import FOREVER, python

NAME = "headwater.service.test"


@asynccontextmanager
async def pipe() -> AsyncIterator[tuple[Output, int]]:
    """An output, and the descriptor to write to it; it has finished in the end, and the descriptor is closed."""
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    os.set_blocking(ours, False)
    output = Output(logging.getLogger(NAME))
    output.read(theirs)
    try:
        yield output, ours
    finally:
        await output.finish()
        os.close(ours)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == NAME]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


async def test_lines_are_logged_under_the_name_of_the_service(caplog: pytest.LogCaptureFixture) -> None:
    async with Service("pricing", python(f"print('ready 100%')\n{FOREVER}")) as service:
        await until(lambda: len(service.lines) == 2)
    found = [record for record in caplog.records if record.name == "headwater.service.pricing"]
    assert [record.getMessage() for record in found] == ["ready 100%", "up"]


async def test_a_line_is_whole_however_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    async with pipe() as (output, write):
        for byte in "grün\r\n日本\n\nlast\n".encode():
            os.write(write, bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: output.lines[-1:] == ["last"])
    assert output.lines == ["grün", "日本", "", "last"]
    assert logged(caplog) == ["grün", "日本", "last"]  # blank lines are kept, and not worth a record


async def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    async with pipe() as (output, write):
        os.write(write, b"caf\xe9 \xff\n")
    assert output.lines == ["caf\ufffd \ufffd"]


async def test_a_line_without_an_end_is_shown_after_a_moment_and_no_character_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pipe() as (output, write):
        os.write(write, "password für ".encode()[:-3])  # in the middle of the ü
        await until(lambda: logged(caplog) == ["password f"])
        os.write(write, "ür ada: ".encode()[1:] + b"ok\n")
        await until(lambda: len(logged(caplog)) == 2)
        assert output.lines == ["password für ada: ok"]
    assert "".join(logged(caplog)) == "password für ada: ok"


async def test_what_has_no_end_when_the_service_ends_is_shown_too(caplog: pytest.LogCaptureFixture) -> None:
    async with pipe() as (output, write):
        os.write(write, b"fatal: no space left")
    assert output.lines == logged(caplog) == ["fatal: no space left"]


async def test_a_pattern_is_found_over_chunks_and_in_a_line_without_an_end() -> None:
    async with pipe() as (output, write):
        split, unfinished = output.watch(re.compile("Server - Started")), output.watch(re.compile("login:"))
        os.write(write, b"INFO Server - ")
        await asyncio.sleep(0.5)  # so long that the first half is shown by itself
        os.write(write, b"Started in 3 s\n")
        assert (await split).string == "INFO Server - Started in 3 s"
        os.write(write, b"login:")
        assert (await unfinished)[0] == "login:"


async def test_an_endless_line_is_cut_and_what_follows_is_read(caplog: pytest.LogCaptureFixture) -> None:
    code = f"import sys\nsys.stdout.write('x' * 10_000_000)\nprint()\nprint('y' * {LONGEST + 1})\n{FOREVER}"
    async with Service("test", python(code)) as service:
        await until(lambda: service.lines[-1:] == ["up"])
        assert [len(line) for line in service.lines] == [LONGEST + len(CUT), LONGEST + len(CUT), 2]
    assert [text[LONGEST - 1 :] for text in logged(caplog)[:2]] == ["x" + CUT.decode(), "y" + CUT.decode()]


async def test_a_burst_is_logged_whole(caplog: pytest.LogCaptureFixture) -> None:
    code = f"import sys\nsys.stdout.write(''.join(f'{{n}}\\n' for n in range(8000)))\n{FOREVER}"
    async with Service("test", python(code)) as service:
        await until(lambda: service.lines[-1:] == ["up"])
    assert logged(caplog) == [*map(str, range(8000)), "up"]


async def test_lines_that_come_faster_than_they_are_logged_are_dropped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Slow(logging.Handler):
        count = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.count += 1
            time.sleep(0.0002)

    logger, slow = logging.getLogger(NAME), Slow()
    logger.addHandler(slow)
    total, watched = 60_000, "line 59999"
    code = f"import sys\nsys.stdout.write(''.join(f'line {{n}}\\n' for n in range({total})))\n{FOREVER}"
    try:
        async with Service("test", python(code)) as service:
            await until(lambda: service.lines[-2:] == [watched, "up"])
            assert len(service.lines) == KEPT
    finally:
        logger.removeHandler(slow)
    reports = [record for record in caplog.records if "were dropped here" in record.getMessage()]
    dropped = sum(int(record.getMessage().split()[0]) for record in reports)
    assert 1 <= len(reports) <= 3
    assert dropped > total - BACKLOG[0] * 4
    assert slow.count - len(reports) == total + 1 - dropped


async def test_a_flood_does_not_hold_up_the_loop() -> None:
    logger = logging.getLogger("headwater.service.flood")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    code = "import sys\nwhile True: sys.stdout.write('a line as many have it, neither long nor short\\n' * 500)"
    delays = []
    async with Service("flood", python(code)):
        for _ in range(200):
            begun = time.perf_counter()
            await asyncio.sleep(0)
            delays.append(time.perf_counter() - begun)
    assert sorted(delays)[190] < 0.02  # the bench has the real bound; this machine may be busy


async def test_a_level_is_given_by_number_name_or_function(caplog: pytest.LogCaptureFixture) -> None:
    for level in (logging.ERROR, "ERROR", lambda line: logging.ERROR if line == "up" else logging.DEBUG):
        caplog.clear()
        async with Service("test", python(FOREVER), log_level=level) as service:
            await until(lambda: service.lines == ["up"])
        assert [record.levelname for record in caplog.records if record.name == NAME] == ["ERROR"]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("2026-01-01 10:00:00,123 ERROR [main] kafka: no", "ERROR"),
        ("[2026-01-01 10:00:00,123] WARN no (kafka.server)", "WARNING"),
        ("12:00:00.123 [main] DEBUG com.example - x", "DEBUG"),
        ("FATAL: role does not exist", "CRITICAL"),
        ("2026/01/01 10:00:00 [error] 1#1: nginx", "ERROR"),
        ('{"level":"warn","msg":"x"}', "WARNING"),
        ('{"level": 50, "msg": "x"}', "ERROR"),
        ('{"severity": "INFO", "message": "an ERROR"}', "INFO"),
        ("time=x level=debug msg=x", "DEBUG"),
        ("no error was found, 0 warnings", "INFO"),
        ("INFORMATION", "INFO"),
        ("{'level': 'strange'}", "INFO"),
        ("", "INFO"),
    ],
)
def test_levels_are_guessed(line: str, level: str) -> None:
    assert logging.getLevelName(guess_level(line)) == level


def test_a_traceback_has_the_level_of_its_first_line() -> None:
    assert guess_level("\tat com.example.Main.main(Main.java:3)", before=logging.ERROR) == logging.ERROR
    assert guess_level("next", before=logging.ERROR) == logging.INFO
