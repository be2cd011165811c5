"""Recognise optimizer state from a Saver, which load_model does not read, and say how to restore it."""

from collections.abc import Sequence
from typing import Any, Final

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.saveables.stored_keys import stored_object
from torch_tfckpt.text import listed, quoted

_LISTED: Final = 4  # keys in the hint


def how_to_restore(reader: CheckpointReader, optimizer: torch.optim.Optimizer, prefix: str) -> str:
    """Return a hint with a Saver that restores the stored optimizer state; "" if no Saver stored any.

    Args:
        prefix: Common prefix of the names of the module, as stored.

    Cost: reads all scalar strings, if the checkpoint has no object graph.
    """
    stored = _optimizers_in(reader)
    if not stored:
        return ""
    name = type(optimizer).__name__
    fitting = [key for key, content in stored.items() if content["optimizer"] == name]
    keys: Sequence[str] = fitting or list(stored)
    if fitting:
        found, remark = f"state of {name}", ""
    else:
        kind = str(stored[keys[0]]["optimizer"])
        found, remark = f"state of {quoted(kind)}", f", with an optimizer of class {quoted(kind)}"
    call = f"Saver({{{_of_model(prefix)}, {quoted(keys[0])}: optimizer}}).restore(path)"
    return (
        f"A Saver of this package stored the {found} under {listed(keys, _LISTED)}, in torch's form, which load_model "
        f"does not read. Restore the model and the optimizer with this Saver: {call}{remark}"
    )


def _optimizers_in(reader: CheckpointReader) -> dict[str, dict[str, Any]]:
    """Return key -> JSON of each optimizer state that a Saver stored. Damaged strings are skipped."""
    found = {}
    for key in reader.keys() if reader.object_graph is None else ():
        if reader.dtype(key) != DataType.DT_STRING or reader.shape(key) != ():
            continue
        try:
            content = stored_object(reader, key)
        except CheckpointError:
            continue
        if isinstance(content.get("optimizer"), str) and "param_groups" in content:
            found[key] = content
    return found


def _of_model(prefix: str) -> str:
    """Return the Python source of the model's entry in the dict that is passed to Saver."""
    name, slash, rest = prefix.rpartition("/")
    # Without a prefix, or with one inside another module, the dict needs an entry for each parameter.
    return f"{quoted(name)}: model" if slash and not rest else "**dict(model.named_parameters())"
