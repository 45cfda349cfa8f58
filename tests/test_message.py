"""What travels: headers as text and bytes, keys, ids, times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import Broker, Headers, Message, Outgoing, Receipt


def test_headers_are_a_read_only_mapping_that_keeps_repeats_order_and_bytes() -> None:
    headers = Headers([("a", "1"), ("b", b"\xff"), ("a", "2")])
    assert dict(headers) == {"a": "2", "b": "\\xff"}
    assert headers["a"] == "2"
    assert headers.get("c", "none") == "none"
    assert headers.get_all("a") == ["1", "2"]
    assert headers.get_all("c") == []
    assert headers.get_bytes("b") == b"\xff"
    assert headers.get_bytes("c") is None
    assert headers.pairs == (("a", b"1"), ("b", b"\xff"), ("a", b"2"))
    assert len(headers) == 2
    assert "a" in headers
    assert bool(headers)
    assert not Headers()
    with pytest.raises(TypeError):
        headers["a"] = "3"  # type: ignore[index]  # that is what is tested
    with pytest.raises(KeyError):
        headers["c"]


def test_headers_equal_those_with_the_same_pairs_and_mappings_with_the_same_text() -> None:
    assert Headers({"a": "1"}) == Headers([("a", b"1")]) == {"a": "1"}
    assert Headers([("a", "1"), ("a", "1")]) != Headers({"a": "1"})
    assert hash(Headers({"a": "1"})) == hash(Headers({"a": "1"}))
    assert repr(Headers({"a": "1"})) == "Headers({'a': '1'})"


@given(
    one=st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=3))),
    other=st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=3))),
)
def test_merged_headers_take_the_place_of_their_namesakes(one: Any, other: Any) -> None:
    merged = Headers(one).merged(other)
    names = {name for name, _ in other}
    for name in "abc":
        assert merged.get_all(name) == [value for n, value in (other if name in names else one) if n == name]


def test_headers_that_ask_for_something_are_noticed() -> None:
    assert Headers({"hw-reply-to": "x"}).control
    assert not Headers({"hw-type": "Order"}).control


@pytest.mark.parametrize(("raw", "key"), [(None, None), (b"", ""), (b"k", "k"), (b"\xff", "\\xff")])
def test_a_key_is_text_with_its_bytes_beside_it(raw: bytes | None, key: str | None) -> None:
    message = Message("t", b"", raw)
    assert (message.key, message.key_bytes) == (key, raw)


def test_a_message_knows_its_place_its_time_and_its_id() -> None:
    message = Message("t", b"5", None, Headers({"hw-correlation": "c", "hw-reply-to": "r"}), 2, 7, 1.5, "g")
    assert message.id == "t/2/7"
    assert message.timestamp == datetime.fromtimestamp(1.5, UTC)
    assert (message.correlation_id, message.reply_to, message.group, message.attempt) == ("c", "r", "g", 1)
    assert message.value == 5
    assert Message("t", b"", headers=Headers({"hw-id": "chosen"})).id == "chosen"
    assert "t/2/7" in repr(message)
    assert Receipt("t", time=1.5).timestamp == message.timestamp


async def test_a_message_cannot_be_settled_by_hand_unless_that_was_declared() -> None:
    for settle in (Message.ack, Message.nack, Message.reject, Message.extend):
        with pytest.raises(RuntimeError, match="manual"):
            await settle(Message("t", b""))


async def test_headers_and_keys_travel_as_they_are() -> None:
    pairs = [("a", "1"), ("a", "2"), ("raw", b"\xff\x00"), ("empty", "")]
    async with Broker("memory://") as broker:
        await broker.publish(b"x", "t", key=b"\xff", headers=pairs)
        await broker.publish_many([Outgoing(b"x", "t", key="é", headers={"a": "1"})])
        await broker.publish(b"x", "t", key="")
        async with broker.stream("t", start="earliest", limit=3) as stream:
            got = {message.key_bytes: message.headers.pairs async for message in stream}
    assert got[b"\xff"] == tuple((name, v.encode() if isinstance(v, str) else v) for name, v in pairs)
    assert got["é".encode()] == (("a", b"1"),)
    assert got[b""] == ()
