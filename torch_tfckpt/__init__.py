"""TensorFlow checkpoints as a native citizen of PyTorch, without TensorFlow."""

from torch_tfckpt._proto.checkpoint_state_pb2 import CheckpointState
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.builder import BaseSaverBuilder, BulkSaverBuilder
from torch_tfckpt.checkpoint_management import (
    checkpoint_exists,
    checkpoints_iterator,
    get_checkpoint_mtimes,
    latest_checkpoint,
    meta_graph_filename,
    remove_checkpoint,
)
from torch_tfckpt.checkpoint_manager import CheckpointManager
from torch_tfckpt.checkpoint_reader import CheckpointReader, list_variables, load_checkpoint, load_variable
from torch_tfckpt.checkpoint_state import (
    generate_checkpoint_state_proto,
    get_checkpoint_state,
    update_checkpoint_state,
)
from torch_tfckpt.default_saver import get_saver_or_default
from torch_tfckpt.device.staging import StagingOptions
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
from torch_tfckpt.graph_collections import Collections, GraphKeys, add_to_collection, get_collection
from torch_tfckpt.retention import KeepBest
from torch_tfckpt.save_handle import SaveHandle
from torch_tfckpt.saveables.rng_state import RNGState
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.variables import PartitionedVariable, SaveSliceInfo, Variable
from torch_tfckpt.saver import Saver
from torch_tfckpt.saver_checkpoint import SaverCheckpoint
from torch_tfckpt.tensor_dict import load_file, save_file

__all__ = [
    "BaseSaverBuilder",
    "BulkSaverBuilder",
    "CheckpointError",
    "CheckpointManager",
    "CheckpointReader",
    "CheckpointState",
    "Collections",
    "DataLossError",
    "DataType",
    "FailedPreconditionError",
    "GraphKeys",
    "IncompleteSaveError",
    "InvalidArgumentError",
    "KeepBest",
    "NotFoundError",
    "PartitionedVariable",
    "RNGState",
    "SaveHandle",
    "SaveSliceInfo",
    "SaveSpec",
    "SaveableObject",
    "Saver",
    "SaverCheckpoint",
    "SaverDef",
    "StagingOptions",
    "UnimplementedError",
    "Variable",
    "add_to_collection",
    "checkpoint_exists",
    "checkpoints_iterator",
    "generate_checkpoint_state_proto",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "get_collection",
    "get_saver_or_default",
    "latest_checkpoint",
    "list_variables",
    "load_checkpoint",
    "load_file",
    "load_variable",
    "meta_graph_filename",
    "remove_checkpoint",
    "save_file",
    "update_checkpoint_state",
]
