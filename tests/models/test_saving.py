"""save_model: the inverse of load_model, under torch's names, TensorFlow's, and one's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import Small, assert_is_small, bits, numbered, small_in_tensorflow
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.saving import save_model

SIZES = st.integers(1, 5)


@st.composite
def leaf_modules(draw: st.DrawFn) -> nn.Module:
    """A module of one of the kinds that have TensorFlow's names, or of one that has none, mostly not square."""
    a, b, h, w = (draw(SIZES) for _ in range(4))
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(a, b, bias=a % 2 == 0), lambda: nn.Conv2d(a, b, (h, w), bias=b % 2 == 0),
        lambda: nn.BatchNorm1d(a), lambda: nn.BatchNorm2d(a, affine=False), lambda: nn.Embedding(a, b),
        lambda: nn.LayerNorm(a), lambda: nn.Conv1d(a, b, h), lambda: nn.Linear(a, a), lambda: nn.Bilinear(a, b, h),
    ]  # fmt: skip
    return draw(st.sampled_from(kinds))()


def nested(below: st.SearchStrategy[nn.Module]) -> st.SearchStrategy[nn.Module]:
    names = st.sampled_from(["fc", "0", "kernel", "weight_", "net", "a/b"])
    return st.dictionaries(names, below, min_size=1, max_size=3).map(nn.ModuleDict)


TREES = st.recursive(leaf_modules(), nested, max_leaves=6)


def randomized(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        value.copy_(torch.randint(-1000, 1000, value.shape, generator=generator))
    return model


@settings(max_examples=40)
@given(TREES, st.sampled_from(["torch", "tf"]))
def test_load_model_is_the_inverse(tmp_path_factory: pytest.TempPathFactory, model: nn.Module, naming: str) -> None:
    """Random modules come back bit for bit, strictly, in both namings."""
    prefix = tmp_path_factory.mktemp("m") / "m"
    expected = bits(randomized(model, 1))
    assert save_model(model, prefix, naming=naming) == str(prefix)
    randomized(model, 2)
    if not expected:
        return
    report = load_model(model, prefix)
    assert bits(model) == expected and report.prefix == "" and report.ignored == []


@settings(max_examples=25)
@given(TREES, st.sampled_from(["torch", "tf"]), st.data())
def test_own_names_come_back_by_the_same_mapper(
    tmp_path_factory: pytest.TempPathFactory, model: nn.Module, naming: str, data: st.DataObject
) -> None:
    """Random rules for some of the names, with a layout wherever there is a choice."""
    prefix = tmp_path_factory.mktemp("m") / "m"
    names = data.draw(st.lists(st.sampled_from(sorted(model.state_dict())), unique=True))
    layouts: dict[int, list[str | None]] = {
        0: [None, "same"],
        1: [None, "same"],
        2: ["dense", "same"],
        4: ["conv2d", "same"],
    }
    rules = {
        f"own/{number}/{data.draw(st.sampled_from(['kernel', 'x']))}": (
            name,
            data.draw(st.sampled_from(layouts.get(model.state_dict()[name].ndim, ["same"]))),
        )
        for number, name in enumerate(names)
    }
    expected = bits(randomized(model, 1))
    save_model(model, prefix, naming=naming, mapper=rules)
    with tfckpt.load_checkpoint(prefix) as reader:
        assert set(rules) <= set(reader.keys())
    randomized(model, 2)
    load_model(model, prefix, mapper=rules)
    assert bits(model) == expected


def test_torch_s_names_are_saver_s_file(tmp_path: Path) -> None:
    """The same bytes as Saver(model), which restores it too."""
    model = Small()
    save_model(model, tmp_path / "a")
    tfckpt.Saver(model).save(tmp_path / "b", write_meta_graph=False, write_state=False)
    for suffix in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == "a") == [
        "a.data-00000-of-00001",
        "a.index",
    ]
    fresh = Small()
    tfckpt.Saver(fresh).restore(str(tmp_path / "a"))
    assert bits(fresh) == bits(model)


def test_tensorflow_s_names(tmp_path: Path) -> None:
    """With naming="tf" names and axes are TensorFlow's."""
    model = Small()
    tfckpt.save_file(small_in_tensorflow(), tmp_path / "a")
    load_model(model, tmp_path / "a")
    save_model(model, tmp_path / "b", naming="tf")
    written = tfckpt.load_file(tmp_path / "b")
    assert torch.equal(written.pop("bn/num_batches_tracked"), torch.tensor(0))
    assert written.keys() == small_in_tensorflow().keys()
    assert_is_small(model, written)


