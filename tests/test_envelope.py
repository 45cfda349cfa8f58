"""Keys and headers come through engines that carry less of them, whatever they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import DecodeError, Headers
from headwater.codecs.envelope import PACKED, from_text, seal, to_text, unseal
from headwater.message import CONTENT_TYPE, KEY

MAGIC = b"\xc1hw1"
JSON = Headers({CONTENT_TYPE: "application/json"})

names = st.one_of(st.text(), st.sampled_from(["a", "b", KEY, PACKED, CONTENT_TYPE]))
headers = st.lists(st.tuples(names, st.one_of(st.binary(), st.text().map(str.encode)))).map(Headers)
keys = st.one_of(st.none(), st.binary(), st.text().map(str.encode))
bodies = st.one_of(st.binary(), st.binary().map(MAGIC.__add__))


@given(keys, headers, bodies)
def test_what_is_sealed_comes_out_as_it_was(key: bytes | None, given_headers: Headers, body: bytes) -> None:
    found = unseal(seal(key, given_headers, body))
    plain = key is None and given_headers == JSON and not body.startswith(MAGIC)
    assert found == (key, Headers() if plain else given_headers, body)


@pytest.mark.parametrize("plain", [Headers(), JSON])
def test_plain_json_travels_without_an_envelope(plain: Headers) -> None:
    assert seal(None, plain, b'{"a": 1}') == b'{"a": 1}'


def test_json_with_a_key_keeps_its_content_type() -> None:
    assert unseal(seal(b"k", JSON, b"1")) == (b"k", JSON, b"1")


@given(st.binary().filter(lambda body: not body.startswith(MAGIC)))
def test_what_others_wrote_is_a_body_without_headers(body: bytes) -> None:
    assert unseal(body) == (None, Headers(), body)


@given(st.binary())
def test_a_foreign_body_that_begins_like_an_envelope_is_undecodable_or_one(body: bytes) -> None:
    try:
        _, found, rest = unseal(MAGIC + body)
    except DecodeError:
        return
    assert isinstance(found, Headers)
    assert (MAGIC + body).endswith(rest)


@given(keys, headers.filter(bool), st.binary(), st.integers(min_value=0))
def test_an_envelope_cut_short_is_undecodable(key: bytes | None, given_headers: Headers, body: bytes, at: int) -> None:
    sealed = seal(key, given_headers, MAGIC + body)
    head = len(sealed) - len(MAGIC + body)
    cut = sealed[: len(MAGIC) + at % (head - len(MAGIC))]
    with pytest.raises(DecodeError, match="damaged"):
        unseal(cut)


@given(headers.filter(bool), st.integers(min_value=0), st.integers(0, 255))
def test_a_damaged_envelope_raises_nothing_but_that_it_cannot_be_decoded(
    given_headers: Headers, at: int, byte: int
) -> None:
    sealed = bytearray(seal(b"key", given_headers, b"body"))
    sealed[at % len(sealed)] = byte
    with suppress(DecodeError):
        unseal(bytes(sealed))


# --- headers that are text ----------------------------------------------------------------------------


def everything(_name: str, _text: str) -> bool:
    return True


def nothing(_name: str, _text: str) -> bool:
    return False


def printable(name: str, text: str) -> bool:
    return name.isascii() and name.isidentifier() and text.isascii() and text.isprintable() and text == text.strip()


def short(name: str, text: str) -> bool:
    return 0 < len(name) < 5 and len(text) < 5


@pytest.mark.parametrize("fits", [everything, nothing, printable, short])
@pytest.mark.parametrize("repeats", [False, True])
@given(key=keys, given_headers=headers)
def test_what_is_written_as_text_is_read_as_it_was(
    fits: Callable[[str, str], bool], repeats: bool, key: bytes | None, given_headers: Headers
) -> None:
    written = to_text(key, given_headers, fits, repeats=repeats)
    assert all(fits(name, text) for name, text in written if name != PACKED)
    travelled = written if repeats else list(dict(written).items())
    assert from_text(travelled) == (key, given_headers)


def test_text_that_fits_travels_as_it_is_for_others_to_read() -> None:
    given_headers = Headers([("a", "1"), ("b", "é")])
    assert to_text(b"k", given_headers, everything, repeats=False) == [("a", "1"), ("b", "é"), (KEY, "k")]
    names = [name for name, _ in to_text(b"\xff", given_headers, everything, repeats=False)]
    assert names == ["a", "b", PACKED]


def test_headers_of_others_are_read_as_they_are() -> None:
    assert from_text([("a", "1"), ("a", "2"), (KEY, "k")]) == (b"k", Headers([("a", "1"), ("a", "2")]))
    assert from_text([]) == (None, Headers())


@given(st.text())
def test_another_programs_header_of_the_packs_name_harms_nothing(text: str) -> None:
    key, found = from_text([("a", "1"), (PACKED, text)])
    assert isinstance(found, Headers)
    assert key is None or isinstance(key, bytes)


def test_a_header_of_the_packs_name_that_is_none_is_kept() -> None:
    assert from_text([(PACKED, "not one of ours")]) == (None, Headers({PACKED: "not one of ours"}))
