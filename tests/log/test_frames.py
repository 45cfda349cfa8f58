import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.log import frames
from headwater.log.frames import BadFrameError, CursorCommit, Run

record = st.tuples(st.none() | st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=50))
columns = st.lists(record, min_size=1, max_size=20)


def framed(runs: list[Run], cursors: list[CursorCommit] | None = None) -> bytes:
    draft = frames.encode(runs, cursors or [])
    count = len(runs)
    return frames.stamp(draft, 7, 4096, [5] * count, [0] * count, 1_000_000, 42, 0) + draft.body


def decoded(data: bytes, stream: int) -> tuple[list[bytes | None], list[bytes], list[bytes]]:
    header = frames.read_header(data, 0, 7, 4096)
    frames.verify_meta(data, 0, header)
    index = frames.find_run(data, 0, header, stream)
    run = frames.read_run(data, 0, index)
    body = data[run.start : frames.run_end(data, 0, header, index)]
    assert frames.crc32(body) == run.crc
    found = frames.decode_body(body, run.records, run.columns)
    return tuple(map(list, found))  # type: ignore[return-value]


@given(st.dictionaries(st.integers(0, 2**32 - 1), columns, min_size=1, max_size=8))
def test_what_was_encoded_comes_back(runs: dict[int, list[tuple[bytes | None, bytes, bytes]]]) -> None:
    data = framed([Run(stream, *map(list, zip(*rows, strict=True))) for stream, rows in runs.items()])
    for stream, rows in runs.items():
        assert list(zip(*decoded(data, stream), strict=True)) == rows


@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 1_000_000])
def test_any_length_comes_back(size: int) -> None:
    big = bytes(size)
    assert decoded(framed([Run(1, [big, None], [big, b""], [big, b"x"])]), 1) == (
        [big, None],
        [big, b""],
        [big, b"x"],
    )
    assert decoded(framed([Run(1, [big], [b""], [b""])]), 1) == ([big], [b""], [b""])


def test_cursors_ride_along() -> None:
    cursors = [CursorCommit("billing", 3, 2**40), CursorCommit("größe", 4, 0)]
    data = framed([Run(1, [None], [b""], [b"v"])], cursors)
    assert frames.read_cursors(data, 0, frames.read_header(data, 0, 7, 4096)) == cursors


def test_any_flipped_bit_is_noticed() -> None:
    data = framed([Run(1, [b"k"], [b"h"], [b"value"]), Run(9, [None] * 2, [b""] * 2, [b"a", b"b"])])
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((BadFrameError, AssertionError)):
            [decoded(bytes(flipped), stream) for stream in (1, 9)]


def test_a_frame_of_another_place_is_not_taken() -> None:
    data = framed([Run(1, [None], [b""], [b"v"])])
    for segment, position in ((8, 4096), (7, 4097)):
        with pytest.raises(BadFrameError):
            frames.read_header(data, 0, segment, position)


def test_a_stream_is_found_among_many() -> None:
    streams = random.Random(1).sample(range(10_000), 500)
    data = framed([Run(stream, [None], [b""], [b"%d" % stream]) for stream in streams])
    for stream in streams:
        assert decoded(data, stream)[2] == [b"%d" % stream]
    header = frames.read_header(data, 0, 7, 4096)
    assert frames.find_run(data, 0, header, 10_001) == -1


def test_wrong_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="one run of a stream"):
        frames.encode([Run(1, [None], [b""], [b"v"])] * 2)
    with pytest.raises(ValueError, match="one length"):
        frames.encode([Run(1, [None], [], [b"v"])])
    with pytest.raises(ValueError, match="one length"):
        frames.encode([Run(1, [], [], [])])
