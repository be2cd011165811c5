r"""Targets that translate groups by an offset or a table, and scopes: both ways, in files, and what is wrong with them.

The oracle is written out in each test: which stored name belongs to which tensor.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_modules import nested
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.presets import preset_names
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.models.rules.key_rules import KeyRule
from torch_tfckpt.models.rules.target_templates import TargetTemplate, as_template
from torch_tfckpt.models.saving import save_model
from torch_tfckpt.tensor_dict import load_file, save_file

TEXT = r"""
[tables]
norm = { gamma = "weight", beta = "bias", scale = "weight" }
place = ["0.0", "1.0", "1.1"]

[[rule]]
pattern = '(?P<scope>(?:.*/)?net_v\d)/unit_(\d+)/(\w+)'
to = 'a.\g<2-1>.\g<3:norm>'

[[rule]]
pattern = 'block_(\d+)/(\w+)'
to = 'b.\g<1:place>.\g<2:norm>'

[[rule]]
pattern = 'block_9/(.*)'
to = ""
"""


def mapper(tmp_path: Path, text: str = TEXT, *, scope: str | None = None) -> KeyMapper:
    (tmp_path / "map.toml").write_text(text)
    return KeyMapper.from_file(tmp_path / "map.toml", scope=scope)


def norms(*names: str) -> nn.Module:
    """A module with a BatchNorm without statistics at each of these places."""
    return nested(lambda: nn.BatchNorm1d(2, track_running_stats=False), *names)


def test_numbers_and_words(tmp_path: Path) -> None:
    """An offset and a table are applied; a name that they cannot translate goes to the next rule, or to none."""
    rules = mapper(tmp_path)

    def target(name: str) -> str | tuple[str, ...] | None:
        found = rules.find(name)
        return "unmatched" if found is None else found.target

    assert target("net_v1/unit_3/gamma") == "a.2.weight"
    assert target("model/net_v2/unit_10/beta") == "a.9.bias"
    assert target("block_2/scale") == "b.1.1.weight"
    assert target("block_9/gamma") is None
    for name in ("net_v1/unit_0/gamma", "net_v1/unit_03/gamma", "net_v1/unit_3/delta", "block_3/gamma"):
        assert target(name) == "unmatched"


def test_there_and_back(tmp_path: Path) -> None:
    """save_model restores the names: a word of which a table has several names gets the first."""
    model = norms("a.0", "a.1", "b.0.0", "b.1.0", "b.1.1")
    values = iter(torch.randn(10, 2))
    stored = {f"net_v1/unit_{unit}/{leaf}": next(values) for unit in (1, 2) for leaf in ("gamma", "beta")}
    stored |= {f"block_{block}/{leaf}": next(values) for block in range(3) for leaf in ("gamma", "beta")}
    save_file(stored, tmp_path / "net")
    load_model(model, tmp_path / "net", mapper=mapper(tmp_path))
    assert torch.equal(model.get_parameter("a.1.bias"), stored["net_v1/unit_2/beta"])
    assert torch.equal(model.get_parameter("b.1.1.weight"), stored["block_2/gamma"])
    units, blocks = norms("a.0", "a.1"), norms("b.0.0", "b.1.0", "b.1.1")
    units.load_state_dict(model.state_dict(), strict=False)
    blocks.load_state_dict(model.state_dict(), strict=False)
    again = load_file(save_model(units, tmp_path / "units", mapper=mapper(tmp_path, scope="net_v1/")))
    again |= load_file(save_model(blocks, tmp_path / "blocks", mapper=mapper(tmp_path, scope="")))
    assert again.keys() == stored.keys()
    for name, value in stored.items():
        assert torch.equal(again[name], value), name


def test_a_scope_is_asked_for(tmp_path: Path) -> None:
    """Without a scope, the stored names are not determined; the error names the argument."""
    with pytest.raises(UnimplementedError, match=r'scope="resnet_v1_50"'):
        save_model(norms("a.0"), tmp_path / "net", mapper=mapper(tmp_path))


def test_a_scope_selects_rules(tmp_path: Path) -> None:
    """With a scope only names below it match; with the empty scope only names without one."""
    one, none = mapper(tmp_path, scope="x/net_v1"), mapper(tmp_path, scope="")
    assert one.find("x/net_v1/unit_1/gamma") is not None
    for name in ("net_v1/unit_1/gamma", "x/net_v2/unit_1/gamma", "block_1/gamma"):
        assert one.find(name) is None
    assert none.find("block_1/gamma") is not None
    assert none.find("net_v1/unit_1/gamma") is None
    with pytest.raises(InvalidArgumentError, match=r'no rule for the scope "other"'):
        mapper(tmp_path, scope="other")
    with pytest.raises(InvalidArgumentError, match=r"scope=3: pass a string"):
        mapper(tmp_path, scope=3)  # type: ignore[arg-type]


def test_two_scopes_in_one_checkpoint_are_an_error(tmp_path: Path) -> None:
    """Two models for one module are never mixed; a scope chooses."""
    stored = {f"net_v{n}/unit_1/{leaf}": torch.full((2,), float(n)) for n in (1, 2) for leaf in ("gamma", "beta")}
    save_file(stored, tmp_path / "net")
    with pytest.raises(InvalidArgumentError, match="both mapped"):
        load_model(norms("a.0"), tmp_path / "net", mapper=mapper(tmp_path))
    model = norms("a.0")
    load_model(model, tmp_path / "net", mapper=mapper(tmp_path, scope="net_v2"), strict=False)
    assert torch.equal(model.get_parameter("a.0.weight"), torch.full((2,), 2.0))


def test_files(tmp_path: Path) -> None:
    """to_file writes the tables, and from_file reads an equal mapper, also with a scope."""
    for rules in (mapper(tmp_path), mapper(tmp_path, scope="net_v1")):
        rules.to_file(tmp_path / "copy.toml")
        assert KeyMapper.from_file(tmp_path / "copy.toml") == rules
    assert mapper(tmp_path) != mapper(tmp_path, TEXT.replace('"weight"', '"running_mean"'))


def test_rules_in_python(tmp_path: Path) -> None:
    """Offsets work in KeyRules, too: for modules, by names of groups, and in splits."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    stored = {f"layer_{number}/{leaf}": torch.randn(shape) for number, leaf, shape in (
        (1, "kernel", (3, 2)), (1, "bias", (2,)), (2, "kernel", (2, 2)), (2, "bias", (2,)),
    )}  # fmt: skip
    save_file(stored, tmp_path / "net")
    rules: Any = [KeyRule(r"layer_(?P<unit>\d+)", r"\g<unit-1>", module=True)]
    load_model(model, tmp_path / "net", mapper=rules)
    assert torch.equal(model.get_parameter("1.weight"), stored["layer_2/kernel"].T)
    again = load_file(save_model(model, tmp_path / "again", mapper=rules))
    assert again.keys() == stored.keys()
    split = KeyMapper([KeyRule(r"qkv_(\d+)", (r"q.\g<1-1>", r"k.\g<1+1>"))])
    assert split.find("qkv_4") == split.find("qkv_4")
    found = split.find("qkv_4")
    assert found is not None
    assert found.target == ("q.3", "k.5")
    assert split.find("qkv_0") is None


