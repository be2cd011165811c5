"""Rules for a model with heads, used for its base model, and for models that lack some of the heads."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.models.rules.key_rules import KeyRule
from torch_tfckpt.models.saving import save_model
from torch_tfckpt.tensor_dict import load_file, save_file

RULES = [
    KeyRule(r"net/layer_(\d+)", r"net.layer.\1", module=True),
    KeyRule("net/norm/g", "net.norm.weight", literal=True),
    KeyRule("net/norm/(b)", lambda match: {"b": "net.norm.bias"}[match[1]]),
    KeyRule("net/pool", "net.pool", module=True, optional="net.pool"),
    KeyRule("out/kernel", "head.weight", "dense", optional="head"),
    KeyRule("out/bias", "head.bias", literal=True, optional="head"),
    KeyRule("other/.*", None, optional="other"),
]
MAPPER = KeyMapper(RULES, base="net")


def base(layers: int = 2, *, pool: bool = True) -> nn.Module:
    parts: dict[str, nn.Module] = {
        "layer": nn.ModuleList(nn.Linear(3, 3) for _ in range(layers)),
        "norm": nn.LayerNorm(3),
    }
    return nn.ModuleDict(parts | ({"pool": nn.Linear(3, 3)} if pool else {}))


def whole(**options: Any) -> nn.Module:
    return nn.ModuleDict({"net": base(**options), "head": nn.Linear(3, 2)})


def write(path: Path) -> dict[str, torch.Tensor]:
    """Weights of the whole model and of another part, with slots of an optimizer."""
    torch.manual_seed(0)
    layers = ("net/layer_0", "net/layer_1", "net/pool", "other/fc")
    weights = {f"{name}/kernel": torch.randn(3, 3) for name in layers} | {
        f"{name}/bias": torch.randn(3) for name in layers
    }
    weights |= {"net/norm/g": torch.randn(3), "net/norm/b": torch.randn(3)}
    weights |= {"out/kernel": torch.randn(3, 2), "out/bias": torch.randn(2)}
    save_file(weights | {f"{name}/adam_m": torch.ones_like(value) for name, value in weights.items()}, path)
    return weights


@pytest.mark.parametrize("below", ["net.", ""])
def test_with_and_without_the_base(tmp_path: Path, below: str) -> None:
    """The same rules fill both models, and save them under the same names, functions as targets excepted."""
    weights = write(tmp_path / "m")
    model = whole() if below else base()
    report = load_model(model, tmp_path / "m", mapper=MAPPER)
    state = model.state_dict()
    assert torch.equal(state[f"{below}layer.1.weight"], weights["net/layer_1/kernel"].T)
    assert torch.equal(state[f"{below}norm.bias"], weights["net/norm/b"])
    assert torch.equal(state[f"{below}pool.bias"], weights["net/pool/bias"])
    assert report.unexpected == [] and report.unused_rules == []
    both = KeyMapper([*RULES[:2], KeyRule("net/norm/b", "net.norm.bias"), *RULES[3:]], base="net")
    save_model(model, tmp_path / "back", mapper=both)
    back = load_file(tmp_path / "back")
    assert back.keys() == {name for name in weights if not name.startswith(("other",) if below else ("other", "out"))}
    assert all(torch.equal(weights[name], value) for name, value in back.items() if isinstance(value, torch.Tensor))


def test_the_base_may_be_the_target(tmp_path: Path) -> None:
    """A rule for the base model itself becomes one for the module."""
    mapper = KeyMapper([KeyRule("scope", "net", module=True)], base="net")
    save_file({"scope/kernel": torch.ones(3, 2), "scope/bias": torch.zeros(2)}, tmp_path / "m")
    for model in (nn.Linear(3, 2), nn.ModuleDict({"net": nn.Linear(3, 2)})):
        load_model(model, tmp_path / "m", mapper=mapper)
        assert torch.equal(next(model.parameters()), torch.ones(2, 3))


def test_parts_that_the_module_lacks_are_reported(tmp_path: Path) -> None:
    """They are ignored, and a remark names the weights, but not the slots."""
    write(tmp_path / "m")
    report = load_model(base(pool=False), tmp_path / "m", mapper=MAPPER)
    [lacking, omitted] = report.remarks
    names = ["net/pool/bias", "net/pool/kernel", "out/bias", "out/kernel"]
    assert sorted(re.findall('"([^"]*)"', lacking)) == names
    assert lacking.startswith("not loaded, because the module does not have the parts to which the rules map them: ")
    assert omitted == 'not loaded, because the rules omit them: "other/fc/bias", "other/fc/kernel"'
    assert {*names, "other/fc/kernel"} < set(report.ignored)
    assert "not loaded" in str(report)


def test_a_part_that_is_smaller_is_an_error(tmp_path: Path) -> None:
    """Only a whole part may be absent: a layer, or one tensor of a head, is unexpected as before."""
    write(tmp_path / "m")
    with pytest.raises(InvalidArgumentError, match=r"(?s)Unexpected.*net/layer_1/bias.*the module does not have"):
        load_model(base(layers=1), tmp_path / "m", mapper=MAPPER)
    model = nn.ModuleDict({"net": base(), "head": nn.Linear(3, 2, bias=False)})
    with pytest.raises(InvalidArgumentError, match=r'(?s)Unexpected.*"out/bias" \(mapped to "head.bias"'):
        load_model(model, tmp_path / "m", mapper=MAPPER)


def test_parts_that_are_not_stored_are_missing(tmp_path: Path) -> None:
    """A module that has the part needs its values, and the rules that find none are listed."""
    save_file({name: value for name, value in write(tmp_path / "m").items() if "out" not in name}, tmp_path / "n")
    report = load_model(whole(), tmp_path / "n", mapper=MAPPER, strict=False)
    assert report.missing == ["head.weight", "head.bias"] and report.unused_rules == ["out/bias", "out/kernel"]
    assert load_model(base(), tmp_path / "n", mapper=MAPPER).unused_rules == []


@pytest.mark.parametrize("kind", ["name", "pattern", "module"])
def test_aliases(tmp_path: Path, kind: str) -> None:
    """Another name of the same tensor is loaded, is never written, and neither name is reported as unused."""
    rules = {
        "name": [KeyRule(f"{name}/kernel", "fc.weight", "dense", literal=True) for name in ("new", "old")],
        "pattern": [KeyRule(name, "fc.weight", "dense") for name in ("new/kernel", "(?:old|older)/kernel")],
        "module": [KeyRule(name, "fc", module=True) for name in ("new", "old")],
    }[kind]
    mapper = KeyMapper([rules[0], ("bias", "fc.bias"), rules[1]._replace(alias=True)])
    kernel = torch.randn(3, 2)
    for name in ("old", "new"):
        save_file({f"{name}/kernel": kernel, "bias": torch.zeros(2)}, tmp_path / name)
        model = nn.ModuleDict({"fc": nn.Linear(3, 2)})
        assert load_model(model, tmp_path / name, mapper=mapper).unused_rules == []
        assert torch.equal(model.state_dict()["fc.weight"], kernel.T)
        save_model(model, tmp_path / "back", mapper=mapper)
        assert load_file(tmp_path / "back").keys() == {"new/kernel", "bias"}
    save_file({"old/kernel": kernel, "new/kernel": kernel, "bias": torch.zeros(2)}, tmp_path / "both")
    if kind != "module":
        with pytest.raises(InvalidArgumentError, match=r"both mapped to \"fc\.weight\""):
            load_model(model, tmp_path / "both", mapper=mapper)


def test_wrong_arguments() -> None:
    """They are named when the mapper is made."""
    with pytest.raises(InvalidArgumentError, match="module, literal and alias must be True or False"):
        KeyMapper([KeyRule("a", "b", alias=1)])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="base=3 is not a name"):
        KeyMapper({}, base=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"rule 0 of the KeyMapper: optional is None\. Name the part"):
        KeyMapper([KeyRule("a", "b", optional=None)])  # type: ignore[arg-type]
