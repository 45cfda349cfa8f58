"""What can be imported from `headwater`, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import headwater


@pytest.mark.parametrize("name", headwater.__all__)
def test_every_public_name_imports_from_headwater(name: str) -> None:
    assert getattr(headwater, name) is not None


def test_what_a_type_checker_sees_is_what_is_imported() -> None:
    source = Path(headwater.__file__).read_text()
    seen = {
        alias.name: node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert seen == headwater._HOME_OF
    assert len(set(headwater.__all__)) == len(headwater.__all__)
    assert set(headwater.__all__) <= set(dir(headwater))


def test_every_error_is_public() -> None:
    from headwater import errors

    internal = {"Signal", "RetryLater"}  # made by Retry.later, and the root of what handlers raise
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception) and name not in internal:
            assert name in headwater.__all__


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = headwater.nothing_of_the_kind


def test_every_public_class_and_function_says_what_it_is() -> None:
    for name in headwater.__all__:
        value = getattr(headwater, name)
        if getattr(value, "__module__", "").startswith("headwater"):
            assert (value.__doc__ or "").strip(), name


def loaded_by(statement: str) -> set[str]:
    """The modules in memory after a statement, in a Python of its own."""
    code = f"import sys; {statement}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(found.stdout.split())


def test_importing_headwater_imports_no_engine_no_tool_and_no_optional_package() -> None:
    loaded = loaded_by("import headwater; headwater.App")
    assert not {"typer", "rich", "pydantic", "pytest", "watchfiles", "sqlite3"} & loaded
    tools = ("headwater.engines.", "headwater.testing", "headwater.cli", "headwater.log", "headwater.observe")
    assert not [name for name in loaded if name.startswith(tools)]


def test_a_memory_broker_loads_no_other_engine() -> None:
    loaded = loaded_by("import headwater; headwater.Broker('memory://')")
    assert "headwater.engines.memory" in loaded
    assert "headwater.engines.local" not in loaded


def test_the_pytest_plugin_is_light() -> None:
    loaded = loaded_by("import headwater.testing.plugin")
    assert "headwater.app" not in loaded
