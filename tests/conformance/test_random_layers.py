"""Every layout with settings drawn at random: a torch module loaded from a real layer of Keras or TensorFlow computes
the same outputs, and saves the same bytes.

Sizes, strides, dilation, groups, heads, biases and flags are drawn; a seed makes them the same in each run. All layers
of a run are built in one call of the TensorFlow process.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_twins import Answer, Flat, Mapped, Plain, assert_same_output, randomized, stored_bytes, tensor, variables
from tensorflow_process import TensorFlowProcess
from torch import nn
from torch.nn.utils import parametrizations

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.rules.key_rules import KeyRule
from torch_tfckpt.models.saving import save_model

DRAWS = 5  # layers of each kind
RANKS = {1: "1D", 2: "2D", 3: "3D"}
CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS: dict[int, Any] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS: dict[int, Any] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
RECURRENT: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@dataclass
class Drawn:
    """A layer of TensorFlow, and its torch counterpart.

    Attributes:
        kind: Name of the layer, as tensorflow_random_layers knows it.
        of: Its arguments.
        input: Shape of the input.
        make: Creates the counterpart.
        rules: For names that are not those of the module.
        filled: The tensors that TensorFlow does not store.
        by_objects: Whether it is also loaded from the checkpoint by objects.
        back: Whether its variables can be saved.
    """

    kind: str
    of: dict[str, Any]
    input: tuple[int, ...]
    make: Callable[[], nn.Module]
    rules: Any = None
    filled: set[str] = field(default_factory=set)
    by_objects: bool = True
    back: bool = True


def size(rng: random.Random, low: int = 1, high: int = 7) -> int:
    return rng.randint(low, high)


def flag(rng: random.Random) -> bool:
    return rng.random() < 0.5


def maps(rng: random.Random, rank: int, channels: int, low: int = 9) -> tuple[int, ...]:
    return (2, *(size(rng, low, low + 4) for _ in range(rank)), channels)


def dense(rng: random.Random) -> Drawn:
    units, inputs, bias = size(rng), size(rng), flag(rng)
    return Drawn(
        "Dense", {"units": units, "use_bias": bias}, (3, inputs), lambda: Plain(nn.Linear(inputs, units, bias))
    )


def conv(rng: random.Random) -> Drawn:
    rank, groups, bias = size(rng, 1, 3), size(rng, 1, 3), flag(rng)
    inputs, outputs = groups * size(rng, 1, 3), groups * size(rng, 1, 3)
    kernel = [size(rng, 1, 3) for _ in range(rank)]
    stride, dilation = [1] * rank, [1] * rank
    if flag(rng):
        stride = [size(rng, 1, 3)] * rank
    else:
        dilation = [size(rng, 1, 3)] * rank
    of = {"filters": outputs, "kernel_size": kernel, "strides": stride, "dilation_rate": dilation}
    more = {"stride": tuple(stride), "dilation": tuple(dilation), "groups": groups, "bias": bias}
    return Drawn(
        f"Conv{RANKS[rank]}", {**of, "groups": groups, "use_bias": bias}, maps(rng, rank, inputs),
        lambda: Mapped(CONVS[rank](inputs, outputs, tuple(kernel), **more)),
    )  # fmt: skip


def depthwise(rng: random.Random) -> Drawn:
    rank, channels, times, bias, stride = size(rng, 1, 2), size(rng), size(rng, 1, 3), flag(rng), size(rng, 1, 2)
    kernel = [size(rng, 1, 4) for _ in range(rank)]
    of = {"kernel_size": kernel, "depth_multiplier": times, "strides": stride, "use_bias": bias}
    return Drawn(
        f"DepthwiseConv{RANKS[rank]}", of, maps(rng, rank, channels),
        lambda: Mapped(
            CONVS[rank](channels, channels * times, tuple(kernel), stride=stride, groups=channels, bias=bias)
        ),
    )  # fmt: skip


def separable(rng: random.Random) -> Drawn:
    rank, channels, times, bias, filters = size(rng, 1, 2), size(rng), size(rng, 1, 3), flag(rng), size(rng)
    kernel, middle = [size(rng, 1, 4) for _ in range(rank)], channels * times
    of = {"kernel_size": kernel, "depth_multiplier": times, "filters": filters, "use_bias": bias}
    rules = {"x/depthwise_kernel": "x.0.weight", "x/pointwise_kernel": "x.1.weight"}
    return Drawn(
        f"SeparableConv{RANKS[rank]}", of, maps(rng, rank, channels),
        lambda: Mapped(
            nn.Sequential(
                CONVS[rank](channels, middle, tuple(kernel), groups=channels, bias=False),
                CONVS[rank](middle, filters, 1, bias=bias),
            )
        ),
        rules | ({"x/bias": "x.1.bias"} if bias else {}),
    )  # fmt: skip


def transposed(rng: random.Random) -> Drawn:
    rank, inputs, outputs, bias = size(rng, 1, 3), size(rng), size(rng), flag(rng)
    kernel, stride = [size(rng, 1, 4) for _ in range(rank)], [size(rng, 1, 3)] * rank
    # The output of TensorFlow is longer if the kernel is shorter than the stride.
    more = tuple(max(step - length, 0) for step, length in zip(stride, kernel, strict=True))
    of = {"filters": outputs, "kernel_size": kernel, "strides": stride, "use_bias": bias}
    return Drawn(
        f"Conv{RANKS[rank]}Transpose", of, maps(rng, rank, inputs, 3),
        lambda: Mapped(
            TRANSPOSED[rank](
                inputs, outputs, tuple(kernel), stride=tuple(stride), output_padding=more, bias=bias
            )
        ),
    )  # fmt: skip


def one_by_one(rng: random.Random) -> Drawn:
    rank, inputs, units, bias = size(rng, 1, 2), size(rng), size(rng), flag(rng)
    of = {"filters": units, "kernel_size": [1] * rank, "use_bias": bias}
    return Drawn(
        f"Conv{RANKS[rank]}",
        of,
        maps(rng, rank, inputs),
        lambda: Plain(nn.Linear(inputs, units, bias)),
        by_objects=True,
    )


def whole_map(rng: random.Random) -> Drawn:
    height, width, channels, units = (size(rng) for _ in range(4))
    layout = {"kind": "conv_to_dense", "height": height, "width": width}
    return Drawn(
        "whole_map", {"units": units}, (2, height, width, channels),
        lambda: Flat(nn.Linear(height * width * channels, units)),
        {"x/weights": ("x.weight", layout), "x/biases": "x.bias"}, by_objects=False,
    )  # fmt: skip


class Flattened(Plain):
    """A Linear "x" of a flattened map in torch's order."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.movedim(-1, 1).flatten(1))


