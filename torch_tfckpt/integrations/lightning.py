"""TFCheckpointIO: Lightning and Fabric save and load TensorFlow checkpoints.

    trainer = Trainer(plugins=[TFCheckpointIO()])      # or Fabric(plugins=[...])

A path of Lightning, such as "run/epoch=1-step=10.ckpt", becomes a directory with one checkpoint, since Lightning
asks whether the path exists, and removes and links it. Each item of Lightning's dict is stored as a Saver stores
state (`saveables.state_tree`): a JSON string and its tensors.

    lightning                        names and order of the items, and what JSON does not keep of their dicts
    model/net.0.weight               "state_dict"; of tensors that share memory one is stored, and model/.shared has the
                                     names of the others
    optimizer_states/0/state/0/exp_avg
    callbacks, callbacks/tensor_0    other items; tensors whose path is not a plain name are numbered
    epoch                            JSON of an item without tensors

Contract: the loaded dict equals the saved one, except that an AttributeDict becomes a dict, and a member of an
enumeration or a named tuple its plain value, with a warning. A value that would have to be pickled is a TypeError with
its name, before anything is written. A checkpoint that is saved again stays complete until the new one replaces it;
what a killed program left of a first save is removed by the next program. While a thread of AsyncCheckpointIO saves,
`remove_checkpoint` waits.

This module imports Lightning: the package `lightning`, or `pytorch_lightning` with `lightning_fabric`.
"""

import importlib
import importlib.util
import json
import logging
import os
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch

from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.directory.management import checkpoint_exists, remove_checkpoint
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError, NotFoundError, error_context
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.state_tree import MAX_DEPTH, flatten, tensor_keys, unflatten
from torch_tfckpt.saveables.stateful import read_text
from torch_tfckpt.saveables.stored_keys import SHARED, stored_object
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.tensor_dict import save_file
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.values import WritableValue

_log = logging.getLogger(__name__)

_STATE_DICT: Final = "state_dict"
_HYPERPARAMETERS: Final = "hyper_parameters"
_CONTENTS: Final = "lightning"  # key of the JSON about the items
_ITEMS, _METADATA, _ORDER = "items", "metadata", "order"
_PREFIX: Final = "ckpt"  # of the checkpoint in its directory
_PLAIN_NAME: Final = re.compile(r"[\w.-]+")
_PLAIN_KEY: Final = re.compile(r"[\w.-]+(/[\w.-]+)*")
# With one tensor in each, in JSON of `state_tree`.
_TENSOR_TAGS: Final = ("$tensor", "$ndarray", "$numpy")
_INTERFACES: Final = ("lightning.fabric.plugins.io.checkpoint_io", "lightning_fabric.plugins.io.checkpoint_io")
# One save or removal at a time in this process. Not an attribute: Lightning pickles its plugins for spawned processes.
_BUSY: Final = threading.Lock()
_CLEANED: Final[set[str]] = set()  # directories where `_remove_interrupted` has been


def _interfaces() -> list[Any]:
    """Return the class CheckpointIO of each package of Lightning that a program may use."""
    heavy, light = _INTERFACES  # the first imports all of Lightning, which takes seconds
    installed = [name for name in _INTERFACES if importlib.util.find_spec(name.partition(".")[0]) is not None]
    if light in installed and heavy not in sys.modules and "pytorch_lightning" in sys.modules:
        installed = [light]
    if not installed:
        raise InvalidArgumentError(
            "torch_tfckpt.integrations.lightning needs Lightning, which is not installed. pip install 'lightning>=2.5'"
        )
    return [importlib.import_module(name).CheckpointIO for name in installed]


_BASE: Any
_BASE, *_OTHERS = _interfaces()


