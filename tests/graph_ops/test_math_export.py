"""Operations of mathematics keep sizes symbolic: torch.export with any batch size; torch.compile makes one graph."""

from collections.abc import Callable

import pytest
import torch

from torch_tfckpt.graph_ops.registry import OPS

Tensor = torch.Tensor
Calls = list[Callable[..., Tensor]]


def call(name: str, *further: object, **attributes: object) -> Callable[[Tensor], Tensor]:
    """A function of one tensor, to which the further inputs are added."""

    def called(x: Tensor) -> Tensor:
        found = OPS[name].function(x, *further, **attributes)
        return found[0] if OPS[name].several else found  # type: ignore[no-any-return]

    return called


ONE_INPUT = [
    *("Neg", "Abs", "Sign", "Square", "Sqrt", "Rsqrt", "Reciprocal", "Exp", "Expm1", "Log", "Log1p", "Floor", "Ceil"),
    *("Round", "Sin", "Cos", "Tan", "Atan", "Tanh", "Erf", "Erfc", "Lgamma", "Digamma", "IsNan", "IsFinite"),
    *("Sigmoid", "Softplus", "Softsign", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Identity", "StopGradient"),
    *("PreventGradient", "L2Loss", "MatrixDiag", "MatrixDiagPart"),
]
TWO_INPUTS = [
    *("AddV2", "Sub", "Mul", "RealDiv", "FloorDiv", "FloorMod", "DivNoNan", "MulNoNan", "Xdivy", "Xlogy", "Pow"),
    *("SquaredDifference", "Maximum", "Minimum", "Atan2", "Equal", "NotEqual", "Less", "GreaterEqual"),
    *("SigmoidGrad", "TanhGrad", "ReluGrad", "Relu6Grad", "EluGrad", "SeluGrad", "SoftplusGrad", "LeakyReluGrad"),
]
REDUCTIONS = ["Sum", "Mean", "Prod", "Max", "Min", "EuclideanNorm"]


class All(torch.nn.Module):
    """Every operation on x [batch, 4]."""

    def forward(self, x: Tensor) -> list[Tensor]:
        row = torch.tensor([0.5, 1, 2, 3])
        calls = [call(name) for name in ONE_INPUT]
        calls += [call(name, row) for name in TWO_INPUTS] + [call(name, x * 2) for name in TWO_INPUTS]
        calls += [call(name, axes, keep_dims=True) for name in REDUCTIONS for axes in (0, 1, (0, 1))]
        calls += [call(name, 1, exclusive=True) for name in ("Cumsum", "Cumprod", "CumulativeLogsumexp")]
        calls += [call("Cumsum", 0, reverse=True), call("ArgMax", 1), call("ArgMin", 0, output_type=torch.int32)]
        calls += [call("MatMul", torch.ones(4, 3)), call("BatchMatMulV2", torch.ones(4, 3))]
        calls += [call("SoftmaxCrossEntropyWithLogits", x), call("Cast", DstT=torch.int32)]
        calls += [call("SparseSoftmaxCrossEntropyWithLogits", x[:, 0].long() * 0), call("Roll", 1, 1)]
        calls += [call("ClipByValue", torch.tensor(0.5), torch.tensor(1.5)), call("EnsureShape", shape=(-1, 4))]
        calls += [call("CheckNumerics", message=""), call("Bucketize", boundaries=(0.0, 1.0))]
        calls += [call("ReverseSequence", x[:, 0].long() * 0 + 2, seq_dim=1), call("RFFT", (4,))]
        calls += [call("MatrixBandPart", 1, 0), call("InTopKV2", x[:, 0].long() * 0, 2)]
        lists = [
            OPS["AddN"].function([x, x]),
            OPS["Einsum"].function([x, torch.ones(4, 3)], equation="bi,io->bo"),
            OPS["Select"].function(x[:, 0] > 1, x, -x),
            OPS["SelectV2"].function(x > 1, x, row),
            OPS["Bincount"].function(x.int(), 5, torch.ones(0)),
            OPS["DenseBincount"].function(x.int(), 5, torch.ones(0)),
            OPS["BitwiseAnd"].function(x.int(), (2 * x).int()),
            OPS["LeftShift"].function(x.int(), (2 * x).int()),
            OPS["MatrixDiagV3"].function(x, 1, -1, -1, torch.tensor(0.0)),
        ]
        return [function(x) for function in calls] + lists


@pytest.mark.parametrize("gradients", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_export(gradients: bool) -> None:
    """A graph exported for one batch computes another."""
    x = torch.rand(3, 4) * 3 + 0.1
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(All(), (x.requires_grad_(gradients),), dynamic_shapes=({0: batch},))
    other = torch.rand(5, 4) * 3 + 0.1
    for ours, expected in zip(program.module()(other), All()(other), strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.heavy
def test_compile() -> None:
    """There are no graph breaks."""
    x = torch.rand(3, 4) + 0.1
    compiled = torch.compile(All(), fullgraph=True, backend="eager", dynamic=True)
    for ours, expected in zip(compiled(x), All()(x), strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)
