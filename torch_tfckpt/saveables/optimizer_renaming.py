"""Give the parameters in stored optimizer state the names that they have in this program.

The same parameter may have a different name in the checkpoint, for two reasons:

    wrappers    a compiled or parallel module adds a part to its names: "_orig_mod.fc.weight"
    modules     names are those in a state_dict ("fc.weight") if one module of the var_list has all parameters of the
                optimizer; otherwise the key of the module comes first ("net/fc.weight")
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from torch_tfckpt.saveables.optimizer_form import MODULE
from torch_tfckpt.saveables.optimizer_names import ParameterNames, name_in_full
from torch_tfckpt.saveables.wrappers import without_wrappers

_BY_NAME: Final = ("param_shapes", "param_dtypes", "state")  # dicts with the names of parameters as keys


def in_one_form(stored: object, here: ParameterNames) -> tuple[object, ParameterNames]:
    """Return stored optimizer state, and the names of the parameters here, both in full or both short.

    Names are in full if they begin with the key of the module ("net/fc.weight"). Both are in full if the stored names
    and the names here are from two different modules of the var_list. If only one side is known to be from a single
    module, both are in full if the two sides then have a name in common. A stored key of a module that is not in the
    var_list is ignored: `tfckpt convert --rename` may have renamed the module.
    """
    if not isinstance(stored, dict):
        return stored, here
    there = _module_of(stored)
    if there == here.module or (there is not None and here.module is not None and there not in here.modules):
        return stored, here
    full, full_here = in_full(stored), here.in_full()
    if there is None or here.module is None:
        common = set(_names_in(full)) & set(full_here.known())
        return (full, full_here) if common else (stored, here)
    return full, full_here


def in_full(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the stored state with names in full: "<key of the module>/<name>"."""
    module = _module_of(stored)
    if module is None:
        return stored
    names = {name: name_in_full(module, name) for name in _names_in(stored)}
    return _renamed({key: value for key, value in stored.items() if key != MODULE}, names)


def names_after(names: Collection[str], before: object, after: object) -> set[str]:
    """Return the new names of parameters, given a stored state before and after they were renamed."""
    new_names = dict(zip(_names_in(before), _names_in(after), strict=True))
    return {new_names[name] for name in names}


def with_names_here(stored: object, here: Collection[str]) -> object:
    """Return the stored state of an optimizer, with the names that its parameters have here.

    Only names that differ in the parts that wrappers add are changed: "_orig_mod.fc.weight" becomes "fc.weight", or
    the reverse. A stored value of a different form is returned unchanged; the caller reports it.

    Args:
        here: Names of all parameters of this optimizer.
    """
    found = _without_wrappers(set(_names_in(stored)), set(here))
    return _renamed(stored, found) if found and isinstance(stored, dict) else stored


def _module_of(stored: Mapping[str, Any]) -> str | None:
    module = stored.get(MODULE)
    return module if isinstance(module, str) else None


def _names_in(stored: object) -> list[str]:
    """Return the names of all parameters; an empty list if the stored value has a different form."""
    groups = stored.get("param_groups") if isinstance(stored, dict) else None
    return [
        name
        for group in (groups if isinstance(groups, list) else [])
        if isinstance(group, dict) and isinstance(group.get("params"), list)
        for name in group["params"]
        if isinstance(name, str)
    ]


def _renamed(stored: Mapping[str, Any], new_names: Mapping[str, str]) -> dict[str, Any]:
    changed: dict[str, Any] = dict(stored)
    if isinstance(stored.get("param_groups"), list):
        changed["param_groups"] = [_with_parameters(group, new_names) for group in stored["param_groups"]]
    for entry in _BY_NAME:
        if isinstance(stored.get(entry), dict):
            changed[entry] = {new_names.get(name, name): value for name, value in stored[entry].items()}
    return changed


def _with_parameters(group: Any, new_names: Mapping[str, str]) -> Any:
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return group
    names = [new_names.get(name, name) if isinstance(name, str) else name for name in group["params"]]
    return {**group, "params": names}


def _without_wrappers(there: set[str], here: set[str]) -> dict[str, str]:
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
    """Apply `without_wrappers` to names that may begin with the key of a module: "net/fc.weight"."""
    below: dict[str, list[str]] = {}
    for name in names:
        key = name[: name.rfind("/") + 1]
        below.setdefault(key, []).append(name[len(key) :])
    return {key + bare: key + name for key, of in below.items() for bare, name in without_wrappers(of).items()}
