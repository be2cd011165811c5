"""KeyMapper: rules, their order, and what is wrong with them."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.models.rules.key_mapper import KeyMapper, as_key_mapper
from torch_tfckpt.models.rules.key_rules import KeyRule
from torch_tfckpt.models.rules.rule_set import KeyMatch, KeyTarget


def test_a_dictionary_is_of_names() -> None:
    """A string in it is not a pattern; a target may have a layout; None and "" omit a tensor."""
    mapper = KeyMapper({"a.b": "x", "c": ("y", "dense"), "d": None, "e": ""})
    assert mapper.find("a.b") == KeyTarget("x", None)
    assert mapper.find("axb") is None
    assert mapper.find("c") == KeyTarget("y", "dense")
    assert mapper.find("d") == mapper.find("e") == KeyTarget(None, None)


def test_a_list_is_of_patterns() -> None:
    """They match whole names, the first counts, and groups go into the target."""
    mapper = KeyMapper(
        [
            (r"layer_(\d+)/kernel", r"layers.\1.weight", "dense"),
            KeyRule(r"layer_(?P<n>\d+)/(.*)", r"layers.\g<n>.\2"),
            (re.compile("HEAD/.*", re.IGNORECASE), None),
        ]
    )
    assert mapper.find("layer_12/kernel") == KeyTarget("layers.12.weight", "dense")
    assert mapper.find("layer_12/bias") == KeyTarget("layers.12.bias", None)
    assert mapper.find("x/layer_12/bias") is None
    assert mapper.find("layer_12/bias\n/x") is None
    assert mapper.find("head/x") == KeyTarget(None, None)


def test_names_go_before_patterns() -> None:
    """In whatever order they stand; and the first of several names that a rule knows counts."""
    mapper = KeyMapper({re.compile("a.*"): "pattern", "ab": "name"})
    assert mapper.find("ab") == KeyTarget("name", None)
    assert mapper.find("ac", "ab") == KeyTarget("name", None)
    assert mapper.find("zz", "ac") == KeyTarget("pattern", None)


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ([("a(", "b")], r'rule 0 of the KeyMapper: "a\(" is not a regular expression: missing \)'),
        ([("a", "b"), ("c", r"\1")], r'rule 1 of the KeyMapper: target "\\1" of "c": invalid group reference 1'),
        ([("(a)", r"\g<n>")], r"rule 0 of the KeyMapper: target .* unknown group name 'n'"),
        ([("a", "b", "dens")], r'rule 0 of the KeyMapper: unknown layout "dens". Closest: "dense"'),
        ({"a": ("b", "x", "y")}, r"rule 0 of the KeyMapper: \('b', 'x', 'y'\) is not a target"),
        ({"a": 3}, r"rule 0 of the KeyMapper: 3 is not a target"),
        ([("a", 3)], r"rule 0 of the KeyMapper: a target must be a state_dict key, or None"),
        ([("a",)], r"rule 0 of the KeyMapper is \('a',\). Write a tuple such as"),
        (None, "KeyMapper: None is not a set of rules. Give a dictionary"), (5, "KeyMapper: 5 is not a set of rules"),
        ("ab", "KeyMapper: 'ab' is not a set of rules"),
        (["a"], r"rule 0 of the KeyMapper is 'a'. Write a tuple such as"),
        ({3: "a"}, r"rule 0 of the KeyMapper: 3 is neither a name nor a regular expression for strings"),
        ([(re.compile(b"a"), "b")], r"rule 0 of the KeyMapper: re.compile\(b'a'\) is neither"),
        ({"a": "x", "b": "y", "c": "x"}, r'"a" and "c" are both mapped to "x". Map one of them to None'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_rules_are_named(rules: Any, text: str) -> None:
    """At once, with the number of the rule."""
    with pytest.raises(InvalidArgumentError, match=text):
        KeyMapper(rules)


def test_targets_of_pattern_with_alternatives() -> None:
    """A group that took no part is empty in the target."""
    assert KeyMapper([("(a)|(b)", r"x\1\2")]).find("b") == KeyTarget("xb", None)


def test_of_takes_rules_or_a_mapper() -> None:
    """What load_model is given may be either."""
    mapper = KeyMapper({})
    assert as_key_mapper(mapper) is mapper
    assert as_key_mapper({"a": "b"}).find("a") == KeyTarget("b", None)


NAMES = st.text("abc./_0", min_size=1, max_size=6)


@given(st.dictionaries(NAMES, st.tuples(NAMES, st.sampled_from([None, "same", "dense", "conv2d"])), max_size=8))
def test_names_can_be_turned_round(rules: dict[str, tuple[str, str | None]]) -> None:
    """inverse() gives back each name and layout; targets that are not unique were refused."""
    if len({target for target, _ in rules.values()}) < len(rules):
        with pytest.raises(InvalidArgumentError, match="both mapped to"):
            KeyMapper(rules)
        return
    inverse = KeyMapper(rules).inverse()
    assert {name: (target, layout) for target, (name, layout) in inverse.items()} == rules


def test_patterns_cannot_be_turned_round() -> None:
    """The error names the pattern; omitted names have no inverse."""
    assert KeyMapper({"a": None}).inverse() == {}
    with pytest.raises(UnimplementedError, match=r'the pattern "\(\.\*\)/kernel" of a KeyMapper cannot be inverted'):
        KeyMapper([("(.*)/kernel", r"\1.weight")]).inverse()


def test_the_rule_that_matches_is_reported() -> None:
    """With the name that it matched, of several."""
    pattern = re.compile("(.*)/k")
    mapper = KeyMapper({"x": "a", pattern: r"\1"})
    assert mapper.sources == ["x", pattern]
    assert mapper.match("b/k", "x") == KeyMatch("x", "x", KeyTarget("a", None))
    assert mapper.match("y", "b/k") == KeyMatch("b/k", pattern, KeyTarget("b", None))
    assert mapper.match("y") is None
