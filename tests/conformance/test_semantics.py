"""What load_model reports of settings that weights do not tell: outputs differ from TensorFlow's as it says, and agree
after its advice was followed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_twins import tensor
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn
from torch.nn import functional

from torch_tfckpt.models.loading import load_model
from torch_tfckpt.saveables.load_report import LoadReport


class Net(nn.Sequential):
    """Layers in a row, of which "x" has the weights."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def output_for(self, told: dict[str, RawTensor]) -> torch.Tensor:
        """The output for TensorFlow's input; both have channels last."""
        given = tensor(told["input"])
        with torch.no_grad():
            output: torch.Tensor = self(given.permute(0, 3, 1, 2) if given.dim() == 4 else given)
        return output.permute(0, 2, 3, 1) if output.dim() == 4 else output


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.function(input)


def resized(x: torch.Tensor) -> torch.Tensor:
    """The function of docs/conversion/semantics.md."""
    height, width = x.shape[-2:]
    padded = functional.pad(x, (0, 1, 0, 1), mode="replicate")
    sizes = (2 * height + 1, 2 * width + 1)
    return functional.interpolate(padded, sizes, mode="bilinear", align_corners=True)[..., :-1, :-1]


def conv(*args: Any, **kwargs: Any) -> nn.Module:
    return nn.Conv2d(4, 3, *args, **kwargs)


def flattened(flatten: nn.Module) -> Net:
    return Net(conv=conv(3), relu=nn.ReLU(), flatten=flatten, x=nn.Linear(4 * 6 * 3, 5))


