"""SaverDef: the settings of a saver as a message, and the scope of the names in it.

Source: tensorflow/core/protobuf/saver.proto, Saver.to_proto in tensorflow/python/training/saver.py.
"""

import re
from typing import Final

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.meta_graph import scopes
from torch_tfckpt.text import quoted

DEFAULT_FILENAME: Final = "model"
_TENSOR: Final = re.compile(scopes.VALID_SCOPE.pattern + ":0")


def in_scope(saver_def: object, scope: str | None) -> SaverDef:
    """Return a copy of the settings with `scope` added to the names in it.

    Raises:
        InvalidArgumentError: `saver_def` is not a SaverDef, or has no names; or `scope` is invalid.
    """
    if not isinstance(saver_def, SaverDef):
        raise InvalidArgumentError(f"saver_def must be a saver_pb2.SaverDef: got {type(saver_def).__name__}")
    scopes.require_names(saver_def)
    return scopes.in_scope(saver_def, check_scope(scope))


def check_scope(name: str | None) -> str | None:
    """Return `name`; raise InvalidArgumentError if names of nodes cannot begin with it."""
    if name and not (isinstance(name, str) and scopes.VALID_SCOPE.fullmatch(name)):
        raise InvalidArgumentError(
            f"{quoted(str(name))} is not a valid root scope name. Begin it with a letter, a digit or a dot, and "
            f'continue with these and "_", "-", "/", ">", "\\"'
        )
    return name


def default_names(scope: str, *, sharded: bool, version: int) -> SaverDef:
    """Return settings with only the names that TensorFlow gives to a saver's operations in `scope`."""
    saves = "control_dependency"
    if sharded:
        saves = "ShardedFilespec" if version == SaverDef.V1 else "Identity"
    return SaverDef(
        filename_tensor_name=f"{scope}/Const:0",
        save_tensor_name=f"{scope}/{saves}:0",
        restore_op_name=f"{scope}/restore_all",
    )


def naming_nodes(saver_def: SaverDef, filename: str | None) -> tuple[SaverDef, str]:
    """Return settings that name distinct nodes, and the default path.

    If a saver has its own default path, its settings contain this path in place of a tensor's name. This path, or
    any other value of this field that is not a tensor's name, is replaced by a tensor's name. If the names are then
    not valid or not distinct, all of them are replaced by TensorFlow's default names.

    Args:
        filename: The saver's own default path, if it has one.
    """
    path = saver_def.filename_tensor_name
    copy = SaverDef()
    copy.CopyFrom(saver_def)
    default_path = DEFAULT_FILENAME
    if path == filename or not _TENSOR.fullmatch(path):
        default_path = path or DEFAULT_FILENAME
        copy.filename_tensor_name = f"{saver_def.restore_op_name.rpartition('/')[0] or 'save'}/Const:0"
    tensors = (copy.filename_tensor_name, copy.save_tensor_name)
    nodes = {*(name.removesuffix(":0") for name in tensors), copy.restore_op_name}
    if len(nodes) != 3 or not all(map(scopes.VALID_SCOPE.fullmatch, nodes)):
        copy.MergeFrom(default_names("save", sharded=saver_def.sharded, version=saver_def.version))
    return copy, default_path


def out_of_scope(saver_def: SaverDef, scope: str) -> SaverDef | None:
    """Return a copy of the settings with `scope` removed from the names; None if a name is not in `scope`."""
    return scopes.out_of_scope(saver_def, scope) if scopes.is_in_scope(saver_def, scope) else None
