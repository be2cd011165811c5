"""Names in scopes; tests/conformance/test_meta_graph_options.py compares them with TensorFlow's."""

import pytest
from google.protobuf.message import Message

from torch_tfckpt._proto.control_flow_pb2 import CondContextDef, ControlFlowContextDef, ValuesDef, WhileContextDef
from torch_tfckpt._proto.error_codes_pb2 import OUT_OF_RANGE
from torch_tfckpt._proto.queue_runner_pb2 import QueueRunnerDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef, VariableDef
from torch_tfckpt.meta_graph.collection_defs import PROTO_COLLECTIONS
from torch_tfckpt.meta_graph.scopes import (
    in_name_scope,
    in_scope,
    is_in_scope,
    out_of_scope,
    prepend_name_scope,
    strip_name_scope,
)

VALUES = ValuesDef(values=["v/x:0", "v/y:0"], external_values={"v/x:0": "v/switch:1"})
OF_NAMES = [
    VariableDef(
        variable_name="v:0",
        initializer_name="v/Assign",
        snapshot_name="v/read:0",
        initial_value_name="v/zeros:0",
        save_slice_info_def=SaveSliceInfoDef(full_name="v", full_shape=[4], var_offset=[0], var_shape=[2]),
        trainable=True,
    ),
    SaverDef(filename_tensor_name="s/Const:0", save_tensor_name="s/c:0", restore_op_name="s/all", max_to_keep=3),
    QueueRunnerDef(
        queue_name="q",
        enqueue_op_name=["q/one", "q/two"],
        close_op_name="q/close",
        cancel_op_name="q/cancel",
        queue_closed_exception_types=[OUT_OF_RANGE],
    ),
    CondContextDef(
        context_name="c/text",
        pred_name="c/pred:0",
        pivot_name="c/pivot:0",
        branch=1,
        values_def=VALUES,
        nested_contexts=[
            ControlFlowContextDef(cond_ctxt=CondContextDef(context_name="c/c")),
            ControlFlowContextDef(while_ctxt=WhileContextDef(context_name="c/w", values_def=VALUES)),
        ],
    ),
    WhileContextDef(
        context_name="w/context",
        parallel_iterations=10,
        pivot_name="w/cond:0",
        pivot_for_pred_name="w/merge:0",
        pivot_for_body_name="w/body:0",
        loop_exit_names=["w/exit:0"],
        loop_enter_names=["w/enter:0"],
        values_def=VALUES,
        maximum_iterations_name="w/most:0",
    ),
]
EVERY_MESSAGE = pytest.mark.parametrize("message", OF_NAMES, ids=lambda message: message.DESCRIPTOR.name)


@pytest.mark.parametrize(
    ("name", "inside"),
    [("w", "a/w"), ("w:0", "a/w:0"), ("^w", "^a/w"), ("loc:@w", "loc:@a/w"), ("b/w", "a/b/w"), ("", "a/")],
)
def test_names(name: str, inside: str) -> None:
    """Into a scope and out of it; a slash at the end of the scope does not matter; no scope changes nothing."""
    for scope in ("a", "a/"):
        assert prepend_name_scope(name, scope) == inside
        assert strip_name_scope(inside, scope) == name
        assert in_name_scope(inside, scope)
    for none in ("", None):
        assert prepend_name_scope(name, none) == strip_name_scope(name, none) == name
        assert in_name_scope(name, none)


@pytest.mark.parametrize("name", ["a", "ab/w", "b/a/w", "^ab/w", "loc:@b"])
def test_names_of_other_scopes(name: str) -> None:
    """They are unchanged, even if they begin with the same characters."""
    assert strip_name_scope(name, "a") == name
    assert not in_name_scope(name, "a")


def test_a_scope_is_not_a_pattern() -> None:
    """In TensorFlow, its dots match any character."""
    assert strip_name_scope("v1x0/w", "v1.0") == "v1x0/w"
    assert strip_name_scope("v1.0/w", "v1.0") == "w"


@EVERY_MESSAGE
def test_messages(message: Message) -> None:
    """All strings of the message get the scope and lose it again; numbers do not change."""
    inside = in_scope(message, "a")
    assert str(message).count('"') == str(inside).count('"') == 2 * str(inside).count('"a/')
    assert out_of_scope(inside, "a/") == message
    assert is_in_scope(inside, "a")
    assert not is_in_scope(message, "a")
    assert in_scope(message, None) == message == out_of_scope(message, "b")


def test_every_kind_of_message_is_tested() -> None:
    """All kinds of messages in collections are covered."""
    assert {type(message) for message in OF_NAMES} == set(PROTO_COLLECTIONS.values())


def test_missing_fields_stay_missing() -> None:
    """An empty name gets no scope."""
    assert in_scope(SaverDef(save_tensor_name="c:0"), "a") == SaverDef(save_tensor_name="a/c:0")


def test_a_saver_is_in_a_scope_if_all_its_names_are() -> None:
    """CASES 79: not if only one or two are."""
    saver_def = SaverDef(filename_tensor_name="a/Const:0", save_tensor_name="a/c:0", restore_op_name="b/all")
    assert not is_in_scope(saver_def, "a")
    assert not is_in_scope(saver_def, "b")


def test_unknown_fields_are_preserved() -> None:
    """A later version may have more fields in a variable."""
    later = VariableDef(variable_name="v:0").SerializeToString() + b"\xf2\x3f\x02hi"
    assert in_scope(VariableDef.FromString(later), "a").SerializeToString().endswith(b"\xf2\x3f\x02hi")
