"""Functions that return a saver: the default saver, or one for object-based checkpoints.

    saver = saver_from_object_based_checkpoint("ckpt-12", {"dense/kernel": kernel})
    saver.restore("ckpt-12")

Saver.restore does the same by itself if a checkpoint is object-based and the names are not keys in it.

Source: saver_from_object_based_checkpoint and _get_saver_or_default in tensorflow/python/training/saver.py.
"""

from collections.abc import Mapping

from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from torch_tfckpt.meta_graph.graph_collections import (
    GraphKeys,
    add_to_collection,
    get_collection,
    registered_variables,
)
from torch_tfckpt.save_restore.builder import BaseSaverBuilder
from torch_tfckpt.save_restore.object_names import object_graph_key_mapping, with_keys
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.saver.saver import Saver
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.text import printable


def get_saver_or_default() -> Saver:
    """Return the saver in the collection "savers", or a new one for all registered variables.

    A new saver is sharded, and is added to the collection.

    Raises:
        FailedPreconditionError (a RuntimeError): there are several savers in the collection.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> with tfckpt.Collections().as_default():
        ...     tfckpt.add_to_collection("variables", tfckpt.Variable(torch.zeros(2), "w"))
        ...     path = tfckpt.get_saver_or_default().save("run/model.ckpt", global_step=1)
        >>> tfckpt.list_variables(path)
        [('w', [2])]
    """
    savers = get_collection(GraphKeys.SAVERS)
    if len(savers) > 1:
        raise FailedPreconditionError(
            f"More than one item in collection {GraphKeys.SAVERS}: {len(savers)}. Use one of them directly"
        )
    if savers:
        found = savers[0]
        if not isinstance(found, Saver):
            raise FailedPreconditionError(
                f"collection {GraphKeys.SAVERS} contains a value of type {type(found).__name__}, not a Saver"
            )
        return found
    saver = Saver(sharded=True, allow_empty=True)
    add_to_collection(GraphKeys.SAVERS, saver)
    return saver


def saver_from_object_based_checkpoint(
    path: AnyPath,
    var_list: object = None,
    builder: BaseSaverBuilder | None = None,
    names_to_keys: Mapping[str, str] | None = None,
    cached_saver: Saver | None = None,
) -> Saver:
    """Create a saver that restores variables by name from an object-based checkpoint.

    Args:
        path: Anything that CheckpointReader accepts.
        var_list: As for Saver; None: the collections "variables" and "saveable_objects".
        builder: Reads the files; None: a BulkSaverBuilder.
        names_to_keys: Variable name -> key, in place of the checkpoint's own mapping; then `path` is not read.
        cached_saver: An earlier saver for the same variables and the same kind of checkpoint; it is returned instead of
            a new one if the names match.

    Raises:
        InvalidArgumentError (a ValueError): "not an object-based checkpoint": it was stored by name, or does not exist.
        NotFoundError: names are not in the checkpoint. As in TensorFlow, the message lists these names and the names
            that are only in the checkpoint, and counts the names in both. The state of optimizers and other objects
            is never found by name.
        DataLossError: the object graph is damaged.

    The saver restores the current tensors of `var_list`; tensors that are added to a module later are not restored.
    Its `save` stores the values under the checkpoint's keys, but writes no object graph.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.Checkpoint(w=tfckpt.Variable(torch.ones(2), "dense/kernel")).save("ckpt")
        >>> kernel = torch.zeros(2)
        >>> report = tfckpt.saver_from_object_based_checkpoint(path, {"dense/kernel": kernel}).restore(path)
        >>> kernel
        tensor([1., 1.])
    """
    if names_to_keys is None:
        try:
            names_to_keys = object_graph_key_mapping(path)
        except NotFoundError as error:
            raise InvalidArgumentError(
                f"Checkpoint in {printable(fspath(path))} not an object-based checkpoint. {error}"
            ) from error
    saveables = with_keys(VarList(registered_variables() if var_list is None else var_list).to_save(), names_to_keys)
    return Saver(saveables, builder=builder) if cached_saver is None else cached_saver
