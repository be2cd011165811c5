"""Modules that wrap another module, and the parts that they add to the names of its tensors.

Savers store names without these parts. Names in existing checkpoints may or may not contain them.

    torch.compile(net)                    _orig_mod.fc.weight                    stored as fc.weight
    DataParallel(net), DDP(net)           module.fc.weight                       fc.weight
    AveragedModel(net)                    module.fc.weight, n_averaged           fc.weight, n_averaged
    DDP(torch.compile(net))               module._orig_mod.fc.weight             fc.weight
    net with a compiled layer             fc._orig_mod.weight                    fc.weight

Contract:

    recognition   a wrapper is recognised by its type, never by a name: a module's own submodule called "module" keeps
                  its name. A subclass of a wrapper is also a wrapper
    exception     a wrapper with its own entries under the same names as entries of the wrapped module, such as an
                  AveragedModel of an AveragedModel, is treated as a plain module: its part stays in the names
    stored        older checkpoints, and state dicts of wrapped modules, contain the parts. If a name is not found
                  exactly, the parts are ignored: "_orig_mod" and the like everywhere; "module" only if all names
                  stored at the same level, except n_averaged, also begin with "module", as they do below a wrapper
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from typing import Final
from weakref import WeakKeyDictionary

from torch import nn

# Class -> attribute that holds the wrapped module. Classes are given by name: importing them would import all of
# torch.compile and torch.distributed, and a class that has not been imported has no instances.
_WRAPPERS: Final = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "_fsdp_wrapped_module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": "_checkpoint_wrapped_module",
}
_PARTS: Final = frozenset(_WRAPPERS.values())
_ANY_PART: Final = re.compile("|".join(_PARTS))
_AMBIGUOUS: Final = "module"  # the only part that is also a likely name of a submodule
_REMOVED_BY_TORCH: Final = "_checkpoint_wrapped_module"  # hooks of torch remove it from the names of state_dict

COUNT_OF_AVERAGES: Final = "n_averaged"  # the buffer of an AveragedModel


_KNOWN: Final[MutableMapping[type, str | None]] = WeakKeyDictionary()  # classes seen so far


def _attribute(kind: type) -> str | None:
    """Return the attribute in which instances of a class keep the wrapped module; None if it is not a wrapper."""
    if kind not in _KNOWN:
        _KNOWN[kind] = _find_attribute(kind)
    return _KNOWN[kind]


def _find_attribute(kind: type) -> str | None:
    names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    return next((_WRAPPERS[name] for name in names if name in _WRAPPERS), None)


def wrapped_part(module: nn.Module) -> str | None:
    """Return the attribute that holds the module wrapped by `module`; None if this is not a wrapper.

    The contract above defines what a wrapper is.
    """
    if _PARTS.isdisjoint(module._modules):  # the usual case
        return None
    attribute = _attribute(type(module))
    if attribute is None:
        return None
    wrapped = module._modules.get(attribute)
    if wrapped is None or not (_entries(module) - {attribute}).isdisjoint(_all_entries(wrapped)):
        return None
    return attribute


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside all wrappers; `module` itself if it is not a wrapper."""
    while (part := wrapped_part(module)) is not None:
        module = module._modules[part]  # type: ignore[assignment]
    return module


def _entries(module: nn.Module) -> set[str]:
    """Return the names of a module's own state_dict entries, and the names of its direct submodules."""
    extra = ["_extra_state"] if type(module).get_extra_state is not nn.Module.get_extra_state else []
    return {*module._parameters, *module._buffers, *module._modules, *extra}


def _all_entries(module: nn.Module) -> set[str]:
    """Return `_entries` of a module, together with the entries of the module that it wraps."""
    part = wrapped_part(module)
    own = _entries(module)
    return own if part is None else (own - {part}) | _all_entries(module._modules[part])  # type: ignore[arg-type]


