"""Models of public programs under the names of their authors: loaded right, or refused with a rule that loads them.

The references are written out in TensorFlow's order of axes, apart from the layouts of the package.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from model_files import save_objects
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt import KeyRule, load_model
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError

STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def saved(directory: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    return tfckpt.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, str(directory / "model.ckpt-1")
    )


def tree(**children: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(children)


def cells(scope: str, sizes: Mapping[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Return the variables of cells: the name of a cell -> its inputs and its units."""
    found = {f"{scope}/{cell}/kernel": torch.randn(sum(size), 4 * size[1]) for cell, size in sizes.items()}
    return found | {f"{scope}/{cell}/bias": torch.randn(4 * size[1]) for cell, size in sizes.items()}


def basic_lstm(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, forget_bias: float) -> torch.Tensor:
    """Return the outputs of TensorFlow 1's BasicLSTMCell over axis 1."""
    state = output = torch.zeros(len(x), len(bias) // 4)
    outputs = []
    for step in x.unbind(1):
        i, j, f, o = (torch.cat([step, output], 1) @ kernel + bias).chunk(4, 1)
        state = torch.sigmoid(f + forget_bias) * state + torch.sigmoid(i) * torch.tanh(j)
        output = torch.sigmoid(o) * torch.tanh(state)
        outputs.append(output)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("scope", ["Model/RNN", "Model/RNN/multi_rnn_cell"])
@pytest.mark.parametrize("forget_bias", [0.0, 1.0])
def test_stacked_cells_below_a_rule_for_a_module(tmp_path: Path, scope: str, forget_bias: float) -> None:
    """The language model of PTB: cells are numbered, and forget_bias is an option of the rule."""
    stored = cells("Model/RNN/multi_rnn_cell", {f"cell_{n}/basic_lstm_cell": (5 - n, 4) for n in range(2)})
    model = tree(rnn=nn.LSTM(5, 4, 2, batch_first=True))
    rule = KeyRule(scope, "rnn", {"kind": "lstm_tf1", "forget_bias": forget_bias}, module=True)
    load_model(model, saved(tmp_path, stored), mapper=[rule, (".*", None)])
    x = expected = torch.randn(2, 3, 5)
    for number in range(2):
        cell = f"Model/RNN/multi_rnn_cell/cell_{number}/basic_lstm_cell/"
        expected = basic_lstm(expected, stored[f"{cell}kernel"], stored[f"{cell}bias"], forget_bias)
    torch.testing.assert_close(model["rnn"](x)[0], expected)


@pytest.mark.parametrize("scope", ["dynamic_seq2seq/encoder", "dynamic_seq2seq/encoder/bidirectional_rnn"])
def test_both_directions_below_a_rule_for_a_module(tmp_path: Path, scope: str) -> None:
    """The encoder of google/nmt."""
    stored = cells("dynamic_seq2seq/encoder/bidirectional_rnn", {f"{d}w/basic_lstm_cell": (5, 4) for d in "fb"})
    model = tree(enc=nn.LSTM(5, 4, bidirectional=True, batch_first=True))
    report = load_model(model, saved(tmp_path, stored), mapper=[KeyRule(scope, "enc", module=True)])
    assert not report.unused_rules
    x = torch.randn(2, 3, 5)
    outputs = []
    for direction in "fb":
        cell = f"dynamic_seq2seq/encoder/bidirectional_rnn/{direction}w/basic_lstm_cell/"
        steps = x.flip(1) if direction == "b" else x
        output = basic_lstm(steps, stored[f"{cell}kernel"], stored[f"{cell}bias"], 1.0)
        outputs.append(output.flip(1) if direction == "b" else output)
    expected = torch.cat(outputs, 2)
    torch.testing.assert_close(model["enc"](x)[0], expected)


def test_a_square_weight_of_another_program_is_reported(tmp_path: Path) -> None:
    """StyleGAN calls its kernels "weight"; the names that this package writes are not reported."""
    stored = {"G_mapping/Dense0/weight": torch.randn(4, 4), "G_mapping/Dense0/bias": torch.randn(4)}
    model = tree(G_mapping=tree(Dense0=nn.Linear(4, 4)))
    [finding] = load_model(model, saved(tmp_path, stored)).semantics
    assert (finding.name, finding.modules) == ("weight_order", ("G_mapping.Dense0",))
    assert '{"G_mapping/Dense0/weight": ("G_mapping.Dense0.weight", "dense")}' in finding.message
    with pytest.raises(InvalidArgumentError, match=r'accept=\("weight_order",\)'):
        load_model(model, tmp_path / "model.ckpt-1", strict="semantics")
    rule = KeyRule("G_mapping/(.*)", r"G_mapping.\1", "dense", module=True)
    assert load_model(model, tmp_path / "model.ckpt-1", mapper=[rule]).semantics == []
    assert torch.equal(model.get_parameter("G_mapping.Dense0.weight"), stored["G_mapping/Dense0/weight"].T)
    own = tfckpt.save_model(model, tmp_path / "own")
    assert load_model(model, own, strict="semantics").semantics == []
    objects = tfckpt.Checkpoint(model=model).save(tmp_path / "objects")
    assert load_model(model, objects, strict="semantics").semantics == []


def test_a_square_weight_of_a_tf_module_is_reported(tmp_path: Path) -> None:
    """The path of an object has no dots in TensorFlow; a rule must have a layout."""
    weight = torch.randn(4, 4)
    save_objects(tmp_path / "m", {"model/fc/weight": weight}, full_names={"model/fc/weight": "weight"})
    model = tree(fc=nn.Linear(4, 4, bias=False))
    assert [finding.name for finding in load_model(model, tmp_path / "m").semantics] == ["weight_order"]
    with pytest.raises(InvalidArgumentError, match=r'the layout of "weight" of a Linear is unknown'):
        load_model(model, tmp_path / "m", mapper={"model/fc/weight": "fc.weight"})
    load_model(model, tmp_path / "m", mapper={"model/fc/weight": ("fc.weight", "dense")})
    assert torch.equal(model.get_parameter("fc.weight"), weight.T)


@pytest.mark.parametrize(
    ("leaf", "layer", "shape", "layout"),
    [
        ("Matrix", lambda: nn.Linear(3, 5), (3, 5), "dense"),  # carpedm20/DCGAN-tensorflow
        ("w", lambda: nn.ConvTranspose2d(3, 5, (2, 4)), (2, 4, 5, 3), "conv_transpose2d"),
        ("filter", lambda: nn.Conv2d(3, 5, (2, 4)), (2, 4, 3, 5), "conv2d"),  # affinelayer/pix2pix-tensorflow
        ("w", lambda: nn.Conv3d(3, 5, (2, 4, 6)), (2, 4, 6, 3, 5), "conv3d"),  # deepmind/kinetics-i3d
    ],
    ids=["dcgan_dense", "dcgan_deconv", "pix2pix", "i3d"],
)
def test_the_error_has_the_rule_for_a_kernel_of_an_unknown_name(
    tmp_path: Path, leaf: str, layer: Callable[[], nn.Module], shape: tuple[int, ...], layout: str
) -> None:
    stored = {f"net/a/{leaf}": torch.randn(shape), "net/a/bias": torch.randn(5), "net/b/bias": torch.randn(2)}
    model = tree(a=layer(), b=nn.Linear(2, 2))
    path = saved(tmp_path, stored | {"net/b/kernel": torch.randn(2, 2)})
    with pytest.raises(NotFoundError) as caught:
        load_model(model, path)
    assert f'mapper={{"net/a/{leaf}": ("a.weight", "{layout}")}}' in str(caught.value)
    load_model(model, path, mapper={f"net/a/{leaf}": ("a.weight", layout)})


def test_the_error_has_the_rule_for_an_embedding_in_parts(tmp_path: Path) -> None:
    """Parts that a program made itself are separate variables; the order of the rows is up to it."""
    stored = {f"emb/part_{number}": torch.randn(3, 4) for number in range(12)}
    model = tree(emb=nn.Embedding(36, 4))
    path = saved(tmp_path, stored)
    with pytest.raises(NotFoundError, match=r"tf\.nn\.embedding_lookup") as caught:
        load_model(model, path)
    [pattern] = re.findall(r'KeyRule\(\(r"(.*?)",\), "emb.weight", "same"\)', str(caught.value))
    load_model(model, path, mapper=[KeyRule((pattern,), "emb.weight", "same")])
    assert torch.equal(
        model.get_parameter("emb.weight"), torch.cat([stored[f"emb/part_{number}"] for number in range(12)])
    )


def test_a_missing_part_is_not_skipped(tmp_path: Path) -> None:
    """The module has as many rows as are left, so no shape shows the gap."""
    path = saved(tmp_path, {f"emb/part_{number}": torch.randn(3, 4) for number in (8, 9, 11)})
    with pytest.raises(InvalidArgumentError, match=r'"emb/part_10" is not stored, but "emb/part_11" is'):
        load_model(tree(emb=nn.Embedding(9, 4)), path, mapper=[KeyRule((r"emb/part_\d+",), "emb.weight", "same")])


def test_the_scope_of_a_backbone(tmp_path: Path) -> None:
    """init_from_checkpoint maps scopes to modules: TensorFlow's names are known there, too."""
    stored = {"resnet/conv1/kernel": torch.randn(3, 2, 4, 5), "resnet/conv1/bias": torch.randn(5)}
    stored |= {f"resnet/bn/{name}": torch.rand(5) for name in STATISTICS}
    stored |= {"resnet/fc/kernel": torch.randn(5, 9)}
    model = tree(backbone=tree(conv1=nn.Conv2d(4, 5, (3, 2)), bn=nn.BatchNorm2d(5)), head=nn.Linear(5, 2))
    tfckpt.init_from_checkpoint(model, saved(tmp_path, stored), {"resnet/": "backbone/"})
    assert torch.equal(model.get_parameter("backbone.conv1.weight"), stored["resnet/conv1/kernel"].permute(3, 2, 0, 1))
    assert torch.equal(model.get_buffer("backbone.bn.running_var"), stored["resnet/bn/moving_variance"])


def test_a_bias_with_the_axes_of_a_map(tmp_path: Path) -> None:
    """The CNN of stable-baselines has biases [1, n, 1, 1] and kernels "w"."""
    stored = {"model/c1/w": torch.randn(3, 2, 4, 5), "model/c1/b": torch.randn(1, 5, 1, 1)}
    model = tree(c1=nn.Conv2d(4, 5, (3, 2)))
    path = saved(tmp_path, stored)
    rules = {"model/c1/w": ("c1.weight", "conv2d"), "model/c1/b": ("c1.bias", "vector")}
    with pytest.raises(InvalidArgumentError, match=re.escape('mapper={"model/c1/b": ("c1.bias", "vector")}')):
        load_model(model, path, mapper=rules | {"model/c1/b": "c1.bias"})
    load_model(model, path, mapper=rules)
    assert torch.equal(model.get_parameter("c1.bias"), stored["model/c1/b"].flatten())


def test_attention_of_flax_in_an_npz_file(tmp_path: Path) -> None:
    """The published ViT: query, key, value and out, with an axis for the heads."""
    scope = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"
    stored = {f"{scope}/{part}/kernel": torch.randn(6, 2, 3) for part in ("query", "key", "value")}
    stored |= {f"{scope}/{part}/bias": torch.randn(2, 3) for part in ("query", "key", "value")}
    stored |= {f"{scope}/out/kernel": torch.randn(2, 3, 6), f"{scope}/out/bias": torch.randn(6)}
    np.savez(tmp_path / "vit.npz", **{name: tensor.numpy() for name, tensor in stored.items()})  # type: ignore[arg-type]
    model = tree(attn=nn.MultiheadAttention(6, 2, batch_first=True))
    load_model(model, tmp_path / "vit.npz", mapper=[KeyRule(scope, "attn", module=True)])
    x = torch.randn(2, 4, 6)
    q, k, v = (
        torch.einsum("btd,dnh->bnth", x, stored[f"{scope}/{part}/kernel"]) + stored[f"{scope}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    mixed = torch.softmax(q @ k.transpose(-1, -2) / 3**0.5, -1) @ v
    expected = torch.einsum("bnth,nhd->btd", mixed, stored[f"{scope}/out/kernel"]) + stored[f"{scope}/out/bias"]
    torch.testing.assert_close(model["attn"](x, x, x)[0], expected)


def test_only_the_graph_was_copied(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt.meta").write_bytes(b"\x0a\x00")
    with pytest.raises(NotFoundError, match=r"model\.ckpt\.meta has only the graph, no values"):
        load_model(nn.Linear(2, 2), tmp_path / "model.ckpt")


def test_numbered_blocks_from_one(tmp_path: Path) -> None:
    """FaceNet: blocks from 1, norms without gamma, averages of the weights, a Linear without bias."""
    stored: dict[str, torch.Tensor] = {"InceptionResnetV1/Bottleneck/weights": torch.randn(4, 6)}
    for block in (1, 2):
        scope = f"InceptionResnetV1/Repeat/block35_{block}"
        stored |= {f"{scope}/Branch_0/Conv2d_1x1/weights": torch.randn(1, 1, 4, 3)}
        stored |= {f"{scope}/Branch_0/Conv2d_1x1/BatchNorm/{name}": torch.rand(3) for name in STATISTICS[1:]}
    stored |= {
        f"{name}/ExponentialMovingAverage": tensor + 9 for name, tensor in stored.items() if "moving" not in name
    }
    model = tree(last=nn.Linear(4, 6, bias=False))
    for number in range(2):
        model[f"repeat_{number}"] = tree(conv=nn.Conv2d(4, 3, 1, bias=False), bn=nn.BatchNorm2d(3, eps=1e-3))
    scope = r"InceptionResnetV1/Repeat/block35_(\d+)/Branch_0/Conv2d_1x1"
    rules = [
        KeyRule(scope, r"repeat_\g<1-1>.conv", module=True),
        KeyRule(f"{scope}/BatchNorm", r"repeat_\g<1-1>.bn", module=True),
        KeyRule("InceptionResnetV1/Bottleneck", "last", module=True),
    ]
    load_model(model, saved(tmp_path, stored), mapper=rules, ema="prefer")
    assert torch.equal(model.get_parameter("last.weight"), stored["InceptionResnetV1/Bottleneck/weights"].T + 9)
    kernel = stored["InceptionResnetV1/Repeat/block35_2/Branch_0/Conv2d_1x1/weights"]
    assert torch.equal(model.get_parameter("repeat_1.conv.weight"), kernel.permute(3, 2, 0, 1) + 9)
    assert torch.equal(model.get_parameter("repeat_1.bn.weight"), torch.ones(3))


def test_auto_numbered_convolutions_in_order(tmp_path: Path) -> None:
    """YOLO's darknet: Conv, Conv_1, ... with norms of the same shapes, into a Sequential."""
    sizes = [(3, 4), (4, 8), (8, 4), (4, 8)]
    stored: dict[str, torch.Tensor] = {}
    for number, (inputs, outputs) in enumerate(sizes):
        scope = f"detector/darknet-53/Conv{f'_{number}' if number else ''}"
        stored[f"{scope}/weights"] = torch.randn(3, 3, inputs, outputs)
        stored |= {f"{scope}/BatchNorm/{name}": torch.rand(outputs) for name in STATISTICS}
    model = nn.Sequential(
        *(tree(conv=nn.Conv2d(i, o, 3, bias=False), bn=nn.BatchNorm2d(o, eps=1e-3)) for i, o in sizes)
    )
    path = saved(tmp_path, stored)
    load_model(model, path, mapper=tfckpt.KeyMapper.infer(path, model))
    kernel = stored["detector/darknet-53/Conv_3/weights"]
    assert torch.equal(model.get_parameter("3.conv.weight"), kernel.permute(3, 2, 0, 1))
    assert torch.equal(model.get_parameter("1.bn.weight"), stored["detector/darknet-53/Conv_1/BatchNorm/gamma"])


def test_rules_are_found_for_an_npz_file(tmp_path: Path) -> None:
    stored = {"Dense_0/kernel": np.ones((3, 5), np.float32), "Dense_1/kernel": np.ones((5, 2), np.float32)}
    np.savez(tmp_path / "m.npz", **stored)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False))
    mapper = tfckpt.KeyMapper.infer(tmp_path / "m.npz", model)
    assert not load_model(model, tmp_path / "m.npz", mapper=mapper).missing
