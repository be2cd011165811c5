"""The JSON documents of the values of a state_dict that are not tensors.

Each rank encodes the values that it writes (`encode_value`); the coordinator joins them to documents (`documents_of`),
which have the form that a Saver writes. `opened` takes a document apart into the values that a state_dict has. Nothing
is ever pickled.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_tfckpt.errors import DataLossError, FailedPreconditionError
from torch_tfckpt.integrations.dcp_names import GROUPS, PARAMETERS, STATE, Path, StateNames, extra_state_of, key_of_path
from torch_tfckpt.saveables.state_tree import Encoded, flatten, tensor_keys, tensor_node, unflatten
from torch_tfckpt.text import quoted


def encode_value(key: str, value: object) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the JSON of a value that is not a tensor, and the tensors in it by their keys.

    Raises:
        TypeError: a value that could only be pickled; the message has its path.
    """
    for each in _tensors_in(value):
        if type(each).__name__ in ("DTensor", "ShardedTensor"):
            raise TypeError(
                f"{quoted(key)} is a {type(value).__name__} that contains a {type(each).__name__}, of which each rank "
                f"has a part only. Keep it in a dict or a list, which torch.distributed.checkpoint takes apart"
            )
    return flatten(value, key)


def _tensors_in(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)


def documents_of(names: StateNames, tensors: set[str], values: Mapping[str, str]) -> dict[str, str]:
    """Return key -> JSON of all documents of a state_dict.

    Args:
        tensors: The names of the tensors.
        values: Name -> JSON of all other values.

    Raises:
        FailedPreconditionError: a value is missing.
    """
    trees: dict[Path, _StateTree] = {}
    for name, path in names.paths.items():
        document = names.document_of(name)
        if name in tensors:
            if document != path or extra_state_of(path):
                trees.setdefault(document, _StateTree()).put(path[len(document) :], tensor_node(names.tensor_key(name)))
        else:
            trees.setdefault(document, _StateTree()).put(path[len(document) :], _encoded(name, values))
    groups: dict[Path, dict[str, dict[str, Encoded]]] = {}
    for name, found in names.hyperparameters.items():
        of_optimizer = groups.setdefault(found.optimizer, {})
        of_optimizer.setdefault(found.parameter, {})[found.name] = _encoded(name, values)
    for optimizer, of_optimizer in groups.items():
        trees.setdefault(optimizer, _StateTree()).put((GROUPS,), _joined(of_optimizer))
    for optimizer in names.optimizers:  # DCP drops empty dicts: an optimizer without state
        content = trees[optimizer].content
        if isinstance(content, dict):
            content.setdefault(STATE, {})
    texts = {}
    for document, tree in trees.items():
        key = key_of_path(document)
        texts[key] = flatten(tree.content, key)[0]
    return texts


def _encoded(name: str, values: Mapping[str, str]) -> Encoded:
    if name not in values:
        raise not_written(name)
    return Encoded(json.loads(values[name]))


def not_written(name: str) -> FailedPreconditionError:
    """Return the error for a value that no rank has written."""
    return FailedPreconditionError(
        f"no rank has written {quoted(name)} of the state_dict. Its planner left it out; or, with "
        f"use_collectives=False, only some ranks have this value, and not the one that would write it. Save with "
        f"use_collectives=True"
    )


def _joined(parameters: Mapping[str, Mapping[str, Encoded]]) -> list[dict[str, Any]]:
    """Return the groups of a flattened optimizer: parameters with the same hyperparameters are one group."""
    groups: dict[str, dict[str, Any]] = {}
    for parameter, hyperparameters in parameters.items():
        kind = json.dumps({name: value.node for name, value in hyperparameters.items()}, sort_keys=True)
        groups.setdefault(kind, {**hyperparameters, PARAMETERS: []})[PARAMETERS].append(parameter)
    return list(groups.values())


class _StateTree:
    """Nested dicts and lists, built from paths."""

    def __init__(self) -> None:
        self._root: dict[str, Any] = {}

    @property
    def content(self) -> Any:
        return self._root[""]

    def put(self, path: Path, value: object) -> None:
        container: Any = self._root
        place: str | int = ""
        for part in path:
            here = container[place] if not isinstance(container, dict) else container.get(place)
            if here is None:
                here = container[place] = {} if isinstance(part, str) else []
            container, place = here, part
            if isinstance(container, list):
                container.extend([None] * (int(place) + 1 - len(container)))
        container[place] = value


@dataclass(slots=True)
class StoredDocument:
    """A document that was read, without the values of its tensors.

    Attributes:
        text: The JSON.
        tensors: Path of a tensor in the document -> its key.
        values: Path of any other value, as torch.distributed.checkpoint takes a state_dict apart -> the value. Tensors
            in it are stand-ins until `value_of` is called.
        inner: The keys of the tensors in these values.
    """

    text: bytes
    tensors: dict[Path, str] = field(default_factory=dict)
    values: dict[Path, object] = field(default_factory=dict)
    inner: list[str] = field(default_factory=list)

    def value_of(self, path: Path, read: Callable[[str], torch.Tensor]) -> object:
        """Return a value. `read` returns the tensor with a key."""
        if self.inner:
            nothing = torch.empty(0, device="cpu")
            inner = set(self.inner)
            stored = {key: read(key) if key in inner else nothing for key in tensor_keys(self.text)}
            found = dict(_taken_apart((), unflatten(self.text, stored)))
            self.values = {path: found[path] for path in self.values}
            self.inner = []
        return self.values[path]


def opened(text: bytes, stand_in: Callable[[str], torch.Tensor]) -> StoredDocument | None:
    """Take a document apart; return None if a string is not a document.

    Args:
        stand_in: Returns a new tensor in place of the one with a key, or raises DataLossError.
    """
    try:
        keys = tensor_keys(text)
    except DataLossError:
        return None
    stand_ins = {key: stand_in(key) for key in keys}
    key_of = {id(tensor): key for key, tensor in stand_ins.items()}
    found = StoredDocument(text)
    for path, value in _taken_apart((), unflatten(text, stand_ins)):
        if isinstance(value, torch.Tensor) and id(value) in key_of:
            found.tensors[path] = key_of[id(value)]
        else:
            found.values[path] = value
    found.inner = [key for key in keys if key not in set(found.tensors.values())]
    return found


def _taken_apart(path: Path, value: object) -> Iterator[tuple[Path, object]]:
    """Yield the values as DCP does: those in dicts, and in lists that contain a dict or a tensor."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _taken_apart((*path, str(key)), item)
    elif isinstance(value, list) and _is_taken_apart(value):
        for position, item in enumerate(value):
            yield from _taken_apart((*path, position), item)
    else:
        yield path, value


def _is_taken_apart(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_is_taken_apart, value))
    return isinstance(value, Mapping | torch.Tensor)


def _by_text(value: Mapping[object, object]) -> dict[str, object]:
    return {str(key): item for key, item in value.items()}