class ModuleNames:
    """Names of the tensors of one module: in its state_dict, and in checkpoints.

    Args:
        module: Its submodules are visited only once; create a new object for each save and restore.

    Attributes:
        has_wrappers: Whether the module contains or is a wrapper; if not, both names of each tensor are equal.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.has_wrappers = any(map(_attribute, {type(each) for each in module.modules()}))
        self._stored: dict[str, str] = {}  # prefix in the module or in its state_dict -> prefix in checkpoints
        self._spelled: dict[str, str] = {}  # prefix in checkpoints -> the innermost prefix in the state_dict
        self._spelled_names: dict[str, str] = {}  # stored name -> name in the state_dict, for the wrappers' own entries
        if self.has_wrappers:
            self._visit(module, "", "", "")

    def _visit(self, module: nn.Module, here: str, spelled: str, stored: str) -> None:
        self._stored[here] = self._stored[spelled] = stored
        self._spelled[stored] = spelled
        part = wrapped_part(module)
        if part is not None:
            for entry in _entries(module) - {part}:
                self._spelled_names[stored + entry] = spelled + entry
        for name, child in module._modules.items():
            if child is None:
                continue
            dict_part = "" if name == part == _REMOVED_BY_TORCH else f"{name}."
            self._visit(child, f"{here}{name}.", spelled + dict_part, stored if name == part else f"{stored}{name}.")

    def stored(self, name: str) -> str:
        """Return the checkpoint name for a state_dict entry, given by its state_dict name or attribute path."""
        if not self.has_wrappers:
            return name
        prefix, rest = _split(name, self._stored)
        return self._stored[prefix] + rest

    def spelled(self, stored: str) -> str:
        """Return the name in the state_dict for a name in checkpoints. The entry need not exist."""
        if not self.has_wrappers:
            return stored
        if stored in self._spelled_names:
            return self._spelled_names[stored]
        prefix, rest = _split(stored, self._spelled)
        return self._spelled[prefix] + rest

    def owners(self) -> dict[str, nn.Module]:
        """Return the module at each prefix of stored names ("" or "fc."); for a wrapper, the wrapped module."""
        return {
            self.stored(f"{name}.") if name else "": unwrapped(each)
            for name, each in self._module.named_modules(remove_duplicate=False)
        }


def _split(name: str, prefixes: Mapping[str, str]) -> tuple[str, str]:
    """Split a name after its longest known prefix; "" is always known."""
    end = name.rfind(".") + 1
    while name[:end] not in prefixes:
        end = name.rfind(".", 0, end - 1) + 1
    return name[:end], name[end:]


def may_be_wrapped(names: Iterable[str]) -> bool:
    """Return whether any name may contain a wrapper's part. Cheaper than splitting all names."""
    return any(map(_ANY_PART.search, names))


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Return bare name -> stored name, for the names of a checkpoint with parts that wrappers have added.

    Bare names are the names without these parts. A bare name that is ambiguous, or that is itself stored, is omitted.

    Cost: looks at all names; at their parts only if there may be a wrapper.
    """
    all_names = list(names)
    if not may_be_wrapped(all_names):
        return {}
    beside: dict[str, set[str]] = {}  # beginning of a name -> the parts that follow it
    for name in all_names:
        for start, part in _parts(name):
            beside.setdefault(name[:start], set()).add(part)
    known = set(all_names)
    found: dict[str, str | None] = {}
    for name in all_names:
        bare = "".join(
            name[start : start + len(part) + 1]
            for start, part in _parts(name)
            if not _is_wrapper(part, beside[name[:start]], is_last=start + len(part) == len(name))
        )
        if bare != name and bare not in known:
            found[bare] = None if bare in found else name
    return {bare: name for bare, name in found.items() if name is not None}


def wrapper_prefix(name: str) -> str:
    """Return the leading parts of a stored name that wrappers have added: "module._orig_mod." or ""."""
    end = 0
    for start, part in _parts(name):
        if part not in _PARTS:
            break
        end = start + len(part) + 1
    return name[:end]


def stored_wrapper(names: Collection[str]) -> str | None:
    """Return the part that a wrapper adds, if a stored module with these children is a wrapper; else None."""
    if _PARTS.isdisjoint(names):
        return None
    return next((name for name in names if _is_wrapper(name, set(names), is_last=False)), None)


def _is_wrapper(part: str, beside: set[str], *, is_last: bool) -> bool:
    if is_last or part not in _PARTS:
        return False
    return part != _AMBIGUOUS or beside <= {_AMBIGUOUS, COUNT_OF_AVERAGES}


def _parts(name: str) -> Iterator[tuple[int, str]]:
    """Yield the parts of a dotted name with their offsets."""
    start = 0
    for part in name.split("."):
        yield start, part
        start += len(part) + 1