class TFCheckpointIO(_BASE):  # type: ignore[misc]  # its type is not known without Lightning
    """Checkpoint plugin for Lightning's Trainer and Fabric that writes TensorFlow checkpoints.

    Each path becomes a directory with a checkpoint, which all of this package reads. The weights are "model/" and the
    names in `state_dict`. Nothing is pickled: what cannot be stored otherwise is a TypeError that names it. All of
    ModelCheckpoint works, and resuming, and AsyncCheckpointIO(TFCheckpointIO()).

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> from torch_tfckpt.integrations.lightning import TFCheckpointIO
        >>> plugin = TFCheckpointIO()
        >>> plugin.save_checkpoint({"epoch": 3, "state_dict": {"net.weight": torch.ones(2)}}, "run/last.ckpt")
        >>> plugin.load_checkpoint("run/last.ckpt")
        {'epoch': 3, 'state_dict': {'net.weight': tensor([1., 1.])}}
        >>> tfckpt.load_file("run/last.ckpt", names=["model/net.weight"])
        {'model/net.weight': tensor([1., 1.])}
        >>> plugin.remove_checkpoint("run/last.ckpt")

    Cost: as `save_file` and `load_file`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: AnyPath, storage_options: Any = None) -> None:
        """Save a dict of Lightning as a checkpoint in the directory `path`.

        Args:
            checkpoint: Name -> value: tensors, numbers, strings, and the containers that a Saver stores.
            path: The directory, which is created. A checkpoint in it is replaced, in one step.
            storage_options: Must be None.

        Raises:
            TypeError: a value could only be pickled.
            InvalidArgumentError: there is a file at `path`, or a tensor cannot be stored.
            IncompleteSaveError: a write failed.
        """
        directory = fspath(path)
        if storage_options is not None:
            raise InvalidArgumentError(
                "TFCheckpointIO has no storage_options. Configure fsspec's driver with environment variables"
            )
        values = _encoded(checkpoint, printable(directory))
        with _BUSY:
            storage = storage_of(directory)
            if os.path.islink(directory):  # of save_last="link": what it refers to is another checkpoint
                os.unlink(directory)
            if storage.exists(directory) and not storage.is_directory(directory):
                raise InvalidArgumentError(
                    f"{printable(directory)} is a file, and TFCheckpointIO would make a directory of this name. Move "
                    f"or delete the file, or save to another dirpath"
                )
            _remove_interrupted(os.path.dirname(directory))
            save_file(values, os.path.join(directory, _PREFIX))

    def load_checkpoint(
        self, path: AnyPath, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the dict that was saved in the directory `path`.

        Args:
            path: The directory; or its checkpoint, in any form that CheckpointReader accepts.
            map_location: As for torch.load, where all tensors come from the CPU. None: they stay there.
            weights_only: Has no effect, since nothing is ever pickled.

        Raises:
            NotFoundError: there is no checkpoint.
            InvalidArgumentError: the checkpoint was not written by TFCheckpointIO.
            DataLossError: the checkpoint is damaged.
        """
        directory = fspath(path)
        storage = storage_of(directory)
        if storage.exists(directory) and storage.is_directory(directory):
            directory = os.path.join(directory, _PREFIX)
            if not checkpoint_exists(directory):
                raise NotFoundError(
                    f"{printable(fspath(path))}: there is no checkpoint of TFCheckpointIO in this directory. A save "
                    f"was interrupted before its end, or other software made it. Resume from another checkpoint"
                )
        with CheckpointReader(directory) as reader:
            loaded = _decoded(reader)
        place = _placement(map_location)
        return loaded if place is None else _converted(loaded, place)

    def remove_checkpoint(self, path: AnyPath) -> None:
        """Remove the checkpoint in the directory `path`, and the directory. Does nothing if it does not exist.

        Files of other programs in the directory stay. A file or a link at `path` is removed.
        """
        directory = fspath(path)
        storage = storage_of(directory)
        with _BUSY:
            if os.path.islink(directory) or (storage.exists(directory) and not storage.is_directory(directory)):
                storage.remove(directory)
                return
            remove_checkpoint(os.path.join(directory, _PREFIX))
            remove_leftovers(storage, directory)
            storage.remove_directory(directory)


for _other in _OTHERS:
    _other.register(TFCheckpointIO)


def _remove_interrupted(parent: str) -> None:
    """Remove the directories that killed programs have made in `parent` for a first save. Once per process."""
    storage = storage_of(parent)
    if parent in _CLEANED or not storage.renames:
        return
    _CLEANED.add(parent)
    try:
        for name in storage.list(parent or os.curdir):
            directory = os.path.join(parent, name)
            if not storage.is_directory(directory) or checkpoint_exists(os.path.join(directory, _PREFIX)):
                continue
            if remove_leftovers(storage, directory):  # not those of a living program
                storage.remove_directory(directory)
    except (OSError, CheckpointError) as error:
        _log.info("%s: could not look for interrupted saves: %s", printable(parent), error)


