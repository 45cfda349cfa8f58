"""Topic names: fields, patterns, and those Headwater keeps for itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import App, Message, TestApp, TopicNameError
from headwater.topics import dead_topic, field_names, is_internal, match, retry_topic


@pytest.mark.parametrize(
    ("pattern", "topic", "fields"),
    [
        ("orders", "orders", {}),
        ("orders", "order", None),
        ("orders.{region}", "orders.eu", {"region": "eu"}),
        ("orders.{region}", "orders.eu.west", None),
        ("orders.{region}", "orders.", None),
        ("orders.{region}.created", "orders.eu.created", {"region": "eu"}),
        ("a/{b}/c", "a/x/c", {"b": "x"}),
        ("a/{b}", "a/x.y", None),
        ("files.{rest:path}", "files.a.b.c", {"rest": "a.b.c"}),
        ("{a}.{b:path}", "x.y/z", {"a": "x", "b": "y/z"}),
        ("a+b.{c}", "a+b.1", {"c": "1"}),
        ("a+b.{c}", "aab.1", None),
        ("pre{x}post", "pre-post", {"x": "-"}),
    ],
)
def test_fields_match_one_level_and_paths_all_that_follow(
    pattern: str, topic: str, fields: dict[str, str] | None
) -> None:
    assert match(pattern, topic) == fields


@pytest.mark.parametrize("name", ["orders.dead", "orders.shop.retry", "hw.replies"])
def test_patterns_never_match_topics_headwater_made(name: str) -> None:
    assert is_internal(name)
    assert match("{all:path}", name) is None
    assert match(name, name) == {}


@pytest.mark.parametrize("bad", ["a.{", "a.}", "a.{}", "a.{1x}", "a.{x}.{x}", "a.{x:other}", "{a b}"])
def test_fields_that_are_no_names_are_refused(bad: str) -> None:
    with pytest.raises(TopicNameError) as caught:
        field_names(bad)
    assert caught.value.topic == bad


@given(levels=st.lists(st.from_regex(r"[a-z0-9_-]+", fullmatch=True), min_size=1, max_size=5))
def test_a_field_for_each_level_gives_the_levels_back(levels: list[str]) -> None:
    topic = ".".join(levels)
    found = match(".".join(f"{{f{n}}}" for n in range(len(levels))), topic)
    if is_internal(topic):
        assert found is None
    else:
        assert found == {f"f{n}": level for n, level in enumerate(levels)}


def test_names_of_dead_and_retry_topics() -> None:
    assert dead_topic("orders") == "orders.dead"
    assert retry_topic("orders", "shop") == "orders.shop.retry"
    assert retry_topic("orders.{region}.{rest:path}", "shop") == "orders.region.rest.shop.retry"


async def test_a_pattern_finds_topics_that_come_later_from_their_beginning_and_no_dead_letters() -> None:
    app, got = App("shop"), []

    @app.subscriber("{name:path}", group="all")
    async def everything(body: int, message: Message, name: str) -> None:
        got.append((name, body))
        if body == 13:
            from headwater import Reject

            raise Reject

    async with TestApp(app) as t:
        await t.publish(1, "new.topic")
        await t.publish(13, "new.topic")
        await t.publish(2, "another")
        assert len(t.dead("new.topic")) == 1
    assert got == [("new.topic", 1), ("new.topic", 13), ("another", 2)]
