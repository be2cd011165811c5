"""Save objects and restore them into others, by a Saver or by a Checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

import torch_tfckpt as tfckpt

KINDS: Final = ("Saver", "Checkpoint")
in_both_ways = pytest.mark.parametrize("kind", KINDS)


def saved(kind: str, objects: Mapping[str, Any], directory: Path) -> str:
    """Save the objects, and return the path."""
    if kind == "Saver":
        path = tfckpt.Saver(dict(objects)).save(directory / "saver", 1)
        assert path is not None
        return path
    return tfckpt.Checkpoint(**objects).save(directory / "checkpoint")


def restored(kind: str, path: str, objects: Mapping[str, Any], *, consumed: bool = True) -> None:
    """Restore the objects; by a Checkpoint also assert that nothing else is stored, if `consumed`."""
    if kind == "Saver":
        tfckpt.Saver(dict(objects)).restore(path)
        return
    status = tfckpt.Checkpoint(**objects).restore(path)
    if consumed:
        status.assert_consumed()
    else:
        status.expect_partial()


def moved(kind: str, objects: Mapping[str, Any], into: Mapping[str, Any], directory: Path) -> None:
    """Save objects, and restore others of the same names from the file."""
    restored(kind, saved(kind, objects, directory), into)


def moved_value(kind: str, value: object, present: object, directory: Path) -> object:
    """Save a plain value in a dict, restore it into a dict with the value `present`, and return what that has then."""
    back = {"v": present}
    moved(kind, {"s": {"v": value}}, {"s": back}, directory)
    return back["v"]