NORM: dict[str, str | None] = {"x/gamma": "x.weight", "x/beta": "x.bias"}
# Finding, kind of tensorflow_semantics, a module with torch's defaults, and one that follows the advice.
CASES: list[tuple[str, str, Callable[[], Net], Callable[[], Net]]] = [
    ("batch_norm_epsilon", "batch_norm", lambda: Net(x=nn.BatchNorm2d(4)), lambda: Net(x=nn.BatchNorm2d(4, eps=1e-3))),
    ("layer_norm_epsilon", "layer_norm", lambda: Net(x=nn.LayerNorm(4)), lambda: Net(x=nn.LayerNorm(4, eps=1e-3))),
    ("group_norm_epsilon", "group_norm", lambda: Net(x=nn.GroupNorm(2, 4)), lambda: Net(x=nn.GroupNorm(2, 4, 1e-3))),
    (
        "group_norm_epsilon", "instance_norm", lambda: Net(x=nn.InstanceNorm2d(4, affine=True)),
        lambda: Net(x=nn.InstanceNorm2d(4, 1e-3, affine=True)),
    ),
    ("rms_norm_epsilon", "rms_norm", lambda: Net(x=nn.RMSNorm(4)), lambda: Net(x=nn.RMSNorm(4, 1e-6))),
    (
        "same_padding_stride", "conv_3_by_2", lambda: Net(x=conv(3, 2, 1)),
        lambda: Net(pad=nn.ZeroPad2d((0, 1, 0, 1)), x=conv(3, 2)),
    ),
    (
        "same_padding_stride", "conv_7_by_2", lambda: Net(x=conv(7, 2, 3)),
        lambda: Net(pad=nn.ZeroPad2d((2, 3, 2, 3)), x=conv(7, 2)),
    ),
    (
        "same_padding_stride", "conv_3_and_5", lambda: Net(x=conv((3, 5), 2, (1, 2))),
        lambda: Net(pad=nn.ZeroPad2d((1, 2, 0, 1)), x=conv((3, 5), 2)),
    ),
    (
        "same_padding_transposed", "conv_transposed", lambda: Net(x=nn.ConvTranspose2d(4, 3, 3, 2, 1, 1)),
        lambda: Net(x=nn.ConvTranspose2d(4, 3, 3, 2), crop=Function(lambda x: x[..., :-1, :-1])),
    ),
    (
        "same_padding_pool", "max_pool", lambda: Net(x=conv(1), pool=nn.MaxPool2d(3, 2, 1)),
        lambda: Net(x=conv(1), pool=nn.MaxPool2d(3, 2, ceil_mode=True)),
    ),
    (
        "same_padding_pool", "average_pool_by_2",
        lambda: Net(x=conv(1), pool=nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        lambda: Net(x=conv(1), pool=nn.AvgPool2d(3, 2, ceil_mode=True)),
    ),
    (
        "average_pool_padding", "average_pool", lambda: Net(x=conv(1), pool=nn.AvgPool2d(3, 1, 1)),
        lambda: Net(x=conv(1), pool=nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    ),
    (
        "upsample_alignment", "resized", lambda: Net(x=conv(1), up=nn.Upsample(scale_factor=2, mode="bilinear")),
        lambda: Net(x=conv(1), up=Function(resized)),
    ),
    (
        "gelu_form", "gelu", lambda: Net(x=nn.Linear(4, 6), minus=Function(lambda x: x - 2), gelu=nn.GELU()),
        lambda: Net(x=nn.Linear(4, 6), minus=Function(lambda x: x - 2), gelu=nn.GELU("tanh")),
    ),
    *[
        (
            "leaky_relu_slope", kind,
            lambda: Net(x=nn.Linear(4, 6), minus=Function(lambda x: x - 2), relu=nn.LeakyReLU()),
            lambda slope=slope: Net(x=nn.Linear(4, 6), minus=Function(lambda x: x - 2), relu=nn.LeakyReLU(slope)),
        )
        for kind, slope in (("leaky_relu", 0.3), ("leaky_relu_of_tensorflow", 0.2))
    ],
    (
        "hard_sigmoid_form", "hard_sigmoid", lambda: Net(x=nn.Linear(4, 6), gate=nn.Hardsigmoid()),
        lambda: Net(x=nn.Linear(4, 6), gate=Function(lambda x: (0.2 * x + 0.5).clamp(0, 1))),
    ),
    (
        "dense_after_flatten", "flattened", lambda: flattened(nn.Flatten()),
        lambda: flattened(Function(lambda x: x.permute(0, 2, 3, 1).flatten(1))),
    ),
]  # fmt: skip


def loaded(module: Net, path: Path) -> LoadReport:
    """Load; layers without known names by rules, as the user of such a layer does."""
    rules: dict[str, Any] | None = None
    if isinstance(module.x, nn.InstanceNorm2d):
        rules = NORM
    elif isinstance(module.x, nn.RMSNorm):
        rules = {"x/scale": "x.weight"}
    elif isinstance(module.x, nn.ConvTranspose2d):
        rules = {"x/kernel": ("x.weight", "same"), "x/bias": "x.bias"}
    return load_model(module.eval(), path, mapper=rules)


@pytest.mark.parametrize(("name", "kind", "default", "advised"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_advice_makes_outputs_equal(
    tensorflow: TensorFlowProcess,
    tmp_path: Path,
    name: str,
    kind: str,
    default: Callable[[], Net],
    advised: Callable[[], Net],
) -> None:
    """With torch's default the outputs differ, and the finding is reported; with the advice neither."""
    told = tensorflow.call("tensorflow_semantics.run", str(tmp_path / "m"), kind)
    module = default()
    (finding,) = loaded(module, tmp_path / "m").semantics
    assert finding.name == name and not finding.accepted
    output, expected = module.output_for(told), tensor(told["output"])
    assert output.shape == expected.shape and (output - expected).abs().max() > 1e-4
    module = advised()
    assert loaded(module, tmp_path / "m").semantics == []
    torch.testing.assert_close(module.output_for(told), expected, rtol=1e-5, atol=1e-5)


def test_symmetric_padding_that_is_right(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """TensorFlow pads a kernel of 4 with stride 2 on both sides alike: the outputs agree, and nothing is reported."""
    told = tensorflow.call("tensorflow_semantics.run", str(tmp_path / "m"), "conv_4_by_2")
    module = Net(x=conv(4, 2, 1))
    assert loaded(module, tmp_path / "m").semantics == []
    torch.testing.assert_close(module.output_for(told), tensor(told["output"]), rtol=1e-5, atol=1e-5)


def test_momentum_and_variance_of_training(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Keras's default decay is momentum 0.01; its variance is the biased one, that of the fused kernel is torch's."""
    for fused in (False, True):
        told = tensorflow.call("tensorflow_semantics.train_batch_norm", str(tmp_path / "m"), fused=fused)
        for momentum in (0.1, 0.01):
            module = Net(x=nn.BatchNorm2d(4, eps=1e-3, momentum=momentum))
            report = load_model(module, tmp_path / "m", optimizer=torch.optim.SGD(module.parameters()))
            names = [finding.name for finding in report.semantics]
            assert names == ["batch_norm_momentum"] * (momentum == 0.1) + ["running_var"]
            module.train().output_for(told)
            state = module.state_dict()
            assert torch.allclose(state["x.running_mean"], tensor(told["mean"]), atol=1e-6) == (momentum == 0.01)
            if momentum == 0.01:
                share = state["x.running_var"] - 0.99
                count = 2 * 3 * 2
                share = share if fused else share * (count - 1) / count
                torch.testing.assert_close(share, tensor(told["variance"]) - 0.99, rtol=1e-3, atol=1e-6)


def test_forget_bias(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """BasicLSTMCell adds 1.0 to the forget gate, which the stored bias does not contain."""
    told = tensorflow.call("tensorflow_semantics.run_lstm", str(tmp_path / "m"), 5)
    lstm = nn.LSTM(4, 5, batch_first=True)
    bias: nn.Parameter = lstm.get_parameter("bias_ih_l0")
    nn.init.zeros_(lstm.get_parameter("bias_hh_l0"))
    rules = {
        "input/kernel": ("weight_ih_l0", "same"), "state/kernel": ("weight_hh_l0", "same"), "input/bias": "bias_ih_l0",
    }  # fmt: skip
    (finding,) = load_model(lstm, tmp_path / "m", mapper=rules, strict="shapes").semantics
    assert finding.name == "forget_bias" and "second quarter of bias_ih" in finding.message
    with torch.no_grad():
        assert (lstm(tensor(told["input"]))[0] - tensor(told["output"])).abs().max() > 1e-2
        bias[5:10] += 1
        torch.testing.assert_close(lstm(tensor(told["input"]))[0], tensor(told["output"]), rtol=1e-5, atol=1e-5)