class Tied(nn.Module):
    """Two Linears with one weight, and an Embedding with it, which TensorFlow stores otherwise."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False), nn.Embedding(4, 3)
        if tied:
            self.b.weight = self.c.weight = self.a.weight


@pytest.mark.parametrize("naming", ["torch", "tf"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_tensors(tmp_path: Path, naming: str, tied: bool) -> None:
    """Stored once for each layout; loaded into the same module, and into one in which they are three."""
    model = Tied(True)
    save_model(model, tmp_path / "m", naming=naming)
    written = tfckpt.load_file(tmp_path / "m")
    shared = written.pop(".shared")
    assert isinstance(shared, np.ndarray)
    expected = {"b.weight": "a.weight", "c.weight": "a.weight"} if naming == "torch" else {"b/kernel": "a/kernel"}
    assert json.loads(shared.item()) == expected
    assert sorted(written) == (["a.weight"] if naming == "torch" else ["a/kernel", "c/embeddings"])
    fresh = Tied(tied)
    load_model(fresh, tmp_path / "m")
    assert bits(fresh) == bits(model)


def test_tied_tensors_under_own_names(tmp_path: Path) -> None:
    """What a mapper names is written under that name, whatever else holds it."""
    rules = {"x/kernel": "a.weight", "y/w": ("b.weight", "same")}
    model = Tied(True)
    save_model(model, tmp_path / "m", naming="tf", mapper=rules)
    assert sorted(tfckpt.load_file(tmp_path / "m")) == [".shared", "x/kernel", "y/w"]
    for tied in (True, False):
        fresh = Tied(tied)
        load_model(fresh, tmp_path / "m", mapper=rules)
        assert bits(fresh) == bits(model)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"naming": "TF"}, InvalidArgumentError, "unknown naming 'TF'. Namings: torch, tf, keras"),
        ({"mapper": [("(.*)/(.*)", r"\1")]}, UnimplementedError, "cannot be inverted"),
        ({"mapper": {"x": "fc.weigth"}}, InvalidArgumentError, 'mapper maps "x" to "fc.weigth", which .* "fc.weight"'),
        ({"mapper": {"fc.bias": ("fc.weight", "same")}}, InvalidArgumentError, "are both stored as"),
        ({"mapper": {"w": "fc.weight"}}, InvalidArgumentError, '"fc.weight", stored as "w": the layout of'),
        ({"mapper": {"x": ("fc.bias", "dense")}}, InvalidArgumentError, r'layout "dense" is for tensors with 2 dimens'),
    ],
    ids=["unknown", "pattern", "lacking", "twice", "untold", "layout"],
)  # fmt: skip
def test_what_cannot_be_saved(tmp_path: Path, arguments: Any, error: type[Exception], text: str) -> None:
    """It is said before a file is there."""
    with pytest.raises(error, match=text):
        save_model(Small(), tmp_path / "m", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_lazy_parameters_have_nothing_to_save(tmp_path: Path) -> None:
    """This holds under any naming."""
    for naming in ("torch", "tf"):
        with pytest.raises(InvalidArgumentError, match="shape"):
            save_model(nn.Sequential(nn.LazyLinear(3)), tmp_path / "m", naming=naming)


def test_names_that_become_one(tmp_path: Path) -> None:
    """Two parameters whose TensorFlow names are the same are not written over each other."""
    model = nn.Linear(2, 2, bias=False)
    model.kernel = nn.Parameter(numbered(2))
    with pytest.raises(InvalidArgumentError, match='"weight" and "kernel" are both stored as "kernel"'):
        save_model(model, tmp_path / "m", naming="tf")


def test_only_modules_are_saved(tmp_path: Path) -> None:
    """A state_dict is for save_file."""
    with pytest.raises(TypeError, match=r"the model is a OrderedDict\. Pass a torch.nn.Module"):
        save_model(Small().state_dict(), tmp_path / "m")  # type: ignore[arg-type]


@pytest.mark.parametrize("naming", ["torch", "tf"])
@pytest.mark.parametrize("preset", ["mobilenet-v2", "vgg16", "bert"])
def test_a_preset_for_another_model_is_refused(tmp_path: Path, preset: str, naming: str) -> None:
    """Otherwise the module would be saved under names that the user did not ask for. Nothing is written."""
    mapper = tfckpt.KeyMapper.preset(preset)
    with pytest.raises(InvalidArgumentError, match=r"no rule of the preset|which the module does not have"):
        save_model(nn.ModuleDict({"fc": nn.Linear(3, 2)}), tmp_path / "m", naming=naming, mapper=mapper)
    assert list(tmp_path.iterdir()) == []
