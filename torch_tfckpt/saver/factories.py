"""Savers that a program gets without constructing one: the default saver, and one for object-based checkpoints.

    saver = saver_from_object_based_checkpoint("ckpt-12", {"dense/kernel": kernel})
    saver.restore("ckpt-12")

Saver.restore also reads object-based checkpoints when names are not found in one.

Source: saver_from_object_based_checkpoint and _get_saver_or_default in tensorflow/python/training/saver.py.
"""

from collections.abc import Mapping

from torch_tfckpt.checkpoint_reader import AnyPath
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
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.text import printable


def get_saver_or_default() -> Saver:
    """The saver in the collection "savers", or a new one of all registered variables, sharded, which is put there.

    Raises:
        FailedPreconditionError (a RuntimeError): the collection holds several.
    """
    savers = get_collection(GraphKeys.SAVERS)
    if len(savers) > 1:
        raise FailedPreconditionError(f"More than one item in collection {GraphKeys.SAVERS}: {len(savers)}. Name yours")
    if savers:
        found = savers[0]
        if not isinstance(found, Saver):
            raise FailedPreconditionError(f"collection {GraphKeys.SAVERS} holds a {type(found).__name__}, no Saver")
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
    """A saver over the keys under which the checkpoint has the variables.

    Args:
        path: Any spelling of a checkpoint that CheckpointReader takes.
        var_list: As of Saver; None: what is in the collections "variables" and "saveable_objects".
        builder: Reads the files; None: a BulkSaverBuilder.
        names_to_keys: What to go by in place of the checkpoint's own mapping; then `path` is not looked at.
        cached_saver: Returned, once the names are found to fit, in place of a new saver: an earlier one for the same
            variables and the same kind of checkpoint.

    Raises:
        InvalidArgumentError (a ValueError): "not an object-based checkpoint".
        NotFoundError: the checkpoint lacks names; the text has TensorFlow's three parts. The state of optimizers and
            other objects always lacks.
        DataLossError: the object graph is damaged.

    What the saver restores is as `var_list` is now: tensors that a module gets later are not seen. If it saves, it
    saves under keys, but without an object graph.
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
