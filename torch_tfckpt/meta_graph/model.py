"""The variables and savers of a graph as plain values, independent of its encoding and of torch.

Source: tensorflow/core/framework/variable.proto, tensorflow/core/protobuf/saver.proto.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape


@dataclass(frozen=True, slots=True)
class GraphVariable:
    """A variable of a graph.

    Attributes:
        name: Name of its node.
        shape: None if even the number of dimensions is unknown; -1 for an unknown dimension.
        device: Device, as spelled by `canonical_device`; "" if not specified.
        part: Its position in a larger tensor; None for a whole tensor.
    """

    name: str
    dtype: DataType
    shape: Shape | None
    device: str = ""
    trainable: bool = False
    part: SaveSliceInfoDef | None = None


@dataclass(frozen=True, slots=True)
class SavedVariable:
    """A variable as a saver stores it: its key, and its slice of a larger tensor ("" for a whole tensor)."""

    variable: GraphVariable
    key: str
    slice_spec: str = ""


@dataclass(frozen=True, slots=True)
class GraphSaver:
    """A saver of a graph.

    Attributes:
        saver_def: The settings, and the names of three nodes of the graph, e.g. "save/Const:0",
            "save/control_dependency:0" and "save/restore_all".
        groups: (device, its variables), in the order of the shards; one group if the saver is not sharded.
        reshape: Whether restored values are reshaped to the variables' shapes.
        filename: The default path.
    """

    saver_def: SaverDef
    groups: Sequence[tuple[str, Sequence[SavedVariable]]]
    reshape: bool = False
    filename: str = "model"