def flat_dense(rng: random.Random) -> Drawn:
    height, width, channels, units = (size(rng) for _ in range(4))
    layout = {"kind": "dense_after_flatten", "height": height, "width": width, "channels": channels}
    return Drawn(
        "flat_dense", {"units": units}, (2, height, width, channels),
        lambda: Flattened(nn.Linear(height * width * channels, units)),
        {"x/kernel": ("x.weight", layout), "x/bias": "x.bias"}, by_objects=False,
    )  # fmt: skip


def gpt2(rng: random.Random) -> Drawn:
    inputs, units = size(rng), size(rng)
    return Drawn(
        "gpt2", {"units": units}, (2, 5, inputs), lambda: Plain(nn.Linear(inputs, units)),
        {"x/w": ("x.weight", "dense"), "x/b": "x.bias"}, by_objects=False,
    )  # fmt: skip


def batch_norm(rng: random.Random) -> Drawn:
    rank, channels, scale, center = size(rng, 0, 3), size(rng), flag(rng), flag(rng)
    filled = ({"x.weight"} if not scale else set()) | ({"x.bias"} if not center else set())
    kind = Mapped if rank else Plain
    return Drawn(
        "BatchNormalization", {"scale": scale, "center": center}, maps(rng, rank, channels, 2),
        lambda: kind(BATCH_NORMS[rank](channels, 1e-3)), filled=filled,
    )  # fmt: skip


