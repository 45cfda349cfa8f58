"""Transactions over a power cut, where the kernel had written out some files and not others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.log import control
from headwater.message import Message, Outgoing

from .conftest import Shop, bodies, take


def image(of: Path, to: Path, *, groups_of: Path | None = None) -> Path:
    """What is on the disk: the journal of one moment, with the cursors of another."""
    shutil.copytree(of, to, ignore=shutil.ignore_patterns("groups", "*.sock"))
    shutil.copytree((groups_of or of) / "groups", to / "groups")
    return to


async def opened(path: Path) -> Shop:
    shop = Shop(path, durability="fsync", clean_interval=1000.0)
    await shop.engine.connect()
    return shop


def bill(message: Message) -> Outgoing:
    return Outgoing(None, "bills", body=message.body)


@pytest.fixture
def power_cut(monkeypatch: pytest.MonkeyPatch) -> object:
    """From the call on the machine is another run of itself."""

    def cut() -> None:
        boot = os.urandom(16)
        monkeypatch.setattr(control, "boot_id", lambda: boot)

    return cut


async def bills_of(shop: Shop) -> list[str]:
    if "bills" not in shop.engine.store.topics():
        return []
    async with shop.reader("bills") as reader:
        return bodies(list(await reader.receive(1000, 0.05)))


async def test_a_committed_position_that_did_not_reach_the_disk_is_told_by_the_journal(
    tmp_path: Path, power_cut: object
) -> None:
    shop = await opened(tmp_path / "store")
    await shop.put(*range(10), partition=0)
    async with shop.member() as member:
        messages = await take(member, 10)
        await member.commit(messages[:3], [bill(m) for m in messages[:3]])
        old = image(shop.path, tmp_path / "old")
        for n in (3, 4, 5):
            await member.commit(messages[n : n + 1], [bill(messages[n])])
        left = image(shop.path, tmp_path / "left", groups_of=old)
    await shop.engine.close()
    power_cut()  # type: ignore[operator]
    after = await opened(left)
    async with after.member() as member:
        assert bodies(await take(member, 4)) == ["6", "7", "8", "9"]
    assert sorted(await bills_of(after)) == ["0", "1", "2", "3", "4", "5"]
    await after.engine.close()


async def test_a_position_whose_frame_did_not_reach_the_disk_does_not_count(tmp_path: Path, power_cut: object) -> None:
    shop = await opened(tmp_path / "store")
    await shop.put(*range(4), partition=0)
    async with shop.member() as member:
        messages = await take(member, 4)
        await member.commit(messages[:1], [bill(messages[0])])
        old = image(shop.path, tmp_path / "old")
        sync = shop.engine.store.sync

        def cut(upto: int) -> None:
            raise OSError("the power went")

        shop.engine.store.sync = cut  # type: ignore[method-assign]
        with pytest.raises(OSError, match="power"):
            await member.commit(messages[1:3], [bill(m) for m in messages[1:3]])
        left = image(old, tmp_path / "left", groups_of=shop.path)
        shop.engine.store.sync = sync  # type: ignore[method-assign]
    await shop.engine.close()
    power_cut()  # type: ignore[operator]
    after = await opened(left)
    async with after.member() as member:
        messages = await take(member, 3)
        assert bodies(messages) == ["1", "2", "3"]
        await member.commit(messages, [bill(m) for m in messages])
    assert sorted(await bills_of(after)) == ["0", "1", "2", "3"]
    await after.engine.close()


async def test_recovery_looks_no_further_back_than_what_was_noted(tmp_path: Path, power_cut: object) -> None:
    shop = await opened(tmp_path / "store")
    await shop.put(*range(6), partition=0)
    async with shop.member() as member:
        messages = await take(member, 6)
        await member.commit(messages[:3], [bill(m) for m in messages[:3]])
        shop.engine.upkeep.clean()
        assert shop.engine.upkeep.problem is None
        noted = image(shop.path, tmp_path / "noted")
        await member.commit(messages[3:5], [bill(m) for m in messages[3:5]])
        left = image(shop.path, tmp_path / "left", groups_of=noted)
    await shop.engine.close()
    power_cut()  # type: ignore[operator]
    after = await opened(left)
    async with after.member() as member:
        assert bodies(await take(member, 1)) == ["5"]
    await after.engine.close()


async def test_a_reset_is_not_undone_by_a_power_cut(tmp_path: Path, power_cut: object) -> None:
    shop = await opened(tmp_path / "store")
    await shop.put(*range(3), partition=0)
    async with shop.member() as member:
        messages = await take(member, 3)
        await member.commit(messages, [bill(m) for m in messages])
    await shop.admin.set_offsets("shop", "orders", {0: 1})
    left = image(shop.path, tmp_path / "left")
    await shop.engine.close()
    power_cut()  # type: ignore[operator]
    after = await opened(left)
    async with after.member() as member:
        assert bodies(await take(member, 2)) == ["1", "2"]
    await after.engine.close()


@pytest.mark.parametrize("acknowledged", [10, 2], ids=["a watermark ahead", "marks ahead"])
async def test_messages_after_a_power_cut_are_not_taken_for_lost_ones(
    tmp_path: Path, power_cut: Callable[[], None], acknowledged: int
) -> None:
    shop = Shop(tmp_path / "store", durability="process", clean_interval=1000.0)
    await shop.engine.connect()
    await shop.put(*range(3), partition=0)
    shop.engine.store.sync(shop.engine.store.end)
    on_disk = tmp_path / "on_disk"
    shutil.copytree(shop.path, on_disk, ignore=shutil.ignore_patterns("groups", "*.sock"))
    await shop.put(*range(3, 10), partition=0)  # these reach the page cache only ...
    async with shop.member() as member:
        messages = await take(member, 10)
        await member.ack(messages[-acknowledged:])  # ... but what the group did with them reaches the disk
        for subscription in shop.engine.group_subscriptions():
            assert subscription.member is not None
            subscription.member.group.sync()
        shutil.copytree(shop.path / "groups", on_disk / "groups")
    await shop.engine.close()
    power_cut()
    after = Shop(on_disk, durability="process")
    await after.engine.connect()
    new = [f"new {number}" for number in range(8)]
    async with after.member() as member:
        await after.put(*new, partition=0)
        received = bodies(list(await member.receive(20, 1.0)))
    assert [body for body in received if body.startswith("new")] == new
    await after.engine.close()
