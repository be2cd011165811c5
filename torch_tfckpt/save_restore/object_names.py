"""Map variable names to the keys of an object-based checkpoint, so that a Saver can read it.

    full_name      "dense/kernel"
    checkpoint_key "model/layer1/kernel/.ATTRIBUTES/VARIABLE_VALUE"

A saver knows its tensors by name. To read an object-based checkpoint, the saver's saveables are wrapped in saveables
that have these keys. The originals do not change, because the next save or restore may use names again.

Source: object_graph_key_mapping, saver_from_object_based_checkpoint in tensorflow/python/training/saver.py.
"""

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.format.object_graph import ObjectGraph, not_object_based
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.state_dicts import VERSIONS
from torch_tfckpt.saveables.stored_keys import SHARED
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.text import did_you_mean, escaped, listed
from torch_tfckpt.values import Value

_LISTED: Final = 1000  # names that an error lists


def object_graph_key_mapping(path: AnyPath) -> dict[str, str]:
    """Map the variable names of an object-based checkpoint to its keys: full_name -> checkpoint_key.

    Args:
        path: Anything that CheckpointReader accepts.

    Returns:
        The mapping; if several objects have the same name, it is mapped to the last of their keys. Objects that are not
        variables have the name "".
        There may be no tensor with exactly such a key: a table stores several tensors whose keys begin with it.

    Raises:
        NotFoundError: there is no such checkpoint, or it was stored by name and has no object graph.
        DataLossError: the graph is damaged.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Checkpoint(w=tfckpt.Variable(torch.ones(2), "dense/kernel")).save("ckpt")
        >>> tfckpt.object_graph_key_mapping(path)["dense/kernel"]
        'w/.ATTRIBUTES/VARIABLE_VALUE'

    Cost: one read of the graph; no other tensor is read.
    """
    with CheckpointReader(path) as reader:
        graph = reader.object_graph
        if graph is None:
            raise not_object_based(reader.path)
        return graph.names_to_keys()


def names_of_several(graph: ObjectGraph, keys: Collection[str]) -> list[str]:
    """Return names shared by several variables, at least one of which is stored under one of `keys`.

    TensorFlow reads the last variable with such a name.
    """
    of_names: dict[str, set[str]] = {}
    for node in graph.nodes:
        for attribute in node.attributes:
            if attribute.full_name:
                of_names.setdefault(attribute.full_name, set()).add(attribute.checkpoint_key)
    return sorted(name for name, several in of_names.items() if len(several) > 1 and not several.isdisjoint(keys))


def with_keys(
    saveables: Sequence[SaveableObject], names_to_keys: Mapping[str, str], left_out: list[str] | None = None
) -> list[SaveableObject]:
    """Return saveables that read the checkpoint keys in `names_to_keys`, and restore into `saveables`.

    Args:
        saveables: The saveables of a saver, as VarList.to_save returns them. A tensor that has several names in a
            module is found under any of these names.
        left_out: Receives the names that are not in the checkpoint, provided that other names are found. None: missing
            names raise an error.

    Raises:
        NotFoundError: names are not in the checkpoint. The message lists these names and the names that are only in the
            checkpoint, and counts the names in both. The state of an object is never found, because object-based
            checkpoints do not store it under a name, but under the path to the object.
    """
    aliases = _aliases(saveables)
    found: list[SaveableObject] = []
    wanted: set[str] = set()
    missing: set[str] = set()
    for saveable in saveables:
        if _is_alias_text(saveable, (SHARED, VERSIONS)):
            continue
        # The first of the tensor's names that is in the checkpoint, or else the name of the spec.
        spellings = [(spec.name, *aliases.get(spec.name, ())) for spec in saveable.specs]
        names = [next((each for each in known if each in names_to_keys), known[0]) for known in spellings]
        wanted.update(names)
        here = [name for name in names if name not in names_to_keys]
        if _takes_values(saveable):
            missing.update(here)
            if here and left_out is not None:
                continue
            found.append(UnderKeys(saveable, [names_to_keys.get(name, "") for name in names]))
        else:
            missing.update(names)
    if left_out is not None and found:
        left_out.extend(sorted(missing))
    elif missing:
        raise NotFoundError(_names_do_not_fit(missing, wanted, names_to_keys))
    return found


class UnderKeys(SaveableObject):
    """A saveable that is stored under keys that differ from its names.

    Attributes:
        saveable: The saveable.
    """

    def __init__(self, saveable: SaveableObject, keys: Sequence[str]) -> None:
        specs = [copy.copy(spec) for spec in saveable.specs]
        for spec, key in zip(specs, keys, strict=True):
            spec.name = key
        super().__init__(saveable.op, specs, saveable.name)
        self.saveable = saveable

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        """Call `check` of the wrapped saveable."""
        self.saveable.check(shapes, restored_shapes)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> object:
        """Call `restore` of the wrapped saveable."""
        return self.saveable.restore(restored_tensors, restored_shapes)


def _takes_values(saveable: SaveableObject) -> bool:
    """Whether a saveable can be restored.

    The state of an object, as returned by VarList.to_save, can only be saved.
    """
    return type(saveable).restore is not SaveableObject.restore


def _is_alias_text(saveable: SaveableObject, kinds: Collection[str] = (SHARED,)) -> bool:
    """Whether a saveable stores the other names of a module's shared tensors."""
    return saveable.name.rpartition("/")[2] in kinds and not _takes_values(saveable)


def _aliases(saveables: Sequence[SaveableObject]) -> dict[str, list[str]]:
    """Return name -> the other names of the same tensor."""
    aliases: dict[str, list[str]] = {}
    for saveable in filter(_is_alias_text, saveables):
        for alias, name in json.loads(str(saveable.specs[0].tensor)).items():
            aliases.setdefault(name, []).append(alias)
    return aliases


def _names_do_not_fit(missing: Collection[str], wanted: Collection[str], stored: Collection[str]) -> str:
    """Return the error message: the same three parts as in TensorFlow, and how to fix the error."""
    extra = sorted({name for name in stored if name}.difference(wanted))
    matched = len(set(wanted).intersection(stored).difference(missing))
    hint = did_you_mean(min(missing), extra)
    return (
        f"\n\nExisting variables not in the checkpoint: {listed(sorted(missing), _LISTED, escaped)}\n\n"
        f"Variables names when this checkpoint was written which don't exist now: {listed(extra, _LISTED, escaped)}\n\n"
        f"({matched} variable name(s) did match)\n\n"
        f"This is an object-based checkpoint, as written by tf.train.Checkpoint and Keras, and Saver looks up its "
        f"variables by the names that they had when they were saved. {hint + ' ' if hint else ''}Pass the saver only "
        f"variables that were saved, as a dict with these names as keys; or restore objects with tfckpt.Checkpoint"
    )
