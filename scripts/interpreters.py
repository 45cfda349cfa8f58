"""The supported Pythons on this machine: finds them, and runs the tests on the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)
HERE = Path(__file__).resolve().parent.parent


def candidates() -> list[str]:
    """Commands that may be a Python: on PATH, and where pyenv and uv keep theirs."""
    names = ["python3", *(f"python3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1))]
    kept = [
        *Path.home().glob(".pyenv/versions/*/bin/python3"),
        *Path.home().glob(".local/share/uv/python/*/bin/python3"),
    ]
    return [*names, *map(str, kept)]


def version(command: str) -> tuple[int, int] | None:
    """The version of an interpreter that runs and can make virtual environments, or None."""
    code = "import ensurepip, venv, sys; print(*sys.version_info[:2])"
    try:
        out = subprocess.run([command, "-c", code], capture_output=True, text=True, timeout=30)
    except OSError:
        return None
    if out.returncode:
        return None
    major, minor = out.stdout.split()
    return int(major), int(minor)


def supported() -> dict[tuple[int, int], str]:
    """The first interpreter found of each supported version."""
    found: dict[tuple[int, int], str] = {}
    for command in candidates():
        number = version(command)
        if number is not None and OLDEST <= number <= NEWEST:
            found.setdefault(number, command)
    return found


def run_tests(number: tuple[int, int], command: str, arguments: list[str]) -> int:
    """Run pytest on this interpreter, in an environment of its own."""
    name = ".".join(map(str, number))
    home = HERE / f".venv-{name}"
    stamp = home / ".installed"
    if not stamp.exists() or stamp.stat().st_mtime < (HERE / "pyproject.toml").stat().st_mtime:
        pip = [str(home / "bin/pip"), "--quiet", "--disable-pip-version-check", "install"]
        subprocess.run([command, "-m", "venv", str(home)], check=True)
        subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
        subprocess.run([*pip, "--editable", ".[all]", "--group", "test"], check=True, cwd=HERE)
        stamp.touch()
    print(f"--- Python {name}", flush=True)
    return subprocess.run([str(home / "bin/python"), "-m", "pytest", *arguments], cwd=HERE).returncode


def main() -> int:
    mode, *rest = sys.argv[1:]
    found = supported()
    if mode == "--first":
        if not found:
            sys.exit(f"no Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} was found: install one")
        print(found[min(found)])
        return 0
    others = {number: command for number, command in found.items() if number != sys.version_info[:2]}
    if not others:
        print("no other supported Python on this machine")
    arguments = rest[1:] if rest[:1] == ["--"] else rest
    os.environ.pop("VIRTUAL_ENV", None)
    return max((run_tests(number, command, arguments) for number, command in sorted(others.items())), default=0)


if __name__ == "__main__":
    sys.exit(main())
