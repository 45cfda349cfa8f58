"""`headwater log`."""

from __future__ import annotations

from pathlib import Path

from headwater import Outgoing

from .conftest import Here, Shell


def damage(shell: Shell) -> Path:
    """Flip a byte in the middle of what is stored."""
    shell.publish(*(Outgoing("x" * 50, "orders", partition=0) for _ in range(3)))
    shell.publish(Outgoing("y" * 50, "orders", partition=0))
    (segment,) = (shell.path / "data").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[data.index(b"x" * 50) + 5] ^= 1
    segment.write_bytes(data)
    return segment


def test_a_log_that_is_well_checks_out(shell: Shell, here: Here) -> None:
    shell.publish(Outgoing(1, "orders"))
    assert here("log", "check", "data").err == "nothing is damaged\n"
    (report,) = here("log", "check", "local://./data", "--json").json
    assert report["damages"] == []
    assert "there is no store here" in here("log", "check", "elsewhere", code=1).err


def test_damage_is_named_and_removed_only_when_wanted(shell: Shell, here: Here) -> None:
    segment = damage(shell)
    before = segment.read_bytes()
    found = here("log", "check", "data", code=1)
    assert segment.name in found.out
    assert "orders[0] 0 to 2" in found.out
    refused = here("log", "repair", "data", code=2)
    assert "this would remove 1 damaged place and the 3 messages lost there: add --yes" in refused.err
    assert segment.read_bytes() == before
    assert "messages lost  3" in here("log", "repair", "data", "--yes").out
    assert here("log", "check", "data").err == "nothing is damaged\n"
    left = here("tail", "local://./data", "orders", "--from", "earliest", "--no-follow", "--format", "{value}").out
    assert left == "y" * 50 + "\n"


def test_reading_what_is_damaged_says_where_and_what_to_do(shell: Shell, here: Here) -> None:
    damage(shell)
    told = here("tail", "local://./data", "orders", "--from", "earliest", "--no-follow", code=1)
    assert "headwater log check" in told.err
    assert "'orders'[0]" in told.err


def test_clean_frees_what_was_purged(shell: Shell, here: Here) -> None:
    shell.publish(*(Outgoing("x" * 1000, "orders") for _ in range(3000)))
    here("topics", "purge", shell.url, "orders", "--yes")
    (done,) = here("log", "clean", "data", "--json").json
    assert done["freed"] > 1_000_000
    assert "there is no store here" in here("log", "clean", "elsewhere", code=1).err
