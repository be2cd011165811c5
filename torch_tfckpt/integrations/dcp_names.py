"""Names of the values in a state_dict that torch.distributed.checkpoint saves: those that a Saver would use.

DCP flattens a state_dict. Each value gets a name of its own, and a path: its keys in the nested dicts, and its
positions in lists. The key of a tensor in the checkpoint is its path, joined by "/":

    name                                 path                                          key
    model.fc.weight                      ("model", "fc.weight")                        model/fc.weight
    optim.state.fc.weight.exp_avg        ("optim", "state", "fc.weight", "exp_avg")    optim/state/fc.weight/exp_avg
    the same, of a flattened optimizer   ("optim", "state.fc.weight.exp_avg")          optim/state/fc.weight/exp_avg
    model.fc._extra_state                ("model", "fc._extra_state")                  model/fc._extra_state/value

All other values are stored as JSON (`saveables.state_tree`), one document per object that a Saver would save. Its key
is the first key of the path. If the value under that key contains an optimizer and is not one itself, for example
{"app": {"model": ..., "optim": ...}}, its items have documents of their own ("app/optim"). Extra state of modules
always has a document of its own.

A flattened optimizer is what get_optimizer_state_dict returns with flatten_optimizer_state_dict=True: one dict with
keys "state.<parameter>.<slot>" and "param_groups.<parameter>.<hyperparameter>".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.saveables.module_contents import EXTRA_STATE
from torch_tfckpt.text import quoted

Path = tuple[str | int, ...]

STATE: Final = "state"
GROUPS: Final = "param_groups"
PARAMETERS: Final = "params"
_FLAT_STATE, _FLAT_GROUPS = f"{STATE}.", f"{GROUPS}."


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A hyperparameter of one parameter in a flattened optimizer."""

    optimizer: Path
    parameter: str
    name: str


@dataclass(slots=True)
class StateNames:
    """The places of all values of a state_dict.

    Attributes:
        paths: Name of a value -> its path, except for `hyperparameters`. State of flattened optimizers has the path
            that it would have in one that is not flattened.
        hyperparameters: Name of a value -> the hyperparameter that it is.
        optimizers: Paths of the outermost optimizers.
        containers: Paths of the dicts and lists whose items have documents of their own.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    hyperparameters: dict[str, Hyperparameter] = field(default_factory=dict)
    optimizers: set[Path] = field(default_factory=set)
    containers: set[Path] = field(default_factory=set)

    def document_of(self, name: str) -> Path:
        """Return the path of the document that a value belongs to."""
        if name in self.hyperparameters:
            return self.hyperparameters[name].optimizer
        path = self.paths[name]
        extra = extra_state_of(path)
        if extra:
            return extra
        length = 1
        while length < len(path) and path[:length] in self.containers:
            length += 1
        return path[:length]

    def tensor_key(self, name: str) -> str:
        """Return the key of a tensor in the checkpoint."""
        path = self.paths[name]
        return key_of_path((*path, "value") if extra_state_of(path) == path else path)

    def check_unique(self) -> None:
        """Raise InvalidArgumentError if two values would be stored under one key."""
        names: dict[str, str] = {}
        for name, path in self.paths.items():
            other = names.setdefault(key_of_path(path), name)
            if other != name:
                raise InvalidArgumentError(
                    f"{quoted(other)} and {quoted(name)} of the state_dict would both be stored as "
                    f"{quoted(key_of_path(path))}. Rename one of them"
                )


def key_of_path(path: Path) -> str:
    """Return the key in a checkpoint."""
    return "/".join(map(str, path))


def extra_state_of(path: Path) -> Path:
    """Return the path of the extra state of a module that a value is, or belongs to; () if there is none."""
    ends = (end for end, part in enumerate(path, 1) if isinstance(part, str) and part.endswith(EXTRA_STATE))
    return path[: next((end for end in ends if str(path[end - 1]).rpartition(".")[2] == EXTRA_STATE), 0)]


def state_names(names: Iterable[str], planner_data: object) -> StateNames:
    """Return the places of the values with these names.

    Args:
        planner_data: Name -> path, as DefaultSavePlanner writes it to its plan. A name that has no path there, or for
            which another planner has something else, is its own path.
    """
    known = planner_data if isinstance(planner_data, Mapping) else {}
    found = StateNames({name: path_of(known.get(name), name) for name in names})
    for optimizer, members in _flattened_optimizers(found.paths).items():
        _unflatten(found, optimizer, members)
        found.optimizers.add(optimizer)
    for path in found.paths.values():
        for end in range(len(path) - 2):
            if path[end] == GROUPS and isinstance(path[end + 1], int) and path[end + 2] == PARAMETERS:
                found.optimizers.add(path[:end])
    inner = {path for path in found.optimizers if any(path[:end] in found.optimizers for end in range(len(path)))}
    found.optimizers -= inner
    found.containers = {path[:end] for path in found.optimizers for end in range(len(path))} | {()}
    return found


def path_of(known: object, name: str) -> Path:
    """Return the path of a value, given what a planner has for its name."""
    if isinstance(known, tuple) and known and all(type(part) in (str, int) for part in known):
        return known
    return (name,)


def _flattened_optimizers(paths: Mapping[str, Path]) -> dict[Path, list[str]]:
    """Return the path of each flattened optimizer -> the names of its values."""
    parents = {path[:-1] for path in paths.values() if str(path[-1]).startswith(_FLAT_GROUPS)}
    members: dict[Path, list[str]] = {parent: [] for parent in parents}
    for name, path in paths.items() if parents else ():
        is_member = path[:-1] in members and str(path[-1]).startswith((_FLAT_STATE, _FLAT_GROUPS))
        if is_member:
            members[path[:-1]].append(name)
        for end in range(len(path) - is_member):
            members.pop(path[:end], None)  # has other values, too
    return members


def _unflatten(names: StateNames, optimizer: Path, members: Iterable[str]) -> None:
    """Replace the paths of a flattened optimizer's values."""
    own = {name: str(names.paths[name][-1]) for name in members}
    for name, key in own.items():
        if key.startswith(_FLAT_GROUPS):
            parameter, _, hyperparameter = key.removeprefix(_FLAT_GROUPS).rpartition(".")
            names.hyperparameters[name] = Hyperparameter(optimizer, parameter, hyperparameter)
            del names.paths[name]
    parameters = {names.hyperparameters[name].parameter for name in own if name in names.hyperparameters}
    for name, key in own.items():
        if key.startswith(_FLAT_STATE):
            names.paths[name] = (*optimizer, STATE, *_parameter_and_slot(key.removeprefix(_FLAT_STATE), parameters))


def _parameter_and_slot(text: str, parameters: set[str]) -> list[str]:
    """Split "fc.weight.exp_avg" into the parameter and the keys below it; slots may be nested."""
    parameter = text.rpartition(".")[0]
    while parameter and parameter not in parameters:
        parameter = parameter.rpartition(".")[0]
    if not parameter:
        parameter = text.rpartition(".")[0]
    return [parameter, *text[len(parameter) + 1 :].split(".")]
