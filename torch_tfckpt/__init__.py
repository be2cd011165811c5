"""TensorFlow checkpoints as a native citizen of PyTorch, without TensorFlow."""

from torch_tfckpt.checkpoint_reader import CheckpointReader, list_variables, load_checkpoint, load_variable
from torch_tfckpt.dtypes import DataType
from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    IncompleteSaveError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from torch_tfckpt.tensor_dict import load_file, save_file

__all__ = [
    "CheckpointError",
    "CheckpointReader",
    "DataLossError",
    "DataType",
    "FailedPreconditionError",
    "IncompleteSaveError",
    "InvalidArgumentError",
    "NotFoundError",
    "UnimplementedError",
    "list_variables",
    "load_checkpoint",
    "load_file",
    "load_variable",
    "save_file",
]
