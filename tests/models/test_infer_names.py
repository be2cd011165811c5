"""Names as words and numbers: what is equal, which numbers a program chose, and how families are ordered."""

import pytest

from torch_tfckpt.models.inference.names import dense_ranks, families, name_path


@pytest.mark.parametrize(
    ("stored", "module"),
    [
        ("encoder/layer_3/attention/query", "encoder.layer.3.attn.q"),
        ("batch_normalization_12", "bn12"),
        ("model/LayerNorm", "ln"),
        ("Conv2d_1_depthwise", "conv1.dw"),
        ("block/shortcut", "blocks.downsample"),
        ("multi_head_attention", "self_attn"),
    ],
)
def test_equal_words(stored: str, module: str) -> None:
    """Abbreviations, separators and containers do not matter."""
    assert name_path(stored).all_words == name_path(module).all_words


@pytest.mark.parametrize(
    ("name", "automatic"),
    [
        ("dense_1", True), ("dense", True), ("net/conv2d_7", True), ("model/_operations/3", True),
        ("layer_with_weights-2", True), ("fc1", False), ("layer_3", False), ("Conv2d_1_depthwise", False),
        ("features.3", False), ("h0", False),
    ],
)  # fmt: skip
def test_automatic_numbers(name: str, automatic: bool) -> None:
    """Names of classes with a number at the end, and indexes of Keras's lists."""
    assert name_path(name).automatic[-1] == automatic


def test_families_are_in_natural_order() -> None:
    """A name without a number comes first; numbers are compared as numbers."""
    [family] = families(["dense_10", "dense", "dense_2"])
    assert [index for index, _ in family.members] == [1, 2, 0]
    assert family.automatic
    assert family.first_is_bare


def test_ranks_compare_numberings() -> None:
    """block1/unit_1 and layer1.0 are numbered alike; a flat and a nested numbering are not."""
    assert dense_ranks([(1, 1), (1, 2), (2, 1)]) == dense_ranks([(1, 0), (1, 1), (4, 0)])
    assert dense_ranks([(1,), (2,), (3,)]) != dense_ranks([(1, 0), (1, 1), (4, 0)])
