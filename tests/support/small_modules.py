"""Modules made for one test: nested under dotted names, and in a Python file that can be imported by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn


def nested(make: Callable[[], nn.Module], *names: str) -> nn.Module:
    """A module with a new module under each dotted name."""
    root = nn.Module()
    for name in names:
        here = root
        *above, last = name.split(".")
        for part in above:
            if not hasattr(here, part):
                here.add_module(part, nn.Module())
            here = here.get_submodule(part)
        here.add_module(last, make())
    return root


def python_file(directory: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a Python file and make its directory the current one.

    Returns the name of its module, which is unique, so that no other test has imported it.
    """
    name = f"net_{abs(hash(directory))}"
    (directory / f"{name}.py").write_text(source)
    monkeypatch.chdir(directory)
    return name