def sonnet_batch_norm(rng: random.Random) -> Drawn:
    rank, channels, scale = size(rng, 1, 3), size(rng), flag(rng)
    return Drawn(
        "sonnet_batch_norm", {"scale": scale}, maps(rng, rank, channels, 2),
        lambda: Mapped(BATCH_NORMS[rank](channels, 1e-3)), filled=set() if scale else {"x.weight"}, by_objects=False,
        back=False,  # with one axis
    )  # fmt: skip


def layer_norm(rng: random.Random) -> Drawn:
    sizes, scale, center, two = (size(rng, 2), size(rng, 2)), flag(rng), flag(rng), flag(rng)
    filled = ({"x.weight"} if not scale else set()) | ({"x.bias"} if not center else set())
    if not scale and not center:
        scale, filled = True, {"x.bias"}
    axis = [1, 2] if two else -1
    return Drawn(
        "LayerNormalization", {"axis": axis, "scale": scale, "center": center}, (3, *sizes),
        lambda: Plain(nn.LayerNorm(sizes if two else sizes[1:], 1e-3)), filled=filled,
    )  # fmt: skip


def group_norm(rng: random.Random) -> Drawn:
    groups, scale = size(rng, 1, 3), flag(rng)
    channels = groups * size(rng, 2, 4)
    return Drawn(
        "GroupNormalization", {"groups": groups, "scale": scale}, maps(rng, size(rng, 1, 3), channels, 2),
        lambda: Mapped(nn.GroupNorm(groups, channels, 1e-3)), filled=set() if scale else {"x.weight"},
    )  # fmt: skip


def instance_norm(rng: random.Random) -> Drawn:
    rank, channels = size(rng, 1, 3), size(rng)
    return Drawn(
        "instance_norm", {}, maps(rng, rank, channels, 3),
        lambda: Mapped(INSTANCE_NORMS[rank](channels, 1e-3, affine=True)), by_objects=False,
    )  # fmt: skip


def rms_norm(rng: random.Random) -> Drawn:
    inputs = size(rng, 2)
    return Drawn("RMSNormalization", {}, (3, 5, inputs), lambda: Plain(nn.RMSNorm(inputs, 1e-6)))


def prelu(rng: random.Random) -> Drawn:
    rank, channels, one = size(rng, 0, 3), size(rng), flag(rng)
    shared = list(range(1, rank + 1 + one))
    kind = Mapped if rank else Plain
    return Drawn(
        "PReLU", {"shared_axes": shared or None}, maps(rng, rank, channels, 2),
        lambda: kind(nn.PReLU(1 if one and (rank or shared) else channels)),
    )  # fmt: skip


def embedding(rng: random.Random) -> Drawn:
    rows, width = size(rng), size(rng)
    of = {"input_dim": rows, "output_dim": width}
    return Drawn("Embedding", of, (3, 5), lambda: Plain(nn.Embedding(rows, width)))


def parts(rng: random.Random) -> Drawn:
    sizes = [size(rng) for _ in range(size(rng, 2, 12))]
    rule = KeyRule((r"x/part_\d+",), "x.weight", "same", sizes=None)
    return Drawn(
        "parts", {"sizes": sizes}, (3, 5), lambda: Plain(nn.Embedding(sum(sizes), 7)),
        [rule, KeyRule("indices", None)], by_objects=False, back=False,
    )  # fmt: skip


