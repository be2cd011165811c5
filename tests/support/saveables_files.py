"""Save and restore saveables in the simplest way, without the care of a builder."""

from collections.abc import Iterable
from pathlib import Path

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.storage.local import LOCAL


def save(var_list: object, prefix: Path) -> list[str]:
    """Save the present values; return the names in the file."""
    with BundleWriter(LOCAL, str(prefix)) as writer:
        for spec in sorted((spec for each in VarList(var_list).to_save() for spec in each.specs), key=lambda s: s.name):
            value = spec.tensor
            assert value is not None and not spec.slice_spec
            writer.add(spec.name, value)
    with tfckpt.load_checkpoint(prefix) as reader:
        return reader.keys()


def restore(var_list: object, prefix: Path) -> None:
    """Restore the values in the file."""
    with tfckpt.load_checkpoint(prefix) as reader:
        restore_each(VarList(var_list).to_restore(reader), reader)


def restore_each(saveables: Iterable[SaveableObject], reader: tfckpt.CheckpointReader) -> None:
    """Read, check and assign; each step for all saveables before the next."""
    saveables = list(saveables)
    values = [[reader.get_tensor(spec.name) for spec in each.specs] for each in saveables]
    for saveable, tensors in zip(saveables, values, strict=True):
        for spec in saveable.specs:
            assert spec.dtype == reader.dtype(spec.name)
        saveable.check([tuple(tensor.shape) for tensor in tensors])
    for saveable, tensors in zip(saveables, values, strict=True):
        saveable.restore(tensors, None)