def _encoded(checkpoint: object, place: str) -> dict[str, WritableValue]:
    """Return key -> value of everything to write for a dict of Lightning."""
    if not isinstance(checkpoint, dict) or not all(type(name) is str for name in checkpoint):
        raise InvalidArgumentError(f"{place}: Lightning's checkpoint must be a dict whose keys are strings")
    keys = _keys_of(checkpoint)
    contents: dict[str, dict[str, Any]] = {_ITEMS: keys, _METADATA: {}, _ORDER: {}}
    values: dict[str, WritableValue] = {}

    def put(key: str, value: WritableValue) -> None:
        if key in values:
            raise InvalidArgumentError(f"{place}: two values would be stored as {quoted(key)}. Rename one of them")
        values[key] = value

    for name, key in keys.items():
        value = _converted(checkpoint[name], lambda tensor: tensor)
        metadata = getattr(checkpoint[name], "_metadata", None)  # of a state_dict: versions of its modules
        if metadata is not None:
            contents[_METADATA][name] = dict(metadata)
        shared = _shared_in(value)
        if shared:
            contents[_ORDER][name] = list(value)
            put(f"{key}/{SHARED}", json.dumps({f"{key}/{alias}": f"{key}/{first}" for alias, first in shared.items()}))
            value = type(value)((part, item) for part, item in value.items() if part not in shared)
        text, tensors = _flattened(value, key, name, place)
        put(key, text)
        for each, tensor in tensors.items():
            put(each, tensor)
    put(_CONTENTS, flatten(contents, _CONTENTS)[0])
    return values


