"""Which collections hold messages, and which.

Source: what tensorflow/python/ops/{ref_variable,control_flow_ops}.py and tensorflow/python/training/{saver,
queue_runner_impl}.py register with ops.register_proto_function; spec: SAVER 6.
"""

from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message

from torch_tfckpt._proto.control_flow_pb2 import CondContextDef, WhileContextDef
from torch_tfckpt._proto.queue_runner_pb2 import QueueRunnerDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import VariableDef
from torch_tfckpt.graph_collections import GraphKeys

# Collections of variables.
VARIABLE_COLLECTIONS: Final = (
    GraphKeys.GLOBAL_VARIABLES,
    GraphKeys.TRAINABLE_VARIABLES,
    GraphKeys.LOCAL_VARIABLES,
    GraphKeys.MODEL_VARIABLES,
    "moving_average_variables",
    "metric_variables",
    "global_step",
)

# Name of a collection -> of what its bytes are the encoding. The bytes of all others are texts.
PROTO_COLLECTIONS: Final[Mapping[str, type[Message]]] = {
    **dict.fromkeys(VARIABLE_COLLECTIONS, VariableDef),
    GraphKeys.SAVERS: SaverDef,
    "queue_runners": QueueRunnerDef,
    "cond_context": CondContextDef,
    "while_context": WhileContextDef,
}
