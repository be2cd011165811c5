"""Which stored tensor each tensor of a module comes from."""

from pathlib import Path

import pytest
from model_files import numbered, save_objects
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.layers.layouts import DENSE, HEADS, SAME, Layout
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.models.sources import Found, find_sources
from torch_tfckpt.models.targets import targets_of


def found(prefix: Path, model: nn.Module, rules: KeyMapper | None = None) -> Found:
    with tfckpt.load_checkpoint(prefix) as reader:
        return find_sources(reader, targets_of(model), mapper=rules, ema="ignore", prefix=None)


def test_possible_names_are_torch_s_and_tensorflow_s() -> None:
    """Torch's own first; of a tied tensor those of all its places."""
    model = nn.ModuleDict({"fc": nn.Linear(2, 2, bias=False), "out": nn.Embedding(2, 2)})
    model["out"].weight = model["fc"].weight
    (target,) = targets_of(model)
    assert target.possible_names == [
        "fc.weight", "out.weight", "fc.kernel", "fc._kernel", "fc.weights",
        "out.embeddings", "out._embeddings", "out.embedding",
    ]  # fmt: skip


def test_the_mapper_speaks_first(tmp_path: Path) -> None:
    """What it speaks of is not found by name, and what it does not speak of is."""
    tfckpt.save_file({"fc/kernel": numbered(2, 2), "fc/bias": numbered(2), "k": numbered(2, 2)}, tmp_path / "m")
    model = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    result = found(tmp_path / "m", model, KeyMapper({"k": ("fc.weight", "same")}))
    assert result.sources == {"fc.weight": Source.of("k", SAME, "k"), "fc.bias": Source.of("fc/bias", HEADS, "bias")}
    result = found(tmp_path / "m", model, KeyMapper({"fc/kernel": None}))
    assert (set(result.sources), result.left_out) == ({"fc.bias"}, ["fc/kernel"])
    result = found(tmp_path / "m", model)
    assert result.sources["fc.weight"] == Source.of("fc/kernel", DENSE, "kernel")


def test_one_full_name_of_two_variables_cannot_be_mapped(tmp_path: Path) -> None:
    """Both are named, unless they are copies of one."""
    save_objects(tmp_path / "m", {"a": numbered(2), "b": numbered(2)}, full_names={"a": "k", "b": "k"})
    assert found(tmp_path / "m", nn.Linear(2, 2), KeyMapper({"k": "bias"})).sources["bias"].key.startswith("a/")
    save_objects(tmp_path / "m", {"a": numbered(2), "b": numbered(2) + 1}, full_names={"a": "k", "b": "k"})
    with pytest.raises(InvalidArgumentError, match=r'"a/\.ATTR.*" and "b/\.ATTR.*" are both mapped to "bias"'):
        found(tmp_path / "m", nn.Linear(2, 2), KeyMapper({"k": "bias"}))


def test_tied_tensors_stored_apart_are_read_once(tmp_path: Path) -> None:
    """The first of the names counts; the others' keys are known to belong to it."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    tfckpt.save_file({"a.weight": numbered(2, 2), "b.weight": numbered(2, 2)}, tmp_path / "m")
    result = found(tmp_path / "m", model)
    assert (result.sources, result.apart) == ({"a.weight": Source.of("a.weight", SAME, "weight")}, {"b.weight"})
    tfckpt.save_file({"x": numbered(2, 2), "y": numbered(2, 2)}, tmp_path / "n")
    result = found(tmp_path / "n", model, KeyMapper({"y": ("b.weight", "same"), "x": ("a.weight", "same")}))
    assert (result.sources["a.weight"].key, result.apart) == ("x", {"y"})


@pytest.mark.parametrize(
    ("key", "full_name", "rule", "layout"),
    [
        ("layers/0/v", "d/kernel", "d/kernel", DENSE), ("layers/0/v", "d/kernel", "layers/0/v", DENSE),
        ("layers/0/kernel", "d/v", "d/v", DENSE), ("layers/0/weight", "d/kernel", "d/kernel", DENSE),
        ("layers/0/weight", "d/kernel", "layers/0/weight", DENSE), ("layers/0/weight", "d/v", "d/v", SAME),
    ],
)  # fmt: skip
def test_the_name_that_matched_determines_the_layout(
    tmp_path: Path, key: str, full_name: str, rule: str, layout: Layout
) -> None:
    """If it means nothing, another name of the variable does; a square weight would show no mistake."""
    save_objects(tmp_path / "m", {key: numbered(3, 3)}, full_names={key: full_name})
    result = found(tmp_path / "m", nn.Linear(3, 3, bias=False), KeyMapper({rule: "weight"}))
    assert result.sources["weight"].layout == layout


@pytest.mark.parametrize("ending", ["/ExponentialMovingAverage", ":0", "/ExponentialMovingAverage:0"])
def test_the_leaf_of_an_average_is_its_variable_s(tmp_path: Path, ending: str) -> None:
    """A rule for an average transposes it like its variable."""
    tfckpt.save_file({f"d/kernel{ending}": numbered(3, 3)}, tmp_path / "m")
    result = found(tmp_path / "m", nn.Linear(3, 3, bias=False), KeyMapper([("d/.*", "weight")]))
    assert result.sources["weight"].layout == DENSE


def test_a_rule_must_specify_a_layout_that_no_name_implies(tmp_path: Path) -> None:
    """Nothing is guessed about a square weight, even of an unknown module; a vector has only one order of axes."""
    tfckpt.save_file({"w": numbered(3, 3), "b": numbered(3), "kernel": numbered(3, 3)}, tmp_path / "m")
    with pytest.raises(
        InvalidArgumentError,
        match=r'"w", mapped to "weight": .* a name that ends in "w" .* Give it in the rule, .* "same" if',
    ):
        found(tmp_path / "m", nn.Linear(3, 3), KeyMapper({"w": "weight", "b": "bias"}))
    for said, layout in (("same", SAME), ("dense", DENSE)):
        result = found(tmp_path / "m", nn.Linear(3, 3), KeyMapper({"w": ("weight", said), "b": "bias"}))
        assert (result.sources["weight"].layout, result.sources["bias"].layout) == (layout, HEADS)
    own = nn.ParameterDict({"table": numbered(3, 3)})
    for name in ("w", "kernel"):
        with pytest.raises(InvalidArgumentError, match=rf'the layout of "table" .* ends in "{name}" does not imply it'):
            found(tmp_path / "m", own, KeyMapper({name: "table"}))
    assert found(tmp_path / "m", own, KeyMapper({"w": ("table", "same")})).sources["table"].layout == SAME


def test_names_that_cannot_be_told_apart(tmp_path: Path) -> None:
    """In stored names "/" and "." are one; rules tell them apart."""
    model = nn.ModuleDict({"a/b": nn.Linear(2, 2, bias=False), "a": nn.ModuleDict({"b": nn.Linear(2, 2, bias=False)})})
    tfckpt.save_file({"x/kernel": numbered(2, 2), "a.b.weight": numbered(2, 2)}, tmp_path / "m")
    with pytest.raises(InvalidArgumentError, match=r'"a/b.weight" and "a.b.weight" of the module cannot be told apart'):
        found(tmp_path / "m", model)
    result = found(tmp_path / "m", model, KeyMapper({"x/kernel": "a/b.weight"}))
    assert {name: source.key for name, source in result.sources.items()} == {
        "a/b.weight": "x/kernel",
        "a.b.weight": "a.b.weight",
    }
