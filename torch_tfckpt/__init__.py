"""Read, write, convert, train with and run TensorFlow checkpoints and graphs in PyTorch, without TensorFlow.

Only the names listed in `__all__` are public; modules and their other names may change. Names are imported from their
modules on first use, so that `import torch_tfckpt` and the parts of the command line that need no tensors start without
importing torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError(
        "torch_tfckpt does not run on Windows, which has no flock and no preadv. Use it in WSL 2, which is Linux"
    )

if TYPE_CHECKING:
    from torch_tfckpt._proto.checkpoint_state_pb2 import CheckpointState
    from torch_tfckpt._proto.graph_pb2 import GraphDef
    from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
    from torch_tfckpt._proto.saver_pb2 import SaverDef
    from torch_tfckpt._proto.tensor_slice_pb2 import TensorSliceProto
    from torch_tfckpt.bundle.check import Damage, Verification
    from torch_tfckpt.checkpoint_reader import CheckpointReader, list_variables, load_checkpoint, load_variable
    from torch_tfckpt.comparison.compare import compare_model
    from torch_tfckpt.comparison.report import ModelComparison
    from torch_tfckpt.conversion.average import AverageReport, average
    from torch_tfckpt.conversion.convert import convert
    from torch_tfckpt.conversion.convert_report import ConvertedTensor, ConvertReport, SidecarTensor, TensorOutcome
    from torch_tfckpt.conversion.diff import Difference, DiffReport, diff
    from torch_tfckpt.conversion.merge import MergeReport, merge, merge_parts
    from torch_tfckpt.conversion.verify import verify
    from torch_tfckpt.directory.checkpoint_files import checkpoint_files
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
    from torch_tfckpt.distributed.ranks import Ranks
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
    from torch_tfckpt.format.object_graph import (
        ObjectGraph,
        ObjectReference,
        RegisteredSaver,
        SerializedTensor,
        SlotVariable,
        TrackableObject,
    )
    from torch_tfckpt.format.tensor_slice import Extent, TensorSlice
    from torch_tfckpt.graph_ops.registry import register_op
    from torch_tfckpt.graph_run.requests import Requirements
    from torch_tfckpt.imported_graph.exported import export_meta_graph
    from torch_tfckpt.imported_graph.graph_def import import_graph_def
    from torch_tfckpt.imported_graph.imported import ImportedMetaGraph, import_meta_graph
    from torch_tfckpt.integrations.dcp_reader import TFCheckpointReader
    from torch_tfckpt.integrations.dcp_writer import TFCheckpointWriter
    from torch_tfckpt.manager import CheckpointManager, ManagedCheckpoint
    from torch_tfckpt.meta_graph.graph_collections import Collections, GraphKeys, add_to_collection, get_collection
    from torch_tfckpt.models.checkpoint import Checkpoint
    from torch_tfckpt.models.initialization import init_from_checkpoint
    from torch_tfckpt.models.loading import load_model
    from torch_tfckpt.models.rules.key_mapper import KeyMapper
    from torch_tfckpt.models.rules.key_rules import KeyRule
    from torch_tfckpt.models.rules.rule_set import KeyMatch, KeyTarget
    from torch_tfckpt.models.saving import save_model
    from torch_tfckpt.objects.options import CheckpointOptions
    from torch_tfckpt.objects.status import LoadStatus
    from torch_tfckpt.save_restore.builder import BaseSaverBuilder, BulkSaverBuilder
    from torch_tfckpt.save_restore.handle import SaveHandle
    from torch_tfckpt.save_restore.object_names import object_graph_key_mapping
    from torch_tfckpt.save_restore.on_signal import SaveOnSignal
    from torch_tfckpt.saveables.load_report import Conversion, LoadReport, Mismatch, SemanticFinding
    from torch_tfckpt.saveables.rng_state import RNGState
    from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
    from torch_tfckpt.saveables.slice_info import SaveSliceInfo
    from torch_tfckpt.saveables.variables import PartitionedVariable, Variable
    from torch_tfckpt.saver.factories import get_saver_or_default, saver_from_object_based_checkpoint
    from torch_tfckpt.saver.saver import Saver
    from torch_tfckpt.saver.saver_checkpoint import SaverCheckpoint
    from torch_tfckpt.storage.protocol import ReadableFile, Storage, WritableFile
    from torch_tfckpt.tensor_dict import load_file, save_file
    from torch_tfckpt.transfer.staging import StagingOptions
    from torch_tfckpt.values import StoredTensor

__version__: Final = "0.1.0.dev0"

__all__ = [
    "AverageReport",
    "BaseSaverBuilder",
    "BulkSaverBuilder",
    "Checkpoint",
    "CheckpointError",
    "CheckpointManager",
    "CheckpointOptions",
    "CheckpointReader",
    "CheckpointState",
    "Collections",
    "Conversion",
    "ConvertReport",
    "ConvertedTensor",
    "Damage",
    "DataLossError",
    "DataType",
    "DiffReport",
    "Difference",
    "Extent",
    "FailedPreconditionError",
    "GraphDef",
    "GraphKeys",
    "ImportedMetaGraph",
    "IncompleteSaveError",
    "InvalidArgumentError",
    "KeepBest",
    "KeyMapper",
    "KeyMatch",
    "KeyRule",
    "KeyTarget",
    "LoadReport",
    "LoadStatus",
    "ManagedCheckpoint",
    "MergeReport",
    "MetaGraphDef",
    "Mismatch",
    "ModelComparison",
    "NotFoundError",
    "ObjectGraph",
    "ObjectReference",
    "PartitionedVariable",
    "RNGState",
    "Ranks",
    "ReadableFile",
    "RegisteredSaver",
    "Requirements",
    "SaveHandle",
    "SaveOnSignal",
    "SaveSliceInfo",
    "SaveSpec",
    "SaveableObject",
    "Saver",
    "SaverCheckpoint",
    "SaverDef",
    "SemanticFinding",
    "SerializedTensor",
    "SidecarTensor",
    "SlotVariable",
    "StagingOptions",
    "Storage",
    "StoredTensor",
    "TFCheckpointReader",
    "TFCheckpointWriter",
    "TensorOutcome",
    "TensorSlice",
    "TensorSliceProto",
    "TrackableObject",
    "UnimplementedError",
    "Variable",
    "Verification",
    "WritableFile",
    "add_to_collection",
    "average",
    "checkpoint_exists",
    "checkpoint_files",
    "checkpoints_iterator",
    "compare_model",
    "convert",
    "diff",
    "export_meta_graph",
    "generate_checkpoint_state_proto",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "get_collection",
    "get_saver_or_default",
    "import_graph_def",
    "import_meta_graph",
    "init_from_checkpoint",
    "latest_checkpoint",
    "list_variables",
    "load_checkpoint",
    "load_file",
    "load_model",
    "load_variable",
    "merge",
    "merge_parts",
    "meta_graph_filename",
    "object_graph_key_mapping",
    "register_op",
    "remove_checkpoint",
    "save_file",
    "save_model",
    "saver_from_object_based_checkpoint",
    "update_checkpoint_state",
    "verify",
]

# Module -> the public names that it defines. Type checkers use the imports above.
_DEFINED_IN: Final = {
    "_proto.checkpoint_state_pb2": "CheckpointState",
    "_proto.graph_pb2": "GraphDef",
    "_proto.meta_graph_pb2": "MetaGraphDef",
    "_proto.saver_pb2": "SaverDef",
    "_proto.tensor_slice_pb2": "TensorSliceProto",
    "bundle.check": "Damage Verification",
    "checkpoint_reader": "CheckpointReader list_variables load_checkpoint load_variable",
    "comparison.compare": "compare_model",
    "comparison.report": "ModelComparison",
    "conversion.average": "AverageReport average",
    "conversion.convert": "convert",
    "conversion.convert_report": "ConvertReport ConvertedTensor SidecarTensor TensorOutcome",
    "conversion.diff": "DiffReport Difference diff",
    "conversion.merge": "MergeReport merge merge_parts",
    "conversion.verify": "verify",
    "directory.checkpoint_files": "checkpoint_files",
    "directory.management": "checkpoint_exists checkpoints_iterator get_checkpoint_mtimes "
    "latest_checkpoint meta_graph_filename remove_checkpoint",
    "directory.retention": "KeepBest",
    "directory.state_file": "generate_checkpoint_state_proto get_checkpoint_state update_checkpoint_state",
    "distributed.ranks": "Ranks",
    "errors": "CheckpointError DataLossError FailedPreconditionError "
    "IncompleteSaveError InvalidArgumentError NotFoundError UnimplementedError",
    "format.data_type": "DataType",
    "format.object_graph": "ObjectGraph ObjectReference RegisteredSaver SerializedTensor SlotVariable TrackableObject",
    "format.tensor_slice": "Extent TensorSlice",
    "graph_ops.registry": "register_op",
    "graph_run.requests": "Requirements",
    "imported_graph.exported": "export_meta_graph",
    "imported_graph.graph_def": "import_graph_def",
    "imported_graph.imported": "ImportedMetaGraph import_meta_graph",
    "integrations.dcp_reader": "TFCheckpointReader",
    "integrations.dcp_writer": "TFCheckpointWriter",
    "manager": "CheckpointManager ManagedCheckpoint",
    "meta_graph.graph_collections": "Collections GraphKeys add_to_collection get_collection",
    "models.initialization": "init_from_checkpoint",
    "models.rules.key_mapper": "KeyMapper",
    "models.rules.key_rules": "KeyRule",
    "models.loading": "load_model",
    "models.rules.rule_set": "KeyMatch KeyTarget",
    "models.saving": "save_model",
    "models.checkpoint": "Checkpoint",  # objects.checkpoint with all namings
    "objects.options": "CheckpointOptions",
    "objects.status": "LoadStatus",
    "save_restore.builder": "BaseSaverBuilder BulkSaverBuilder",
    "save_restore.handle": "SaveHandle",
    "save_restore.object_names": "object_graph_key_mapping",
    "save_restore.on_signal": "SaveOnSignal",
    "saveables.load_report": "Conversion LoadReport Mismatch SemanticFinding",
    "saveables.rng_state": "RNGState",
    "saveables.save_spec": "SaveSpec SaveableObject",
    "saveables.slice_info": "SaveSliceInfo",
    "saveables.variables": "PartitionedVariable Variable",
    "saver.factories": "get_saver_or_default saver_from_object_based_checkpoint",
    "saver.saver": "Saver",
    "saver.saver_checkpoint": "SaverCheckpoint",
    "storage.protocol": "ReadableFile Storage WritableFile",
    "tensor_dict": "load_file save_file",
    "transfer.staging": "StagingOptions",
    "values": "StoredTensor",
}
_MODULE_OF: Final = {name: module for module, names in _DEFINED_IN.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    """Return the public names only, without imported modules."""
    return [*__all__, "__doc__", "__file__", "__name__", "__path__", "__version__"]
