"""SaverDef: the settings of a saver as a message, and the scope that its names are in.

Source: tensorflow/core/protobuf/saver.proto, Saver.to_proto in tensorflow/python/training/saver.py; spec: SAVER 4.
"""

from typing import Final

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import InvalidArgumentError

_NAMES: Final = ("filename_tensor_name", "save_tensor_name", "restore_op_name")


def in_scope(saver_def: object, scope: str | None) -> SaverDef:
    """A copy of the settings, its names put into `scope`; InvalidArgumentError where it is no SaverDef, or has none."""
    if not isinstance(saver_def, SaverDef):
        raise InvalidArgumentError(f"saver_def must be a saver_pb2.SaverDef: got {type(saver_def).__name__}")
    for name in ("save_tensor_name", "restore_op_name"):
        if not getattr(saver_def, name):
            raise InvalidArgumentError(f"saver_def must specify the {name}. Take another saver's as_saver_def()")
    copy = SaverDef()
    copy.CopyFrom(saver_def)
    for name in _NAMES if scope else ():
        setattr(copy, name, f"{scope}/{getattr(saver_def, name)}")
    return copy


def out_of_scope(saver_def: SaverDef, scope: str) -> SaverDef | None:
    """A copy of the settings without `scope` in its names; None where one of them is not in that scope."""
    prefix = scope.rstrip("/") + "/"
    copy = SaverDef()
    copy.CopyFrom(saver_def)
    for name in _NAMES:
        value = getattr(copy, name)
        if not value.startswith(prefix):
            return None
        setattr(copy, name, value.removeprefix(prefix))
    return copy