@given(number=st.integers(0, 10**17), offset=st.integers(-999_999, 999_999))
def test_any_number(number: int, offset: int) -> None:
    """The inverse of an offset gives the number back; negative results are not translated."""
    template = as_template(rf"a.\g<1{offset:+d}>", {})
    assert isinstance(template, TargetTemplate)
    translation = next(each for each in template.pieces if not isinstance(each, str))
    text = translation.forwards(str(number))
    assert text == (None if number + offset < 0 else str(number + offset))
    assert text is None or translation.backwards(text) == str(number)


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 5000, "\u0663", "-1", "1_0", " 1", ""])
def test_what_is_not_a_number(digits: str) -> None:
    """Texts that int() accepts or that take it long are not numbers."""
    template = as_template(r"\g<1-1>", {})
    assert isinstance(template, TargetTemplate)
    [translation] = (each for each in template.pieces if not isinstance(each, str))
    assert translation.forwards(digits) is None


RULE = "[[rule]]\npattern = '(a)(b)'\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("tables = 3", "not tables or lists of strings"),
        ("[tables]\nnorm = 3", "not tables or lists of strings"),
        ("[tables]\nnorm = { a = 3 }", "not tables or lists of strings"),
        ('[tables]\nnorm = ["a", 3]', "not tables or lists of strings"),
        ('[tables]\n"a b" = { a = "b" }', "not tables or lists of strings"),
        ("[table]\nnorm = {}", 'unknown key "table"'),
        (RULE + r"to = '\g<1:norm>'", 'there is no table "norm"'),
        ('[tables]\nnorms = { a = "b" }\n' + RULE + r"to = '\g<1:norm>'", "norms"),
        (RULE + r"to = '\g<3-1>'", "invalid group reference"),
        (RULE + r"to = '\g<unit-1>'", "unknown group name"),
        (RULE + r"to = '\g<1-a>'", "bad character in group name"),
        (RULE + r"to = '\g<1*2>'", "bad character in group name"),
    ],
    ids=range(12),
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, error: str) -> None:
    """Mistakes are found when the file is read, and the message says which rule or table is wrong."""
    with pytest.raises(InvalidArgumentError, match=error):
        mapper(tmp_path, text)


def test_tables_with_one_name_and_different_words(tmp_path: Path) -> None:
    """Two mappers' tables of one name cannot be in one file."""
    first, second = (as_template(r"\g<1:t>", {"t": {"a": word}}) for word in "xy")
    rules = KeyMapper([(r"1/(\w)", first), (r"2/(\w)", second)])
    with pytest.raises(UnimplementedError, match=r'another table "t"'):
        rules.to_file(tmp_path / "map.toml")


def test_presets_can_be_written_and_read(tmp_path: Path) -> None:
    """Every preset is equal to its copy; an unknown one is named together with those that exist."""
    for name in preset_names():
        KeyMapper.preset(name).to_file(tmp_path / "copy.toml")
        assert KeyMapper.from_file(tmp_path / "copy.toml") == KeyMapper.preset(name), name
    with pytest.raises(NotFoundError, match="resnet"):
        KeyMapper.preset("resnets")