def recurrent(rng: random.Random) -> Drawn:
    kind, inputs, units, bias = rng.choice(["lstm", "gru", "rnn"]), size(rng), size(rng), flag(rng)
    form = rng.choice(["", "bidirectional_", "stacked_"])
    count = size(rng, 1, 4) if form == "stacked_" else 1
    of = {"units": units, "use_bias": bias} | ({"count": count} if form == "stacked_" else {})
    both = form == "bidirectional_"
    return Drawn(
        form + kind, of, (2, 5, inputs),
        lambda: Plain(RECURRENT[kind](
                inputs, units, num_layers=count, bias=bias, batch_first=True, bidirectional=both
            )),
        by_objects=form != "stacked_",
    )  # fmt: skip


def stacked_bidirectional(rng: random.Random) -> Drawn:
    kind, inputs, units, bias = rng.choice(["lstm", "gru"]), size(rng), size(rng), flag(rng)
    rules: dict[str, str] = {}
    for layer, name in enumerate(("first", "second")):
        for direction, suffix in (("forward", ""), ("backward", "_reverse")):
            start, end = f"x/{name}/{direction}_{kind}/{kind}_cell", f"_l{layer}{suffix}"
            rules |= {f"{start}/kernel": f"x.weight_ih{end}", f"{start}/recurrent_kernel": f"x.weight_hh{end}"}
            if bias:
                rules[f"{start}/bias"] = f"x.bias_ih{end}"
    return Drawn(
        "stacked_bidirectional", {"of": kind, "units": units, "use_bias": bias}, (2, 5, inputs),
        lambda: Plain(RECURRENT[kind](inputs, units, 2, bias, batch_first=True, bidirectional=True)), rules,
        by_objects=False,
    )  # fmt: skip


def lstm_cell(rng: random.Random) -> Drawn:
    inputs, units, forget = size(rng), size(rng, 2), rng.choice([1.0, 0.0, 0.5, 2.0])
    projected = size(rng, 1, units - 1) if flag(rng) else 0
    layout: dict[str, str | float] = {"kind": "lstm_tf1", "forget_bias": forget}
    rules = [
        KeyRule(r"x/lstm_cell[_\d]*/kernel", "x.weight_ih_l0"),
        KeyRule(r"x/lstm_cell[_\d]*/bias", "x.bias_ih_l0", layout),
    ]
    if projected:
        rules.append(KeyRule(r"x/lstm_cell[_\d]*/projection/kernel", "x.weight_hr_l0"))
    return Drawn(
        "lstm_cell", {"units": units, "forget_bias": forget, "num_proj": projected or None}, (2, 5, inputs),
        lambda: Plain(nn.LSTM(inputs, units, batch_first=True, proj_size=projected)), rules,
        by_objects=False, back=False,
    )  # fmt: skip


def cudnn_gru(rng: random.Random) -> Drawn:
    inputs, units, count, both = size(rng), size(rng), size(rng, 1, 3), flag(rng)
    return Drawn(
        "cudnn_gru", {"units": units, "count": count, "both": both}, (2, 5, inputs),
        lambda: Plain(nn.GRU(inputs, units, count, batch_first=True, bidirectional=both)), by_objects=False, back=False,
    )  # fmt: skip


class Attention(nn.Module):
    """Attention with a Linear for each of its parts, for sizes that nn.MultiheadAttention does not have."""

    def __init__(self, of: dict[str, Any], output: int) -> None:
        super().__init__()
        self.of = of
        widths = [of["num_heads"] * of["key_dim"]] * 2 + [of["num_heads"] * of["value_dim"]]
        parts = zip(("query", "key", "value"), of["sizes"], widths, strict=True)
        linears = {name: nn.Linear(given, width, of["use_bias"]) for name, given, width in parts}
        linears["attention_output"] = nn.Linear(widths[2], output, of["use_bias"])
        self.x = nn.ModuleDict({"mha": nn.ModuleDict(linears)})

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        mha = self.x["mha"]
        assert isinstance(mha, nn.ModuleDict)
        query, key, value = (
            torch.unflatten(mha[name](input[..., :given]), -1, (self.of["num_heads"], -1)).transpose(1, 2)
            for name, given in zip(("query", "key", "value"), self.of["sizes"], strict=True)
        )
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        output: torch.Tensor = mha["attention_output"](seen.transpose(1, 2).flatten(-2))
        return output


