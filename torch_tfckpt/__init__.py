"""TensorFlow checkpoints as a native citizen of PyTorch, without TensorFlow."""

from torch_tfckpt._proto.checkpoint_state_pb2 import CheckpointState
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.checkpoint_reader import CheckpointReader, list_variables, load_checkpoint, load_variable
from torch_tfckpt.directory.management import (
    checkpoint_exists,
    checkpoints_iterator,
    get_checkpoint_mtimes,
    latest_checkpoint,
    meta_graph_filename,
    remove_checkpoint,
)
from torch_tfckpt.directory.retention import KeepBest
from torch_tfckpt.directory.state_file import (
    generate_checkpoint_state_proto,
    get_checkpoint_state,
    update_checkpoint_state,
)
from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    IncompleteSaveError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.object_graph import ObjectGraph
from torch_tfckpt.imported_graph.exported import export_meta_graph
from torch_tfckpt.imported_graph.imported import ImportedMetaGraph, import_meta_graph
from torch_tfckpt.manager import CheckpointManager
from torch_tfckpt.meta_graph.graph_collections import Collections, GraphKeys, add_to_collection, get_collection
from torch_tfckpt.models.initialization import init_from_checkpoint
from torch_tfckpt.models.key_mapper import KeyMapper, KeyRule
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.report import LoadReport
from torch_tfckpt.models.saving import save_model
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.options import CheckpointOptions
from torch_tfckpt.save_restore.builder import BaseSaverBuilder, BulkSaverBuilder
from torch_tfckpt.save_restore.handle import SaveHandle
from torch_tfckpt.save_restore.object_names import object_graph_key_mapping
from torch_tfckpt.saveables.rng_state import RNGState
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.slice_info import SaveSliceInfo
from torch_tfckpt.saveables.variables import PartitionedVariable, Variable
from torch_tfckpt.saver.factories import get_saver_or_default, saver_from_object_based_checkpoint
from torch_tfckpt.saver.saver import Saver
from torch_tfckpt.saver.saver_checkpoint import SaverCheckpoint
from torch_tfckpt.tensor_dict import load_file, save_file
from torch_tfckpt.transfer.staging import StagingOptions

__all__ = [
    "BaseSaverBuilder",
    "BulkSaverBuilder",
    "Checkpoint",
    "CheckpointError",
    "CheckpointManager",
    "CheckpointOptions",
    "CheckpointReader",
    "CheckpointState",
    "Collections",
    "DataLossError",
    "DataType",
    "FailedPreconditionError",
    "GraphKeys",
    "ImportedMetaGraph",
    "IncompleteSaveError",
    "InvalidArgumentError",
    "KeepBest",
    "KeyMapper",
    "KeyRule",
    "LoadReport",
    "MetaGraphDef",
    "NotFoundError",
    "ObjectGraph",
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
    "export_meta_graph",
    "generate_checkpoint_state_proto",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "get_collection",
    "get_saver_or_default",
    "import_meta_graph",
    "init_from_checkpoint",
    "latest_checkpoint",
    "list_variables",
    "load_checkpoint",
    "load_file",
    "load_model",
    "load_variable",
    "meta_graph_filename",
    "object_graph_key_mapping",
    "remove_checkpoint",
    "save_file",
    "save_model",
    "saver_from_object_based_checkpoint",
    "update_checkpoint_state",
]
