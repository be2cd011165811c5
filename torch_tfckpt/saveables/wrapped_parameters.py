"""Stored optimizer state whose parameter names have, or lack, the parts that wrappers add."""

from collections.abc import Collection, Iterable
from typing import Any, Final

from torch_tfckpt.saveables.wrappers import without_wrappers

_BY_NAME: Final = ("param_shapes", "param_dtypes", "state")  # dicts with the names of parameters as keys


def with_names_here(stored: object, here: Collection[str]) -> object:
    """Return the stored state of an optimizer, with the names that its parameters have here.

    Only names that differ by parts that wrappers add are changed: "_orig_mod.fc.weight" becomes "fc.weight", or the
    reverse.
    A stored value of another form is returned as it is; the caller reports it.

    Args:
        here: Names of all parameters of this optimizer.
    """
    groups = stored.get("param_groups") if isinstance(stored, dict) else None
    if not isinstance(stored, dict) or not isinstance(groups, list):
        return stored
    names = [
        name
        for group in groups
        if isinstance(group, dict) and isinstance(group.get("params"), list)
        for name in group["params"]
        if isinstance(name, str)
    ]
    renamed = _renamed(set(names), set(here))
    if not renamed:
        return stored
    changed: dict[str, Any] = dict(stored)
    changed["param_groups"] = [_with_parameters(group, renamed) for group in groups]
    for entry in _BY_NAME:
        if isinstance(stored.get(entry), dict):
            changed[entry] = {renamed.get(name, name): value for name, value in stored[entry].items()}
    return changed


def _with_parameters(group: Any, renamed: dict[str, str]) -> Any:
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return group
    return {**group, "params": [renamed.get(name, name) if isinstance(name, str) else name for name in group["params"]]}


def _renamed(there: set[str], here: set[str]) -> dict[str, str]:
    """Map stored names to current names that differ from them only in the parts that wrappers add."""
    lost, wanted = there - here, here - there
    if not lost or not wanted:
        return {}
    bare_there = {name: bare for bare, name in _bare(there).items()}
    bare_here = {bare: name for bare, name in _bare(here).items() if name in wanted}
    found: dict[str, str] = {}
    for name in lost:
        bare = bare_there.get(name, name)
        match = bare if bare in wanted else bare_here.get(bare)
        if match is not None:
            found[name] = match
    return found if len(set(found.values())) == len(found) else {}


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Return `without_wrappers` of names that may begin with the key of a module: "net/fc.weight"."""
    below: dict[str, list[str]] = {}
    for name in names:
        key = name[: name.rfind("/") + 1]
        below.setdefault(key, []).append(name[len(key) :])
    return {key + bare: key + name for key, of in below.items() for bare, name in without_wrappers(of).items()}
