"""The declarations of operations. tests/conformance/test_meta_graph_bytes.py tests that they are TensorFlow's."""

from torch_tfckpt.meta_graph.nodes import declarations, known_ops


def test_known_operations_are_declared_without_descriptions() -> None:
    """Sorted by name, as in a graph."""
    ops = known_ops()
    assert list(ops) == sorted(ops)
    assert not any(op.summary or op.description for op in ops.values())
    assert [argument.name for argument in ops["RestoreV2"].input_arg] == ["prefix", "tensor_names", "shape_and_slices"]
    assert [op.name for op in declarations({"SaveV2", "NoOp", "Const"}).op] == ["Const", "NoOp", "SaveV2"]
    assert declarations(["NoOp"]).op[0] == ops["NoOp"]
