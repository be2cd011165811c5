"""What a graph says of its variables and savers: plain values between a graph's bytes and torch's tensors.

Source: tensorflow/core/framework/variable.proto, tensorflow/core/protobuf/saver.proto; spec: SAVER 2 and 6.
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
        name: Of its node.
        shape: None: not even the number of dimensions is known; -1 in it: a dimension that is not.
        device: In the spelling of `canonical_device`; "" for none in particular.
        part: Which part of which larger tensor it is; None: a tensor by itself.
    """

    name: str
    dtype: DataType
    shape: Shape | None
    device: str = ""
    trainable: bool = False
    part: SaveSliceInfoDef | None = None


@dataclass(frozen=True, slots=True)
class SavedVariable:
    """A variable as a saver stores it: under `key`, as the part of a larger tensor that `slice_spec` says, if any."""

    variable: GraphVariable
    key: str
    slice_spec: str = ""


@dataclass(frozen=True, slots=True)
class GraphSaver:
    """A saver of a graph.

    Attributes:
        saver_def: The names in it are those of nodes: "save/Const:0", "save/control_dependency:0", "save/restore_all".
        groups: (device, what is saved from it), in the order of the shards; one group where it is not sharded.
        reshape: Whether restored values take the variables' shapes.
        filename: The default path.
    """

    saver_def: SaverDef
    groups: Sequence[tuple[str, Sequence[SavedVariable]]]
    reshape: bool = False
    filename: str = "model"