class Fused(nn.Module):
    """nn.MultiheadAttention of parts of the input."""

    def __init__(self, of: dict[str, Any]) -> None:
        super().__init__()
        self.sizes = of["sizes"]
        query, key, value = self.sizes
        attention = nn.MultiheadAttention(
            query, of["num_heads"], kdim=key, vdim=value, bias=of["use_bias"], batch_first=True
        )
        self.x = nn.ModuleDict({"mha": attention})

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        query, key, value = (input[..., :given] for given in self.sizes)
        output: torch.Tensor = self.x["mha"](query, key, value)[0]
        return output


def attention(rng: random.Random) -> Drawn:
    """The sizes of value and key differ from each other and from those of the heads."""
    sizes = [size(rng, 2, 9) for _ in range(3)]
    of: dict[str, Any] = {"num_heads": size(rng, 1, 4), "key_dim": size(rng), "value_dim": size(rng)}
    of["use_bias"] = flag(rng)
    of["sizes"] = sizes
    return Drawn(
        "attention", of, (2, 5, max(sizes)), lambda: Attention(of, sizes[0]), by_objects=False,
    )  # fmt: skip


def fused_attention(rng: random.Random) -> Drawn:
    heads, width, bias = size(rng, 1, 4), size(rng), flag(rng)
    sizes = [heads * width] * 3 if flag(rng) else [heads * width, size(rng, 2, 9), size(rng, 2, 9)]
    of = {"num_heads": heads, "key_dim": width, "use_bias": bias, "sizes": sizes}
    return Drawn("attention", of, (2, 5, max(sizes)), lambda: Fused(of))


class Ending(Plain):
    """A Linear "x" whose outputs have two axes, or whose inputs have."""

    def __init__(self, x: nn.Module, axes: tuple[int, ...], *, inputs: bool) -> None:
        super().__init__(x)
        self.axes, self.inputs = axes, inputs

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = super().forward(input.flatten(-2) if self.inputs else input)
        return output if self.inputs else torch.unflatten(output, -1, self.axes)


def einsum_dense(rng: random.Random) -> Drawn:
    heads, width, other, bias, inputs = size(rng), size(rng), size(rng), flag(rng), flag(rng)
    if inputs:
        of = {"equation": "abcd,cde->abe", "output_shape": [None, other], "bias_axes": "e" if bias else None}
        make = lambda: Ending(nn.Linear(heads * width, other, bias), (heads, width), inputs=True)  # noqa: E731
        return Drawn("EinsumDense", of, (2, 3, heads, width), make)
    of = {"equation": "abc,cde->abde", "output_shape": [None, heads, width], "bias_axes": "de" if bias else None}
    make = lambda: Ending(nn.Linear(other, heads * width, bias), (heads, width), inputs=False)  # noqa: E731
    return Drawn("EinsumDense", of, (2, 3, other), make)


def weight_norm(rng: random.Random) -> Drawn:
    rank, inputs, outputs = size(rng, 0, 3), size(rng), size(rng)
    kernel = [size(rng, 1, 3) for _ in range(rank)]

    def make() -> nn.Module:
        if not rank:
            return Plain(parametrizations.weight_norm(nn.Linear(inputs, outputs)))
        return Mapped(parametrizations.weight_norm(CONVS[rank](inputs, outputs, tuple(kernel))))

    return Drawn("weight_norm", {"kernel": [*kernel, inputs, outputs]}, maps(rng, rank, inputs), make, by_objects=False)


