"""`manage.py headwater run shop.events:app`: Headwater's command line, with Django set up."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand

from headwater.cli import main


class Command(BaseCommand):
    help = "Headwater's command line, with Django set up: `headwater run shop.events:app` runs handlers."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="as for `headwater`: run, publish, tail, ...")

    def handle(self, *_: Any, arguments: list[str], **__: Any) -> None:
        main(arguments)
