"""Models trained by TensorFlow compute the same in torch: the checkpoints in tests/golden, and their samples.

Each folder has images that were not used for training, and the logits that TensorFlow computed for them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import GOLDEN, expected_of
from tensorflow_process import RawTensor
from torch import nn
from torch.nn import functional

import torch_tfckpt as tfckpt
from torch_tfckpt import load_model

MODELS = sorted(path.parent.name for path in GOLDEN.glob("*/samples.npz"))


def samples(folder: str) -> tuple[torch.Tensor, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The images for the models, labels, and TensorFlow's logits."""
    with np.load(GOLDEN / folder / "samples.npz", allow_pickle=False) as stored:
        return torch.from_numpy(stored["images"].astype(np.float32) / 16), stored["labels"], stored["outputs"]


class Dense(nn.Module):
    """Two dense layers, with their names in the checkpoint."""

    def __init__(self, first: str, second: str, width: int, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.add_module(first, nn.Linear(64, width))
        self.add_module(second, nn.Linear(width, 10))
        self.activation = activation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = self.children()
        logits: torch.Tensor = second(self.activation(first(images.flatten(1))))
        return logits


class Convolutional(nn.Module):
    """The network of both versions of Keras: strides of 2, with padding only at the end, and batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6, eps=1e-3)
        self.hidden = nn.Linear(4 * 4 * 6, 24)
        self.logits = nn.Linear(24, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(functional.pad(images[:, None], (0, 1, 0, 1)))))
        logits: torch.Tensor = self.logits(torch.relu(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))
        return logits


class Attention(nn.Module):
    """Pre-norm self-attention and a feed-forward network, as in scripts/golden/in_tensorflow/transformer.py."""

    WIDTH, HEADS = 24, 4

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(self.WIDTH, eps=1e-6)
        parts = {name: nn.Linear(self.WIDTH, self.WIDTH, bias=False) for name in ("q", "k", "v", "output")}
        self.self_attention = nn.ModuleDict(parts)
        self.ffn_norm = nn.LayerNorm(self.WIDTH, eps=1e-6)
        self.ffn = nn.ModuleDict({"inner": nn.Linear(self.WIDTH, 48), "outer": nn.Linear(48, self.WIDTH)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normal, parts = self.attention_norm(x), self.self_attention
        heads = [parts[name](normal).unflatten(-1, (self.HEADS, -1)).transpose(1, 2) for name in ("q", "k", "v")]
        joined = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + parts["output"](joined)
        inner = torch.relu(self.ffn["inner"](self.ffn_norm(x)))
        out: torch.Tensor = x + self.ffn["outer"](inner)
        return out


class Transformer(nn.Module):
    """Reads the rows of an image and one more token, whose output is the answer."""

    def __init__(self) -> None:
        super().__init__()
        width = Attention.WIDTH
        self.embedding = nn.Module()
        self.embedding.rows = nn.Linear(8, width)
        self.embedding.summary = nn.Parameter(torch.zeros(1, 1, width))
        self.embedding.positions = nn.Parameter(torch.zeros(9, width))
        self.body = nn.ModuleList(Attention() for _ in range(6))
        self.head = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(width, eps=1e-6),
                "pooler": nn.Linear(width, width),
                "logits": nn.Linear(width, 10),
            }
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embedding: Any = self.embedding
        x = torch.cat([embedding.summary.expand(len(images), -1, -1), embedding.rows(images)], 1) + embedding.positions
        for layer in self.body:
            x = layer(x)
        logits: torch.Tensor = self.head["logits"](torch.tanh(self.head["pooler"](self.head["norm"](x)[:, 0])))
        return logits


class TensorFlow1(nn.Module):
    """The convolutional network of digits-cnn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d, self.conv2d_1 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.dense, self.dense_1 = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images[:, None]
        for convolution in (self.conv2d, self.conv2d_1):
            x = functional.max_pool2d(torch.relu(convolution(x)), 2)
        logits: torch.Tensor = self.dense_1(torch.relu(self.dense(x.permute(0, 2, 3, 1).flatten(1))))
        return logits


# What load_model cannot find out, by folder.
MAPPERS: dict[str, Any] = {
    # The name "weight" does not imply a layout.
    "digits-v1": [(r"layer(\d)/weight", r"layer\1.weight", "dense")],
    # Counters of the module, which the torch module does not have.
    "digits-module": {"seen": None, "version": None, "authors": None},
    "digits-transformer": [
        (r"transformer/body/layer_(\d)/(.*norm)/scale", r"body.\1.\2.weight"),
        (r"transformer/body/layer_(\d)/(.*norm)/bias", r"body.\1.\2.bias"),
        (r"transformer/body/layer_(\d)/(\w+)/(\w+)/kernel", r"body.\1.\2.\3.weight"),
        (r"transformer/body/layer_(\d)/ffn/(\w+)/bias", r"body.\1.ffn.\2.bias"),
        (r"transformer/head/norm/scale", r"head.norm.weight"),
        (r"transformer/(head|embedding)/(\w+)/kernel", r"\1.\2.weight"),
        (r"transformer/(head|embedding)/(\w+)/bias", r"\1.\2.bias"),
        (r"transformer/embedding/(summary|positions)", r"embedding.\1"),
        (r"losses_avg/total_loss", None),
    ],
    # Keras 3 exports each variable twice, with numbers as names: only the order of the layers distinguishes them.
    "digits-keras3-savedmodel": {
        "variables/0": ("conv.weight", "conv2d"),
        "variables/1": "conv.bias",
        "variables/2": ("norm.weight", "same"),
        "variables/3": "norm.bias",
        "variables/4": "norm.running_mean",
        "variables/5": "norm.running_var",
        "variables/6": ("hidden.weight", "dense"),
        "variables/7": "hidden.bias",
        "variables/8": ("logits.weight", "dense"),
        "variables/9": "logits.bias",
        **{f"_all_variables/{number}": None for number in range(10)},
    },
}
TWINS: dict[str, Callable[[], nn.Module]] = {
    "digits-cnn": TensorFlow1,
    "digits-v1": lambda: Dense("layer1", "layer2", 24, torch.tanh),
    "digits-v1-sharded": lambda: Dense("hidden", "output", 32, torch.relu),
    "digits-partitioned": lambda: Dense("hidden", "output", 30, torch.relu),
    "digits-transformer": Transformer,
    "digits-tf1-savedmodel": lambda: Dense("hidden", "output", 32, torch.relu),
    "digits-module": lambda: Dense("hidden", "output", 32, torch.relu),
    "digits-checkpoint": Convolutional,
    "digits-keras2-weights": Convolutional,
    "digits-keras2-savedmodel": Convolutional,
    "digits-keras3-savedmodel": Convolutional,
    "digits-keras2-loss-scale": lambda: Dense("layer_with_weights-0", "layer_with_weights-1", 32, torch.relu),
}
# TensorFlow computed the first layer of this one in float16, whose numbers near 10 are 0.008 apart.
IN_HALF = "digits-keras2-loss-scale"


@pytest.mark.parametrize("folder", MODELS)
def test_torch_computes_what_tensorflow_computed(folder: str) -> None:
    """Every logit of every held-out image, and therefore the accuracy."""
    expected, model = expected_of(folder), TWINS[folder]()
    load_model(model, GOLDEN / folder / expected["prefix"], mapper=MAPPERS.get(folder))
    images, labels, theirs = samples(folder)
    with torch.no_grad():
        ours = model.eval()(images).numpy()
    assert np.abs(ours - theirs).max() < (0.02 if folder == IN_HALF else 1e-4)
    accuracies = [float((outputs.argmax(1) == labels).mean()) for outputs in (theirs, ours)]
    assert accuracies == [expected["model"]["accuracy"]] * 2 and accuracies[0] >= 0.9


@pytest.mark.parametrize("folder", MODELS)
def test_converted_files_compute_what_tensorflow_computed(folder: str, tmp_path: Path) -> None:
    """After `convert`, torch's own loaders give TensorFlow's logits; every stored tensor is accounted for."""
    expected, model = expected_of(folder), TWINS[folder]()
    source, target = GOLDEN / folder / expected["prefix"], tmp_path / "model.pt"
    report = tfckpt.convert(source, target, to_torch=True, map=MAPPERS.get(folder), check=TWINS[folder])
    model.load_state_dict(torch.load(target, weights_only=True), strict=True)
    images, _, theirs = samples(folder)
    with torch.no_grad():
        ours = model.eval()(images).numpy()
    assert np.abs(ours - theirs).max() < (0.02 if folder == IN_HALF else 1e-4)
    with tfckpt.load_checkpoint(source) as reader:
        assert {outcome.name for outcome in report.outcomes} == set(reader.keys())
    assert all(bool(outcome.new_name) != bool(outcome.reason) for outcome in report.outcomes)


def test_every_model_has_a_counterpart() -> None:
    """A parametrized test without cases would pass."""
    assert set(MODELS) == set(TWINS)


def test_samples_were_not_made_by_torch() -> None:
    """Without loading, the models' initial weights give no correct output."""
    torch.manual_seed(0)
    images, labels, theirs = samples("digits-cnn")
    with torch.no_grad():
        ours = TensorFlow1()(images).numpy()
    assert np.abs(ours - theirs).max() > 1 and (ours.argmax(1) == labels).mean() < 0.5


def test_numbered_checkpoints_of_one_saver() -> None:
    """The state file lists both, and the earlier one has the values that TensorFlow read."""
    folder = GOLDEN / "digits-cnn"
    state = tfckpt.get_checkpoint_state(folder)
    assert state is not None
    paths = [Path(path).name for path in state.all_model_checkpoint_paths]
    assert paths == [*expected_of("digits-cnn")["earlier"], expected_of("digits-cnn")["prefix"]]
    for prefix, tensors in expected_of("digits-cnn")["earlier"].items():
        with tfckpt.load_checkpoint(folder / prefix) as reader:
            found = {name: RawTensor.of(reader.get_tensor(name)).sha256 for name in reader.keys()}
        assert found == {name: tensor["sha256"] for name, tensor in tensors.items()}
        assert found["conv2d/kernel"] != expected_of("digits-cnn")["tensors"]["conv2d/kernel"]["sha256"]