def _flattened(value: object, key: str, name: str, place: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the JSON and the tensors of an item; keys of tensors are plain names, except for weights."""
    try:
        text, tensors = flatten(value, key)
    except TypeError as error:
        advice = ""
        if name == _HYPERPARAMETERS:
            advice = ". Leave it out of them: self.save_hyperparameters(ignore=[...])"
        raise TypeError(f"{place}: {error}{advice}") from error
    if _is_weights(value):
        return text, tensors
    renamed: dict[str, str] = {}
    for each in tensors:
        if not _PLAIN_KEY.fullmatch(each):
            number = len(renamed)
            while f"{key}/tensor_{number}" in tensors:
                number += len(tensors)
            renamed[each] = f"{key}/tensor_{number}"

    def rename(node: dict[str, Any]) -> dict[str, Any]:
        return {tag: renamed.get(of, of) if tag in _TENSOR_TAGS else of for tag, of in node.items()}

    if renamed:
        text = json.dumps(json.loads(text, object_hook=rename))
    return text, {renamed.get(each, each): tensor for each, tensor in tensors.items()}


def _keys_of(checkpoint: Mapping[str, object]) -> dict[str, str]:
    """Return name of an item -> its key: "model" for state_dict, otherwise the name if it is a plain one."""
    keys: dict[str, str] = {}
    taken = {_CONTENTS, *checkpoint}
    for number, name in enumerate(checkpoint):
        key = name
        if name == _STATE_DICT and "model" not in checkpoint:
            key = "model"
        elif name == _CONTENTS or not _PLAIN_NAME.fullmatch(name):
            key = f"item_{number}"
            while key in taken:
                key += "_"
        taken.add(key)
        keys[name] = key
    return keys


def _is_weights(value: object) -> bool:
    """Return whether an item is a state_dict: its names must be found by other programs."""
    return isinstance(value, dict) and any(isinstance(item, torch.Tensor) for item in value.values())


def _shared_in(value: object) -> dict[str, str]:
    """Return the names of tensors in a state_dict that have the memory of earlier ones -> the names of these."""
    if type(value) not in (dict, OrderedDict) or not isinstance(value, dict):
        return {}
    first: dict[Identity, str] = {}
    shared: dict[str, str] = {}
    for name, item in value.items():
        if type(name) is str and isinstance(item, torch.Tensor):
            known = first.setdefault(identity_of(item), name)
            if known != name:
                shared[name] = known
    return shared


def _converted(value: Any, leaf: Callable[[torch.Tensor], torch.Tensor], depth: int = 0) -> Any:
    """Return a copy with `leaf` applied to the tensors, and dicts in place of Lightning's AttributeDicts."""
    if isinstance(value, torch.Tensor):
        return leaf(value)
    kind = type(value)
    if depth > MAX_DEPTH:  # `flatten` refuses it
        return value
    if kind in (dict, OrderedDict) or (isinstance(value, dict) and kind.__name__ == "AttributeDict"):
        kept = OrderedDict if kind is OrderedDict else dict
        copy = kept((name, _converted(item, leaf, depth + 1)) for name, item in value.items())
        if hasattr(value, "_metadata") and isinstance(copy, OrderedDict):
            copy._metadata = value._metadata  # type: ignore[attr-defined]
        return copy
    if kind in (list, tuple):
        return kind(_converted(item, leaf, depth + 1) for item in value)
    return value


def _decoded(reader: CheckpointReader) -> dict[str, Any]:
    """Return the dict that `_encoded` has taken apart."""
    if _CONTENTS not in reader:
        raise InvalidArgumentError(
            f"{reader.path}: this checkpoint was not written by TFCheckpointIO. Load its weights with load_model or a "
            f"Saver, before the training starts"
        )
    with _about(reader, _CONTENTS):
        contents = unflatten(read_text(reader, _CONTENTS), {})
        items, metadata, order = _parts_of(contents)
    texts: dict[str, bytes] = {}
    wanted: dict[str, list[str]] = {}
    for name, key in items.items():
        with _about(reader, key):
            texts[name] = read_text(reader, key)
            wanted[name] = [each for each in tensor_keys(texts[name]) if each in reader]
    read = reader.get_tensors(list(dict.fromkeys(each for keys in wanted.values() for each in keys)))
    tensors = {key: value for key, value in read.items() if isinstance(value, torch.Tensor)}
    loaded: dict[str, Any] = {}
    for name, key in items.items():
        remarks: list[str] = []
        with _about(reader, key):
            value: Any = unflatten(texts[name], tensors, remarks=remarks)
            if name in order:
                value = _with_shared(value, key, order[name], stored_object(reader, f"{key}/{SHARED}"))
        if name in metadata and isinstance(value, OrderedDict):
            value._metadata = OrderedDict(metadata[name])  # type: ignore[attr-defined]
        for remark in remarks:
            _log.warning("%s: %s: %s", reader.path, quoted(name), remark)
        loaded[name] = value
    return loaded


@contextmanager
def _about(reader: CheckpointReader, key: str) -> Iterator[None]:
    """Name the state in errors; a missing string is damage."""
    if key not in reader:
        raise DataLossError(f"{reader.path}: there is no state {quoted(key)}")
    with error_context(f"{reader.path}: state {quoted(key)}"):
        yield


def _parts_of(contents: object) -> tuple[dict[str, str], dict[str, dict[str, Any]], dict[str, list[str]]]:
    found = contents if isinstance(contents, dict) else {}
    items, metadata, order = (found.get(part) for part in (_ITEMS, _METADATA, _ORDER))
    if not (
        isinstance(items, dict)
        and all(type(each) is str for pair in items.items() for each in pair)
        and isinstance(metadata, dict)
        and all(isinstance(each, dict) for each in metadata.values())
        and isinstance(order, dict)
        and all(isinstance(each, list) and all(type(name) is str for name in each) for each in order.values())
    ):
        raise DataLossError("it does not have the form that TFCheckpointIO writes")
    return items, metadata, order


def _with_shared(value: Any, key: str, order: list[str], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state_dict with the tensors that share memory with others, in its order."""
    if not isinstance(value, dict):
        raise DataLossError("a state_dict is not a dict")
    found = dict(value)
    for alias in order:
        if alias not in found:
            first = str(shared.get(f"{key}/{alias}", "")).removeprefix(f"{key}/")
            if first not in value:
                raise DataLossError(f"there is no tensor for {quoted(alias)}")
            found[alias] = value[first]
    return type(value)((name, found[name]) for name in order)


def _placement(map_location: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what moves a tensor as torch.load does with `map_location`; None if nothing moves."""
    if isinstance(map_location, Mapping):
        map_location = map_location.get("cpu", "cpu")
    if map_location is None:
        return None
    moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # tensors that share memory stay one tensor

    def place(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in moved:
            if callable(map_location):
                storage = map_location(tensor.untyped_storage(), "cpu")
                device = tensor.device if storage is None else storage.device
            else:
                device = torch.device(map_location)
            moved[id(tensor)] = (tensor, tensor.to(device))
        return moved[id(tensor)][1]

    return place
