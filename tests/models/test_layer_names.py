"""TensorFlow's names for the tensors of a layer, and their layouts."""

import pytest
from torch import nn

from torch_tfckpt.models.layer_names import layout_of, variable_names, written_variable_name
from torch_tfckpt.models.layouts import CONV2D, DENSE, SAME, Layout


@pytest.mark.parametrize(
    ("module", "attribute", "stored", "layout"),
    [
        (nn.Linear(1, 1), "weight", "kernel", DENSE), (nn.Linear(1, 1), "weight", "_kernel", DENSE),
        (nn.Linear(1, 1), "weight", "weights", DENSE), (nn.Linear(1, 1), "bias", "biases", SAME),
        (nn.LazyLinear(1), "weight", "kernel", DENSE), (nn.Conv2d(1, 1, 1), "weight", "kernel", CONV2D),
        (nn.LazyConv2d(1, 1), "weight", "weights", CONV2D), (nn.BatchNorm1d(1), "weight", "gamma", SAME),
        (nn.SyncBatchNorm(1), "running_var", "moving_variance", SAME), (nn.BatchNorm3d(1), "bias", "beta", SAME),
        (nn.BatchNorm2d(1), "running_mean", "moving_mean", SAME), (nn.LayerNorm(1), "weight", "gamma", SAME),
        (nn.GroupNorm(1, 1), "bias", "beta", SAME), (nn.Embedding(1, 1), "weight", "embeddings", SAME),
        (nn.EmbeddingBag(1, 1), "weight", "_embeddings", SAME),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_known_names(module: nn.Module, attribute: str, stored: str, layout: Layout) -> None:
    """TensorFlow's name for a tensor of each kind of layer, and its layout."""
    assert layout_of(module, attribute, stored) is layout
    assert stored in variable_names(module, attribute)
    # What is written is read back in the layout it was written in.
    assert layout_of(module, attribute, written_variable_name(module, attribute)) is layout


@pytest.mark.parametrize(
    "module", [nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.LSTM(1, 1), nn.Bilinear(1, 1, 1), nn.Module()],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_others_have_none(module: nn.Module) -> None:
    """A kernel of theirs is not taken for one of a Linear: their rules are others."""
    assert variable_names(module, "weight") == {}
    assert layout_of(module, "weight", "kernel") is SAME and written_variable_name(module, "weight") == "weight"


def test_torch_s_own_name_is_never_transposed() -> None:
    """Torch's own names keep torch's axes."""
    assert layout_of(nn.Linear(1, 1), "weight", "weight") is SAME
    assert layout_of(nn.BatchNorm1d(1), "num_batches_tracked", "num_batches_tracked") is SAME
