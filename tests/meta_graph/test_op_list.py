"""The declarations of operations. That they are TensorFlow's is held in tests/conformance/test_meta_graph_bytes.py."""

from torch_tfckpt.meta_graph.nodes import declarations, known_ops


def test_known_operations_are_declared_without_descriptions() -> None:
    """In the order of their names, each as a graph needs it."""
    ops = known_ops()
    assert list(ops) == sorted(ops)
    assert not any(op.summary or op.description for op in ops.values())
    assert [argument.name for argument in ops["RestoreV2"].input_arg] == ["prefix", "tensor_names", "shape_and_slices"]
    assert [op.name for op in declarations({"SaveV2", "NoOp", "Const"}).op] == ["Const", "NoOp", "SaveV2"]
    assert declarations(["NoOp"]).op[0] == ops["NoOp"]
