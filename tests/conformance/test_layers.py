"""Every kind of layer: a torch module loaded from the checkpoint of a real layer of Keras or TensorFlow computes the
same outputs, and saves the same bytes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_twins import (
    Answer,
    Flat,
    Mapped,
    Plain,
    Unrolled,
    assert_same_output,
    randomized,
    stored_bytes,
    tensor,
    variables,
)
from tensorflow_process import TensorFlowProcess
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.saving import save_model

Answers = tuple[Path, dict[str, Answer]]


@pytest.fixture(scope="module")
def answers(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The folder with all checkpoints, and inputs, outputs and variables of all kinds of layer."""
    folder = tmp_path_factory.mktemp("layers")
    return folder, tensorflow.call("tensorflow_layers.save_layers", str(folder))


@pytest.fixture(scope="module")
def cells(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The same of the cells of TensorFlow 1."""
    folder = tmp_path_factory.mktemp("cells")
    return folder, tensorflow.call("tensorflow_layers.save_cells", str(folder))


class ConvAndLinear(nn.Module):
    """A Linear of the flattened output of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.ModuleDict({"conv": nn.Conv2d(3, 5, 3), "fc": nn.Linear(175, 11)})

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.x["fc"](self.x["conv"](input.movedim(-1, 1)).flatten(1))
        return output


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.ModuleDict({"mha": nn.MultiheadAttention(15, 3, batch_first=True)})

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.x["mha"](input, input, input)[0]
        return output


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.ModuleDict({"mha": nn.MultiheadAttention(15, 3, kdim=9, vdim=7, batch_first=True)})

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.x["mha"](input, input[..., :9], input[..., :7])[0]
        return output


class LinearAttention(nn.Module):
    """Attention with a Linear for each of its parts, with Keras's names."""

    def __init__(self) -> None:
        super().__init__()
        parts = {name: nn.Linear(3, 15) for name in ("query", "key", "value")}
        self.x = nn.ModuleDict({"mha": nn.ModuleDict({**parts, "attention_output": nn.Linear(15, 3)})})

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        mha = self.x["mha"]
        assert isinstance(mha, nn.ModuleDict)
        parts = (mha[name](input).unflatten(-1, (3, 5)).transpose(1, 2) for name in ("query", "key", "value"))
        seen = nn.functional.scaled_dot_product_attention(*parts)
        output: torch.Tensor = mha["attention_output"](seen.transpose(1, 2).flatten(-2))
        return output


class Reshaped(Plain):
    """A Linear "x" with outputs of two axes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = super().forward(input)
        return output.reshape(*output.shape[:-1], 5, 7)


@dataclass
class Case:
    """A torch counterpart.

    Attributes:
        make: Creates it.
        rules: For checkpoints whose names are not those of the module.
        by: The checkpoints that it can be loaded from.
        filled: The tensors that TensorFlow does not store.
        object_rules: Other rules for the checkpoint by objects.
    """

    make: Callable[[], nn.Module]
    rules: dict[str, Any] | None = None
    by: tuple[str, ...] = ("", "-names")
    filled: set[str] = field(default_factory=set)
    object_rules: dict[str, Any] | None = None

    def rules_for(self, by: str) -> dict[str, Any] | None:
        return self.rules if by or self.object_rules is None else self.object_rules


def mapped(module: Callable[[], nn.Module], **options: Any) -> Case:
    return Case(lambda: Mapped(module()), **options)


def plain(module: Callable[[], nn.Module], **options: Any) -> Case:
    return Case(lambda: Plain(module()), **options)


def unrolled(module: Callable[[], nn.Module], **options: Any) -> Case:
    return Case(lambda: Unrolled(module()), **options)


SEPARABLE = {"x/depthwise_kernel": "x.0.weight", "x/pointwise_kernel": "x.1.weight", "x/bias": "x.1.bias"}
FC = {"kind": "conv_to_dense", "height": 7, "width": 9}
OF_KERAS_3 = {
    f"x/mha/_{stored}_dense/{variable}": f"x.mha.{name}.{attribute}"
    for stored, name in (("query", "query"), ("key", "key"), ("value", "value"), ("output", "attention_output"))
    for variable, attribute in (("_kernel", "weight"), ("bias", "bias"))
}
CASES: dict[str, Case] = {
    "dense": plain(lambda: nn.Linear(3, 7)),
    "dense_square": plain(lambda: nn.Linear(3, 3)),
    "dense_after_flatten": Case(
        ConvAndLinear, {"x/fc/_kernel": ("x.fc.weight", {"kind": "dense_after_flatten", "height": 5, "width": 7})},
        by=("",),
    ),
    "conv1d": mapped(lambda: nn.Conv1d(3, 5, 3)),
    "conv2d": mapped(lambda: nn.Conv2d(3, 5, (3, 1))),
    "conv2d_square": mapped(lambda: nn.Conv2d(3, 3, 3)),
    "conv3d": mapped(lambda: nn.Conv3d(3, 5, (3, 1, 7))),
    "conv2d_grouped": mapped(lambda: nn.Conv2d(15, 21, (3, 5), groups=3)),
    "conv1d_grouped": mapped(lambda: nn.Conv1d(15, 21, 3, groups=3)),
    "conv2d_group_per_channel": mapped(lambda: nn.Conv2d(3, 9, (3, 5), groups=3)),
    "conv2d_one_channel": mapped(lambda: nn.Conv2d(1, 5, (3, 1))),
    "depthwise_conv2d": mapped(lambda: nn.Conv2d(3, 3, (3, 5), groups=3)),
    "depthwise_conv2d_multiplied": mapped(lambda: nn.Conv2d(3, 9, (5, 1), groups=3)),
    "depthwise_conv2d_one_channel": mapped(lambda: nn.Conv2d(1, 7, (5, 3))),
    "depthwise_conv1d_multiplied": mapped(lambda: nn.Conv1d(3, 15, 3, groups=3)),
    "separable_conv2d": mapped(
        lambda: nn.Sequential(nn.Conv2d(3, 9, (3, 5), groups=3, bias=False), nn.Conv2d(9, 7, 1)), rules=SEPARABLE
    ),
    "separable_conv1d": mapped(
        lambda: nn.Sequential(nn.Conv1d(3, 15, 3, groups=3, bias=False), nn.Conv1d(15, 7, 1)), rules=SEPARABLE
    ),
    "conv1d_transpose": mapped(lambda: nn.ConvTranspose1d(3, 5, 3)),
    "conv2d_transpose": mapped(lambda: nn.ConvTranspose2d(3, 5, (3, 1))),
    "conv2d_transpose_by_2": mapped(lambda: nn.ConvTranspose2d(3, 5, (3, 5), 2)),
    "conv3d_transpose": mapped(lambda: nn.ConvTranspose3d(3, 5, (3, 1, 7))),
    "conv_1_to_linear": plain(lambda: nn.Linear(3, 7)),
    "conv1d_1_to_linear": plain(lambda: nn.Linear(3, 5)),
    "conv_to_dense": Case(
        lambda: Flat(nn.Linear(189, 11)), {"x/kernel": ("x.weight", FC), "x/bias": "x.bias"},
        object_rules={"x/_kernel": ("x.weight", FC), "x/bias": "x.bias"},
    ),
    "batch_norm": mapped(lambda: nn.BatchNorm2d(3, 1e-3)),
    "batch_norm_1d": plain(lambda: nn.BatchNorm1d(3, 1e-3)),
    "batch_norm_without_scale": mapped(lambda: nn.BatchNorm2d(3, 1e-3), filled={"x.weight"}),
    "batch_norm_without_center": mapped(lambda: nn.BatchNorm2d(3, 1e-3), filled={"x.bias"}),
    "batch_norm_without_both": mapped(lambda: nn.BatchNorm2d(3, 1e-3), filled={"x.weight", "x.bias"}),
    "layer_norm": plain(lambda: nn.LayerNorm(3, 1e-3)),
    "layer_norm_of_two_axes": plain(lambda: nn.LayerNorm((7, 3), 1e-3)),
    "layer_norm_without_scale": plain(lambda: nn.LayerNorm(3, 1e-3), filled={"x.weight"}),
    "group_norm": mapped(lambda: nn.GroupNorm(3, 9, 1e-3)),
    "instance_norm": mapped(lambda: nn.InstanceNorm2d(3, 1e-3, affine=True)),
    "rms_norm": plain(lambda: nn.RMSNorm(3, 1e-6)),
    "prelu": mapped(lambda: nn.PReLU(3)),
    "prelu_of_one": mapped(lambda: nn.PReLU()),
    "prelu_1d": plain(lambda: nn.PReLU(3)),
    "embedding": plain(lambda: nn.Embedding(11, 7)),
    "lstm": plain(lambda: nn.LSTM(3, 5, batch_first=True)),
    "lstm_square": plain(lambda: nn.LSTM(3, 3, batch_first=True)),
    "gru_square": plain(lambda: nn.GRU(3, 3, batch_first=True)),
    "gru_of_cell": unrolled(lambda: nn.GRUCell(3, 5)),
    "rnn_of_cell": unrolled(lambda: nn.RNNCell(3, 5)),
    "lstm_without_bias": plain(lambda: nn.LSTM(3, 5, bias=False, batch_first=True)),
    "lstm_of_cell": unrolled(lambda: nn.LSTMCell(3, 5)),
    "gru": plain(lambda: nn.GRU(3, 5, batch_first=True)),
    "rnn": plain(lambda: nn.RNN(3, 5, batch_first=True)),
    "bidirectional_lstm": plain(lambda: nn.LSTM(3, 5, batch_first=True, bidirectional=True)),
    "bidirectional_gru": plain(lambda: nn.GRU(3, 5, batch_first=True, bidirectional=True)),
    "bidirectional_rnn": plain(lambda: nn.RNN(3, 5, batch_first=True, bidirectional=True)),
    "stacked_lstm": plain(lambda: nn.LSTM(3, 5, 2, batch_first=True), by=("-names",)),
    "stacked_gru": plain(lambda: nn.GRU(3, 5, 3, batch_first=True), by=("-names",)),
    "self_attention": Case(SelfAttention),
    "cross_attention": Case(CrossAttention),
    "separate_attention": Case(LinearAttention, object_rules=OF_KERAS_3),
    "einsum_dense": Case(lambda: Reshaped(nn.Linear(3, 35))),
    "time_distributed": plain(lambda: nn.Linear(3, 5), rules={
        r"x/layer/_kernel": "x.weight", r"x/layer/bias": "x.bias"}, by=("",)),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "by"), [(kind, by) for kind, case in CASES.items() for by in case.by])
def test_same_outputs_and_the_same_bytes_back(answers: Answers, tmp_path: Path, kind: str, by: str) -> None:
    """Loaded from tf.train.Checkpoint, and by Keras's names; naming="tf" saves every variable with the same bytes."""
    folder, told = answers
    case, answer = CASES[kind], told[kind]
    model = randomized(case.make())
    report = load_model(model, folder / (kind + by), mapper=case.rules_for(by))
    assert_same_output(model, answer)
    assert (report.missing, report.unexpected, report.mismatched, report.unused_rules) == ([], [], [], [])
    assert set(report.filled) - {name for name in report.filled if "bias_hh" in name} == case.filled

    save_model(model, tmp_path / "m", naming="tf", mapper=case.rules_for(by))
    written = stored_bytes(tmp_path / "m")
    for stored in variables(answer):
        written.remove(stored)
    assert len(written) == len(case.filled) + ("batch_norm" in kind)  # and num_batches_tracked
    again = randomized(case.make())
    load_model(again, tmp_path / "m", mapper=case.rules_for(by))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


CELLS: dict[str, Case] = {
    "basic_lstm_cell": plain(lambda: nn.LSTM(3, 5, batch_first=True)),
    "lstm_cell": unrolled(lambda: nn.LSTMCell(3, 5)),
    "lstm_cell_with_projection": plain(lambda: nn.LSTM(3, 7, proj_size=5, batch_first=True)),
    "basic_rnn_cell": unrolled(lambda: nn.RNNCell(3, 5)),
    "multi_rnn_cell": plain(lambda: nn.LSTM(3, 5, 3, batch_first=True)),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("kind", CELLS)
def test_cells_of_tensorflow_1(cells: Answers, tmp_path: Path, kind: str) -> None:
    """By name, with the number that TensorFlow gave to the cell, and with its default forget_bias; and back again."""
    folder, told = cells
    model = randomized(CELLS[kind].make())
    report = load_model(model, folder / kind)
    assert_same_output(model, told[kind])
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    save_model(model, tmp_path / "m", naming="tf")
    again = randomized(CELLS[kind].make())
    load_model(again, tmp_path / "m")
    assert_same_output(again, told[kind])


@pytest.mark.parametrize(("kind", "layers"), [("one", 1), ("two", 2)])
def test_directions_of_tensorflow_1(tensorflow: TensorFlowProcess, tmp_path: Path, kind: str, layers: int) -> None:
    """One layer; and two of CudnnLSTM, whose name says that forget_bias is 0."""
    answer = tensorflow.call("tensorflow_layers.save_directions", str(tmp_path))[kind]
    model = randomized(Plain(nn.LSTM(3, 5, layers, batch_first=True, bidirectional=True)))
    report = load_model(model, tmp_path / kind)
    assert_same_output(model, answer)
    assert (report.missing, report.unexpected) == ([], [])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_layers_of_cudnn(tensorflow: TensorFlowProcess, tmp_path: Path, kind: str) -> None:
    """CuDNNLSTM and CuDNNGRU of Keras 2 are told by their bias of twice the length. Their kernels are in another order,
    and are not loaded; the conversion of docs/conversion/layouts.md loads them."""
    answer = tensorflow.call("tensorflow_layers.save_cudnn", str(tmp_path))[kind]
    module = (nn.LSTM if kind == "lstm" else nn.GRU)(3, 5, batch_first=True)
    model = randomized(Plain(module))
    with pytest.raises(InvalidArgumentError, match=f"bias.*stored by CuDNN{kind.upper()} of Keras 2, whose kernels"):
        load_model(model, tmp_path / kind)
    report = load_model(model, tmp_path / kind, strict=False)
    assert {"x.weight_ih_l0", "x.weight_hh_l0"} <= {mismatch.name for mismatch in report.mismatched}
    assert not report.sources and "stored by CuDNN" in str(report)
    gates, order = (4, [0, 1, 2, 3]) if kind == "lstm" else (3, [1, 0, 2])
    kernels = [tensor(answer[f"x/{name}"]) for name in ("kernel", "recurrent_kernel")]
    weights = [k.reshape(len(k), gates, 5).permute(1, 0, 2)[order].reshape(gates * 5, len(k)) for k in kernels]
    biases = tensor(answer["x/bias"]).reshape(2, gates, 5)[:, order].reshape(2, -1)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    module.load_state_dict(dict(zip(names, [*weights, *biases], strict=True)))
    assert_same_output(model, answer)


def test_another_forget_bias(cells: Answers) -> None:
    """It is not stored: a rule gives it."""
    folder, told = cells
    answer = told["basic_lstm_cell_without_forget_bias"]
    kernel, bias = (name for name in answer if name.startswith("x/"))
    model = randomized(Plain(nn.LSTM(3, 5, batch_first=True)))
    layout = {"kind": "lstm_tf1", "forget_bias": 0.0}
    load_model(
        model,
        folder / "basic_lstm_cell_without_forget_bias",
        mapper={kernel: "x.weight_ih_l0", bias: ("x.bias_ih_l0", layout)},
    )
    assert_same_output(model, answer)


@pytest.mark.parametrize("by", ["", "-names"])
@pytest.mark.parametrize("make", [lambda: Plain(nn.GRU(3, 5)), lambda: Plain(nn.GRUCell(3, 5))], ids=["layer", "cell"])
def test_gru_that_torch_cannot_compute(answers: Answers, make: Callable[[], nn.Module], by: str) -> None:
    """reset_after=False is told by the bias; the error says what differs."""
    folder, _ = answers
    with pytest.raises(InvalidArgumentError, match=r"stored with reset_after=False, which nn\.GRU"):
        load_model(make(), folder / f"gru_reset_before{by}")


def test_gru_cell_of_tensorflow_1(cells: Answers) -> None:
    """So is TensorFlow 1's GRUCell, told by the names of its variables."""
    folder, _ = cells
    with pytest.raises(NotFoundError, match=r"gates/kernel.*GRUCell of TensorFlow 1, which nn\.GRU cannot compute"):
        load_model(Plain(nn.GRU(3, 5)), folder / "gru_cell")


def test_peepholes(cells: Answers) -> None:
    """The variables of peepholes have no counterpart, and are not ignored."""
    folder, _ = cells
    with pytest.raises(InvalidArgumentError, match="w_f_diag"):
        load_model(Plain(nn.LSTM(3, 5)), folder / "lstm_cell_with_peepholes")


@pytest.mark.parametrize("normed", [parametrizations.weight_norm, weight_norm], ids=["parametrized", "older"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm(tensorflow: TensorFlowProcess, tmp_path: Path, normed: Callable[[nn.Module], nn.Module]) -> None:
    """Length and direction of a kernel."""
    answer = tensorflow.call("tensorflow_layers.save_weight_norm", str(tmp_path / "m"))
    model = randomized(Mapped(normed(nn.Conv2d(3, 5, (3, 1)))))
    load_model(model, tmp_path / "m")
    assert_same_output(model, answer)
    save_model(model, tmp_path / "back", naming="tf")
    assert stored_bytes(tmp_path / "back") == variables(answer)
    save_model(model, tmp_path / "torch")
    again = randomized(Mapped(normed(nn.Conv2d(3, 5, (3, 1)))))
    load_model(again, tmp_path / "torch")
    assert_same_output(again, answer)


def test_convolution_over_the_whole_map(answers: Answers) -> None:
    """It is not known whether a Linear multiplies a map that was flattened in torch's order: the error names the layout
    that fits."""
    folder, _ = answers
    with pytest.raises(InvalidArgumentError, match=r"x/kernel\": \(\"x.weight\", \"conv_to_dense\"\)"):
        load_model(Flat(nn.Linear(189, 11)), folder / "conv_to_dense-names")
