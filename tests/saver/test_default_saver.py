"""get_saver_or_default: one saver per process, found in the collection of savers."""

from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import GraphKeys, Saver, Variable, get_saver_or_default


def test_the_default_saver_is_created_once(tmp_path: Path) -> None:
    """The default saver is sharded, is added to the collection and saves all registered variables."""
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


def test_without_variables() -> None:
    """With no registered variables, the default saver is created as with allow_empty."""
    with tfckpt.Collections().as_default():
        assert get_saver_or_default().as_saver_def() is None


def test_an_existing_saver() -> None:
    """A saver that is already in the collection is returned, whatever it saves."""
    with tfckpt.Collections().as_default():
        mine = Saver({"v": torch.zeros(1)})
        tfckpt.add_to_collection(GraphKeys.SAVERS, mine)
        assert get_saver_or_default() is mine


def test_several_savers() -> None:
    """Several savers in the collection raise RuntimeError, and so does an item that is not a saver."""
    with tfckpt.Collections().as_default():
        for _ in range(2):
            tfckpt.add_to_collection(GraphKeys.SAVERS, Saver({"v": torch.zeros(1)}))
        with pytest.raises(RuntimeError, match="More than one item in collection savers"):
            get_saver_or_default()
    with tfckpt.Collections().as_default():
        tfckpt.add_to_collection(GraphKeys.SAVERS, "a string")
        with pytest.raises(RuntimeError, match="contains a value of type str, not a Saver"):
            get_saver_or_default()
