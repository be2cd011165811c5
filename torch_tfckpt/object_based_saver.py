"""A Saver that reads an object-based checkpoint by the names that its variables had.

    saver = saver_from_object_based_checkpoint("ckpt-12", {"dense/kernel": kernel})
    saver.restore("ckpt-12")

Saver.restore does the same by itself, where names are not found in such a checkpoint.

Source: saver_from_object_based_checkpoint in tensorflow/python/training/saver.py; spec: SAVER 4.
"""

from collections.abc import Mapping

from torch_tfckpt.builder import BaseSaverBuilder
from torch_tfckpt.checkpoint_reader import AnyPath
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError, printable
from torch_tfckpt.object_graph_names import object_graph_key_mapping, with_keys
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.saver import Saver, registered_variables
from torch_tfckpt.storage.names import fspath


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
