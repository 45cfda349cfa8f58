"""The command line: which commands there are, and how one ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..errors import HeadwaterError
from . import cluster, copy, dead, groups, log, messages, partitions, run, topics
from .output import Failure, tell_failure, unfolded

HELP = """Run services on event streams, and look after their topics, groups and messages.

TARGET is an app, as module:app, or the URL of a broker, such as local://./data. Commands that print results print JSON
with --json."""

# Boxes and colours are for people: in a pipe the help is plain.
app = typer.Typer(
    name="headwater",
    help=unfolded(HELP),
    no_args_is_help=True,
    rich_markup_mode="rich" if sys.stdout.isatty() and sys.stderr.isatty() else None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headwater {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command."""


app.command()(run.run)
app.command()(messages.publish)
app.command()(messages.request)
app.command()(messages.tail)
app.command()(copy.copy)
app.add_typer(topics.commands)
app.add_typer(partitions.commands)
app.add_typer(groups.commands)
app.add_typer(dead.commands)
app.command()(cluster.cluster)
app.add_typer(log.commands)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, 1 after a failure, 2 for wrong usage, 130 when interrupted."""
    sys.argv[0] = "headwater"  # by which those who look at a group know this process
    try:
        app(arguments, prog_name="headwater")
    except Failure as failure:
        tell_failure(failure.reason)
        sys.exit(failure.code)
    except HeadwaterError as error:
        tell_failure(str(error))
        sys.exit(1)
