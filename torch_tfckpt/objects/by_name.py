"""Restore a tree of objects from a checkpoint with tensors by name, as written by Saver."""

from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.objects.graph_view import ObjectNode, object_nodes
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import Trackable
from torch_tfckpt.save_restore.builder import BulkSaverBuilder
from torch_tfckpt.save_restore.restore import Agree, alone, restore_saveables
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.load_report import LoadReport
from torch_tfckpt.saveables.module_state import Modules
from torch_tfckpt.saveables.module_tensors import module_tensors
from torch_tfckpt.saveables.save_spec import SaveableObject, refuse_sharded_values
from torch_tfckpt.saveables.state_dicts import StateDictSaveable


def restore_by_name(
    root: Trackable, reader: CheckpointReader, *, sharded: bool = False, agree: Agree = alone
) -> set[Identity]:
    """Restore the stored tensors below `root`, by the names that a Saver of the same objects would use.

    Args:
        sharded: Accept DTensors, of which this rank restores its part.
        agree: Called before the first value is assigned.

    Returns:
        The restored objects.

    Raises: as `restore_saveables`; InvalidArgumentError: a DTensor, unless `sharded`.
    """
    modules: dict[str, nn.Module] = {}
    saveables: list[SaveableObject] = []
    restored: set[Identity] = set()
    extra: dict[str, Identity] = {}
    # Two objects may have the same name; then both get the same value.
    for node in object_nodes(root):
        way = _way_to_module(node)
        if way is not None:
            module = way[-1].trackable.target
            assert isinstance(module, nn.Module)
            key = "/".join(each.local_name for each in way[1:])
            modules[key] = module
            if not isinstance(node.trackable, TensorTrackable):  # extra state
                name = ".".join(each.local_name for each in node.way[len(way) :])
                extra[f"{key}/{name}" if key else name] = node.trackable.identity
        elif isinstance(node.trackable, TensorTrackable) and node.full_name in reader:
            saveables.append(node.trackable.saveable(node.full_name))
            restored.add(node.trackable.identity)
    report = LoadReport()
    of_modules = [
        saveable
        for saveable in Modules(modules).to_restore(reader, report, strict=False)
        if isinstance(saveable, StateDictSaveable) or all(spec.name in reader for spec in saveable.specs)
    ]
    if not sharded:
        refuse_sharded_values([*saveables, *of_modules])
    restore_saveables(BulkSaverBuilder(), reader, [*saveables, *of_modules], agree=agree)
    for saveable in of_modules:
        if isinstance(saveable, StateDictSaveable):
            tensors = module_tensors(saveable.module)
            restored.update(identity_of(each.tensor) for each in tensors if each.name not in saveable.missing)
        elif saveable.op is not None:
            restored.add(identity_of(saveable.op))
    return restored | {identity for key, identity in extra.items() if key in reader}


def _way_to_module(node: ObjectNode) -> list[ObjectNode] | None:
    """Return the nodes from the root to the first module on the path to a node; None if it has no module."""
    way = node.way
    at = next((at for at, each in enumerate(way) if isinstance(each.trackable.target, nn.Module)), None)
    return None if at is None else way[: at + 1]
