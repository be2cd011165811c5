"""TensorFlow's variables of a layer, and how the tensors of torch's module are made from them."""

from collections.abc import Iterator

import pytest
from torch import nn

from torch_tfckpt.models.layers.layer_names import variants_of
from torch_tfckpt.models.layers.layouts import CONV1D, CONV2D, CONV_TRANSPOSE2D, DENSE, HEADS, SAME, VECTOR, Layout


def layouts(module: nn.Module, attribute: str) -> Iterator[dict[str, Layout]]:
    for variant in variants_of(module):
        for leaves in variant[attribute].variables:
            yield dict(leaves)


@pytest.mark.parametrize(
    ("module", "attribute", "stored", "layout"),
    [
        (nn.Linear(1, 1), "weight", "kernel", DENSE), (nn.Linear(1, 1), "weight", "_kernel", DENSE),
        (nn.Linear(1, 1), "weight", "weights", DENSE), (nn.Linear(1, 1), "bias", "biases", HEADS),
        (nn.LazyLinear(1), "weight", "kernel", DENSE), (nn.Conv2d(1, 1, 1), "weight", "kernel", CONV2D),
        (nn.LazyConv2d(1, 1), "weight", "weights", CONV2D), (nn.BatchNorm1d(1), "weight", "gamma", VECTOR),
        (nn.SyncBatchNorm(1), "running_var", "moving_variance", VECTOR), (nn.BatchNorm3d(1), "bias", "beta", VECTOR),
        (nn.BatchNorm2d(1), "running_mean", "moving_mean", VECTOR), (nn.LayerNorm(1), "weight", "gamma", VECTOR),
        (nn.GroupNorm(1, 1), "bias", "beta", VECTOR), (nn.Embedding(1, 1), "weight", "embeddings", SAME),
        (nn.EmbeddingBag(1, 1), "weight", "_embeddings", SAME), (nn.Conv1d(1, 1, 1), "weight", "kernel", CONV1D),
        (nn.ConvTranspose2d(1, 1, 1), "weight", "weights", CONV_TRANSPOSE2D), (nn.PReLU(), "weight", "alpha", VECTOR),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_known_names(module: nn.Module, attribute: str, stored: str, layout: Layout) -> None:
    """TensorFlow's name for a tensor of each kind of layer, and its layout."""
    assert [leaves[stored] for leaves in layouts(module, attribute)] == [layout]


@pytest.mark.parametrize("module", [nn.Bilinear(1, 1, 1), nn.Module()], ids=lambda module: type(module).__name__)
def test_unknown_modules(module: nn.Module) -> None:
    """Nothing is assumed about a module that is not known."""
    assert list(variants_of(module)) == []


@pytest.mark.parametrize(
    "module",
    [nn.Linear(1, 1), nn.Conv2d(1, 1, 1), nn.BatchNorm1d(1), nn.LSTM(1, 1)],
    ids=lambda module: type(module).__name__,
)
def test_torch_s_own_name_of_a_weight_is_not_among_them(module: nn.Module) -> None:
    """It implies no layout: TensorFlow's programs and torch both use it, in different orders of axes."""
    names = {leaf for variant in variants_of(module) for origin in variant.values() for leaf in origin.leaves()}
    assert names.isdisjoint({"weight", "w", "W"})