KINDS: list[Callable[[random.Random], Drawn]] = [
    dense, conv, depthwise, separable, transposed, one_by_one, whole_map, flat_dense, gpt2, batch_norm,
    sonnet_batch_norm, layer_norm, group_norm, instance_norm, rms_norm, prelu, embedding, parts, recurrent,
    stacked_bidirectional, lstm_cell, cudnn_gru, attention, fused_attention, einsum_dense, weight_norm,
]  # fmt: skip
CASES = [f"{draw.__name__}-{number}" for draw in KINDS for number in range(DRAWS * (3 if draw is recurrent else 1))]


def drawn(case: str) -> Drawn:
    """The layer of a case: the same in each run."""
    [draw] = [each for each in KINDS if each.__name__ == case.partition("-")[0]]
    return draw(random.Random(case))


@dataclass
class Saved:
    folder: Path
    answers: list[Answer]


@pytest.fixture(scope="module")
def saved(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The checkpoints of all layers, and what they computed."""
    folder = tmp_path_factory.mktemp("layers")
    layers = [drawn(case) for case in CASES]
    specs = [
        {"kind": layer.kind, "of": layer.of, "input": layer.input, "seed": seed} for seed, layer in enumerate(layers)
    ]
    return Saved(folder, tensorflow.call("tensorflow_random_layers.save", str(folder), specs))


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_random_settings(saved: Saved, tmp_path: Path, case: str) -> None:
    """By Keras's names, and by objects; naming="tf" saves every variable with the same bytes."""
    number, layer = CASES.index(case), drawn(case)
    answer = dict(saved.answers[number])
    if "indices" in answer:
        answer["in"] = answer.pop("indices")
    paths = [saved.folder / str(number)]
    if layer.by_objects and layer.rules is None:
        paths.append(saved.folder / f"{number}-objects")
    for path in paths:
        model = randomized(layer.make())
        report = load_model(model, path, mapper=layer.rules)
        assert_same_output(model, answer)
        assert (report.missing, report.unexpected, report.mismatched, report.unused_rules) == ([], [], [], [])
        assert {name for name in report.filled if "bias_hh" not in name} == layer.filled
    if layer.back:
        save_model(model, tmp_path / "m", naming="tf", mapper=layer.rules)
        written = stored_bytes(tmp_path / "m")
        for stored in variables(answer):
            written.remove(stored)
        assert len(written) == len(layer.filled) + ("BatchNorm" in layer.kind)  # and num_batches_tracked


@pytest.mark.parametrize("number", range(3))
def test_gru_that_resets_before(tensorflow: TensorFlowProcess, tmp_path: Path, number: int) -> None:
    """reset_after=False is refused for each size, with the reason; and with strict=False nothing of it is loaded."""
    rng = random.Random(number)
    inputs, units = size(rng), size(rng)
    of = {"units": units, "reset_after": False}
    spec = {"kind": "gru", "of": of, "input": (2, 5, inputs), "seed": number}
    tensorflow.call("tensorflow_random_layers.save", str(tmp_path), [spec])
    model = Plain(nn.GRU(inputs, units, batch_first=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidArgumentError, match=r"stored with reset_after=False, which nn\.GRU"):
        load_model(model, tmp_path / "0")
    report = load_model(model, tmp_path / "0", strict=False)
    assert {mismatch.name for mismatch in report.mismatched} == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gru_without_bias(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Nothing shows whether it resets before or after: that is reported."""
    spec = {"kind": "gru", "of": {"units": 3, "use_bias": False}, "input": (2, 5, 3), "seed": 0}
    [answer] = tensorflow.call("tensorflow_random_layers.save", str(tmp_path), [spec])
    model = Plain(nn.GRU(3, 3, bias=False, batch_first=True))
    report = load_model(model, tmp_path / "0")
    assert [finding.name for finding in report.semantics] == ["gru_reset_after"]
    assert_same_output(model, answer)
    with pytest.raises(InvalidArgumentError, match="reset_after=True"):
        load_model(model, tmp_path / "0", strict="semantics")
    assert tensor(answer["x/gru_cell/kernel"]).shape == (3, 9)
