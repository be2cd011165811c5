"""What `run` computes in one step equals what the module computes node by node."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.types_pb2 import DT_FLOAT

RANDOM = np.random.default_rng(4)


class Network:
    """A graph under construction; each method adds a node and returns its name."""

    def __init__(self) -> None:
        self.graph = GraphDef()
        node = self.graph.node.add(name="x", op="Placeholder")
        node.attr["dtype"].type = DT_FLOAT
        node.attr["shape"].shape.unknown_rank = True

    def constant(self, *shape: int, positive: bool = False) -> str:
        values = RANDOM.normal(size=shape).astype("<f4")
        node = self.graph.node.add(name=f"c{len(self.graph.node)}", op="Const")
        node.attr["dtype"].type = node.attr["value"].tensor.dtype = DT_FLOAT
        node.attr["value"].tensor.tensor_content = (abs(values) if positive else values).tobytes()
        for size in shape:
            node.attr["value"].tensor.tensor_shape.dim.add(size=size)
        return node.name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        node = self.graph.node.add(name=f"{op}{len(self.graph.node)}", op=op, input=inputs)
        node.attr["T"].type = DT_FLOAT
        for name, value in attributes.items():
            if isinstance(value, bool):
                node.attr[name].b = value
            elif isinstance(value, float):
                node.attr[name].f = value
            elif isinstance(value, str):
                node.attr[name].s = value.encode()
            else:
                node.attr[name].list.i.extend(value)
        return node.name

    def convolution(self, x: str, *shape: int, op: str = "Conv2D", stride: int = 1) -> str:
        return self.node(op, x, self.constant(*shape), strides=[1, stride, stride, 1], padding="SAME")

    def normalisation(self, x: str, channels: int, training: bool = False) -> str:
        arguments = [self.constant(channels, positive=index == 3) for index in range(4)]
        return self.node("FusedBatchNormV3", x, *arguments, epsilon=0.01, is_training=training)


def plain(net: Network) -> str:
    return net.convolution("x", 3, 3, 2, 4)


def bias_and_activation(net: Network) -> str:
    return net.node("Relu", net.node("BiasAdd", net.convolution("x", 3, 3, 2, 4, stride=2), net.constant(4)))


def normalised(net: Network) -> str:
    biased = net.node("BiasAdd", net.convolution("x", 3, 3, 2, 4), net.constant(4))
    return net.node("Relu6", net.normalisation(biased, 4))


def normalised_by_hand(net: Network) -> str:
    scaled = net.node("Mul", net.constant(4), net.convolution("x", 3, 3, 2, 4))
    return net.node("Relu", net.node("Sub", net.node("AddV2", scaled, net.constant(1, 1, 1, 4)), net.constant(4)))


def depthwise(net: Network) -> str:
    first = net.convolution("x", 3, 3, 2, 3, op="DepthwiseConv2dNative")
    return net.node("Relu", net.normalisation(net.node("Mul", first, net.constant(6)), 6))


def used_twice(net: Network) -> str:
    first = net.convolution("x", 1, 1, 2, 4)
    return net.node("Mul", net.node("Relu", first), net.normalisation(first, 4))


def in_training(net: Network) -> str:
    return net.normalisation(net.convolution("x", 3, 3, 2, 4), 4, training=True)


def subtracted_from(net: Network) -> str:
    return net.node("Sub", net.constant(4), net.convolution("x", 3, 3, 2, 4))


def wider(net: Network) -> str:
    """The sum is larger than the result of the convolution, which has one channel."""
    return net.node("AddV2", net.convolution("x", 3, 3, 2, 1), net.constant(4))


def of_rows(net: Network) -> str:
    """The added constant has a value per column, not only per channel."""
    return net.node("AddV2", net.convolution("x", 3, 3, 2, 4), net.constant(6, 4))


def computed_filter(net: Network) -> str:
    weight = net.node("Mul", net.constant(3, 3, 2, 4), net.constant(4))
    return net.node("Conv2D", "x", weight, strides=[1, 1, 1, 1], padding="VALID")


def of_itself(net: Network) -> str:
    first = net.convolution("x", 3, 3, 2, 4)
    return net.node("Mul", first, first)


NETWORKS: Sequence[tuple[Any, int]] = [
    # with the number of steps that are calls
    (plain, 1), (bias_and_activation, 1), (normalised, 1), (normalised_by_hand, 1), (depthwise, 1), (used_twice, 5),
    (in_training, 3), (subtracted_from, 2), (wider, 2), (of_rows, 2), (computed_filter, 1), (of_itself, 2),
]  # fmt: skip


@pytest.mark.parametrize(("build", "calls"), NETWORKS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_run_equals_the_module(build: Any, calls: int) -> None:
    """For convolutions with what follows them; the number of calls shows what became one step."""
    net = Network()
    output = f"{build(net)}:0"
    imported = tfckpt.import_graph_def(net.graph)
    x = torch.from_numpy(RANDOM.normal(size=(2, 6, 6, 2)).astype(np.float32))
    found = imported.run(output, {"x:0": x})
    (expected,) = imported.module(["x:0"], [output])(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    [known] = imported._runner._session._known.values()
    assert sum(node.op == "call_function" for node in known.built.module.graph.nodes) == calls


def test_intermediate_results_can_be_fetched() -> None:
    """A result that is fetched is not merged into the step after it."""
    net = Network()
    middle = net.convolution("x", 3, 3, 2, 4)
    output = net.node("Relu", net.normalisation(middle, 4))
    imported = tfckpt.import_graph_def(net.graph)
    x = torch.from_numpy(RANDOM.normal(size=(2, 6, 6, 2)).astype(np.float32))
    names = [f"{output}:0", f"{middle}:0"]
    for found, expected in zip(imported.run(names, {"x:0": x}), imported.module(["x:0"], names)(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
