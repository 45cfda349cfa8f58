"""Positions of a group: nothing acknowledged is forgotten, nothing else is taken for done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import StoreCorruptError
from headwater.log.cursors import HEADER, PAGE, SWEEP, WINDOW, CursorFile, CursorPage, blank_page

NAME = "group 'shop' on 'orders'[0] (stream 7)"


def one_page(folder: Path, watermark: int = 0) -> tuple[CursorFile, CursorPage]:
    file = CursorFile.create(folder / f"{os.urandom(4).hex()}.cursors", [blank_page(NAME, 1, watermark)])
    return file, file.page(0, NAME)


def reopened(file: CursorFile) -> CursorPage:
    return CursorFile(file.path).page(0, NAME)


def pending(page: CursorPage, end: int) -> list[int]:
    """The offsets that are still to be delivered below `end`."""
    found, position = [], page.watermark
    while position < end:
        first, count, _ = page.next_run(position, end - position)
        found += range(first, first + count)
        position = first + count
    return found


def test_acknowledgements_may_come_in_any_order(tmp_path: Path) -> None:
    _, page = one_page(tmp_path)
    page.deliver(0, 5)
    for offset in (3, 1, 4):
        page.ack(offset)
    assert page.watermark == 0
    page.ack(0)
    assert page.watermark == 2
    page.ack(2)
    assert page.watermark == 5


def test_what_was_acknowledged_is_skipped_after_a_restart(tmp_path: Path) -> None:
    file, page = one_page(tmp_path)
    page.deliver(0, 10)
    page.ack(2)
    page.ack(5, 3)
    assert pending(reopened(file), 10) == [0, 1, 3, 4, 8, 9]


def test_a_fresh_run_comes_whole_and_what_was_delivered_shows_its_attempt(tmp_path: Path) -> None:
    file, page = one_page(tmp_path)
    page.deliver(0, 3)
    assert page.next_run(0, 100) == (0, 3, 2)
    page.begin(1, 2)
    again = reopened(file)
    assert again.next_run(0, 100) == (0, 1, 2)
    assert again.next_run(1, 100) == (1, 1, 3)
    assert again.next_run(2, 100) == (2, 1, 2)
    again.ack(0, 3)
    assert reopened(file).next_run(3, 100) == (3, 100, 1)


def test_attempts_are_counted_up_to_a_limit_and_never_read_as_done(tmp_path: Path) -> None:
    _, page = one_page(tmp_path)
    for attempt in range(300):
        page.begin(0, attempt)
    assert page.next_run(0, 1) == (0, 1, 127)
    assert page.watermark == 0


def test_an_attempt_at_what_is_done_changes_nothing(tmp_path: Path) -> None:
    _, page = one_page(tmp_path)
    page.ack(1)
    page.begin(1, 2)
    page.ack(0)
    assert page.watermark == 2
    page.begin(0, 2)
    assert page.next_run(2, 5) == (2, 5, 1)


def test_what_is_given_back_was_not_delivered(tmp_path: Path) -> None:
    _, page = one_page(tmp_path)
    page.deliver(0, 4)
    page.ack(1)
    page.give_back(4)
    assert page.next_run(0, 10) == (0, 1, 1)
    assert page.next_run(1, 10) == (2, 9, 1)  # 2 and 3 too: nobody died over them


def test_the_watermark_goes_back_only_by_a_reset(tmp_path: Path) -> None:
    _, page = one_page(tmp_path, 100)
    page.advance(50)
    page.ack(10, 20)
    assert page.watermark == 100
    page.reset(20)
    assert page.watermark == 20
    assert page.next_run(20, 10) == (20, 10, 1)


def test_a_reset_undoes_the_transactions_before_it_also_after_a_power_loss(tmp_path: Path) -> None:
    _, page = one_page(tmp_path)
    page.stage(10, frame=5, boot=77)
    page.settle(5, 77)
    page.reset(0, frame=5)
    page.stage(10, frame=5, boot=78)
    page.settle(9, 78)
    assert page.watermark == 0
    page.stage(3, frame=6, boot=78)
    page.settle(9, 78)
    assert page.watermark == 3


def test_an_offset_out_of_reach_cannot_be_acknowledged(tmp_path: Path) -> None:
    _, page = one_page(tmp_path)
    assert page.next_run(0, 2 * WINDOW) == (0, WINDOW, 1)
    with pytest.raises(ValueError, match="was not delivered"):
        page.ack(WINDOW)


def test_a_jump_over_the_whole_window_leaves_no_old_marks(tmp_path: Path) -> None:
    _, page = one_page(tmp_path)
    page.deliver(0, 100)
    page.ack(50, 50)
    page.advance(3 * WINDOW + 7)
    assert page.next_run(3 * WINDOW + 7, 1000) == (3 * WINDOW + 7, 1000, 1)


def test_a_transaction_counts_once_its_frame_is_durable(tmp_path: Path) -> None:
    _, page = one_page(tmp_path)
    page.stage(10, frame=5, boot=77)
    page.stage(10, frame=5, boot=77)
    page.settle(4, 77)
    assert page.watermark == 0
    page.settle(5, 77)
    assert page.watermark == 10


def test_a_transaction_staged_before_a_power_loss_does_not_count(tmp_path: Path) -> None:
    _, page = one_page(tmp_path)
    page.stage(10, frame=5, boot=77)
    page.settle(9, boot=78)
    assert page.watermark == 0
    page.stage(6, frame=5, boot=78)
    page.settle(5, boot=78)
    assert page.watermark == 6


def test_a_zombie_writes_to_a_page_that_nobody_reads(tmp_path: Path) -> None:
    file, zombie = one_page(tmp_path)
    zombie.deliver(0, 10)
    zombie.ack(4)
    zombie.retire()
    taken = CursorFile.create(tmp_path / "taken.cursors", [zombie.copied(2)])
    page = taken.page(0, NAME)
    file.path.unlink()
    zombie.ack(0, 10)
    assert zombie.retired
    assert not page.retired
    assert (page.generation, page.watermark) == (2, 0)
    assert pending(page, 10) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert page.next_run(0, 10) == (0, 4, 2)


@given(st.integers(0, 1 << 30), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_any_order_of_runs_ends_at_the_same_place_as_a_set_would(seed: int, start: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        acknowledge_at_random(random.Random(seed), start, Path(folder))


def acknowledge_at_random(rng: random.Random, start: int, folder: Path) -> None:
    file, page = one_page(folder, start)
    done: set[int] = set()
    low = start
    for _ in range(60):
        first = low + rng.randrange(3000)
        count = min(rng.choice([1, 1, 1, 7, 250, 3000]), page.limit - first)
        if count <= 0:
            continue
        page.ack(first, count)
        done.update(range(first, first + count))
        if rng.random() < 0.3:
            page = reopened(file)
        if rng.random() < 0.3:
            page.ack(low, first - low + 1)
            done.update(range(low, first + 1))
        while low in done:
            low += 1
        assert page.watermark == low
    reach = min(low + 5000, page.limit)
    assert pending(page, reach) == [offset for offset in range(low, reach) if offset not in done]


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("position", [3, 9, 20, 24, 65, 70, HEADER + 2])
def test_a_flipped_bit_is_noticed_and_named(tmp_path: Path, position: int, bit: int) -> None:
    file, page = one_page(tmp_path)
    page.deliver(0, 10)
    page.ack(5)
    page.ack(0, 2)
    content = bytearray(file.path.read_bytes())
    content[position] ^= 1 << bit
    file.path.write_bytes(content)

    def read() -> None:
        again = reopened(file)
        again.next_run(again.watermark, 100)

    with pytest.raises(StoreCorruptError, match=r"orders.*reset"):
        read()


def test_a_page_of_another_partition_is_noticed(tmp_path: Path) -> None:
    file, _ = one_page(tmp_path)
    with pytest.raises(StoreCorruptError, match="another partition"):
        CursorFile(file.path).page(0, "group 'shop' on 'orders'[1] (stream 8)")


def test_a_cut_or_missing_file_is_named(tmp_path: Path) -> None:
    file, _ = one_page(tmp_path)
    os.truncate(file.path, PAGE - 1)
    with pytest.raises(StoreCorruptError, match="cut"):
        CursorFile(file.path)
    file.path.unlink()
    with pytest.raises(StoreCorruptError, match="missing"):
        CursorFile(file.path)


WORKER = """
import sys
import tempfile
from pathlib import Path
from headwater.log.cursors import CursorFile
page = CursorFile(Path(sys.argv[1])).page(0, sys.argv[2])
out = open(1, 'wb', buffering=0)
position = page.watermark
while True:
    first, count, attempt = page.next_run(position, 64)
    page.deliver(first, count)
    for offset in reversed(range(first, first + count)):
        page.ack(offset)
        out.write(b"%d\\n" % offset)
    position = first + count
"""


def test_acknowledgements_survive_kills_at_random_moments(tmp_path: Path) -> None:
    file, _ = one_page(tmp_path)
    acknowledged: set[int] = set()
    lowest = 0
    for kills in range(1, 9):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(file.path), NAME], stdout=subprocess.PIPE, bufsize=0
        )
        assert worker.stdout is not None
        lines, enough = b"", random.randrange(1, 60_000)
        while len(lines) < enough:
            lines += worker.stdout.read(enough - len(lines))
        worker.send_signal(signal.SIGKILL)
        lines += worker.stdout.read()
        worker.wait()
        worker.stdout.close()
        acknowledged.update(int(line) for line in lines.split(b"\n")[:-1])
        page = reopened(file)
        assert page.watermark >= lowest
        lowest = page.watermark
        end = max(acknowledged, default=0) + 1
        still = pending(page, min(end, page.limit))
        assert not acknowledged & set(still)
        # Of each kill at most one is done whose line was not written any more.
        assert len(set(range(end)) - acknowledged - set(still)) <= kills
    assert lowest > SWEEP
