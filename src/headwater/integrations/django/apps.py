"""What `INSTALLED_APPS` names: it adds the command, and checks the setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core import checks

from ...errors import ConfigurationError
from .setting import read_settings


class HeadwaterConfig(AppConfig):
    name = "headwater.integrations.django"
    label = "headwater"
    verbose_name = "Headwater"

    def ready(self) -> None:
        checks.register(check_settings)


def check_settings(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """What is wrong with the setting HEADWATER, for `manage.py check` and all that begins with it."""
    try:
        read_settings()
    except ConfigurationError as error:
        return [checks.Error(str(error), id="headwater.E001")]
    return []
