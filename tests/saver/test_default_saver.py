"""get_saver_or_default: one saver a process, found in its collection."""

from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import GraphKeys, Saver, Variable, get_saver_or_default


def test_a_default_one_is_made_once(tmp_path: Path) -> None:
    """SAVER 4: sharded, content with nothing, put into the collection; it saves what is registered."""
    v = torch.ones(2)
    with tfckpt.Collections().as_default():
        tfckpt.add_to_collection(GraphKeys.GLOBAL_VARIABLES, Variable(v, "v"))
        saver = get_saver_or_default()
        assert get_saver_or_default() is saver
        assert tfckpt.get_collection(GraphKeys.SAVERS) == [saver]
    saver_def = saver.as_saver_def()
    assert saver_def is not None and saver_def.sharded
    path = saver.save(tmp_path / "m")
    v.zero_()
    saver.restore(path)
    assert v.tolist() == [1.0, 1.0]


def test_of_nothing() -> None:
    """SAVER 4: allow_empty."""
    with tfckpt.Collections().as_default():
        assert get_saver_or_default().as_saver_def() is None


def test_the_one_that_is_there() -> None:
    """SAVER 4: it is taken, whatever it saves."""
    with tfckpt.Collections().as_default():
        mine = Saver({"v": torch.zeros(1)})
        tfckpt.add_to_collection(GraphKeys.SAVERS, mine)
        assert get_saver_or_default() is mine


def test_several() -> None:
    """SAVER 4: a RuntimeError; and something that is no saver is told, too."""
    with tfckpt.Collections().as_default():
        for _ in range(2):
            tfckpt.add_to_collection(GraphKeys.SAVERS, Saver({"v": torch.zeros(1)}))
        with pytest.raises(RuntimeError, match="More than one item in collection savers"):
            get_saver_or_default()
    with tfckpt.Collections().as_default():
        tfckpt.add_to_collection(GraphKeys.SAVERS, "a text")
        with pytest.raises(RuntimeError, match="holds a str, not a Saver"):
            get_saver_or_default()
