r"""Map files: rules as TOML. tomllib reads what is written, an equal mapper comes back, and what is wrong is named."""

import re
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.models.rules.key_rules import KeyRule
from torch_tfckpt.models.rules.rule_set import rules_of

EXAMPLE = r"""
base = "net"

[[rule]]
name = "dense/kernel"
to = "fc.weight"
layout = "dense"

[[rule]]
pattern = 'layer_(\d+)/kernel'
to = 'layers.\1.weight'
layout = [1, 0]

[[rule]]
module = 'bert/encoder/layer_(\d+)/attention/self/query'
to = 'encoder.layer.\1.attention.self.query'

[[rule]]
join = ["q/kernel", "k/kernel", "v/kernel"]
to = "c_attn.weight"
axis = 1
layout = "same"

[[rule]]
name = "qkv/bias"
to = ["q.bias", "k.bias", "v.bias"]
sizes = [4, 2, 2]

[[rule]]
fill = 1
to = "norm.weight"

[[rule]]
name = "gate/bias"
to = "gate.bias"
add = 1.0

[[rule]]
name = "dense_1/kernel"
to = "fc1.weight"
layout = { kind = "dense_after_flatten", height = 5, width = 5, channels = 8 }

[[rule]]
pattern = 'head/.*'
to = ""

[[rule]]
name = "pooler/bias"
to = "net.pooler.bias"
optional = "net.pooler"

[[rule]]
name = "old/pooler/bias"
to = "net.pooler.bias"
alias = true
"""

RULES: list[Any] = [
    KeyRule("dense/kernel", "fc.weight", "dense", literal=True),
    (r"layer_(\d+)/kernel", r"layers.\1.weight", (1, 0)),
    KeyRule(
        r"bert/encoder/layer_(\d+)/attention/self/query", r"encoder.layer.\1.attention.self.query", module=True
    ),
    KeyRule(("q/kernel", "k/kernel", "v/kernel"), "c_attn.weight", "same", axis=1),
    KeyRule("qkv/bias", ["q.bias", "k.bias", "v.bias"], sizes=[4, 2, 2], literal=True),
    KeyRule(None, "norm.weight", fill=1.0),
    KeyRule("gate/bias", "gate.bias", add=1.0, literal=True),
    KeyRule(
        "dense_1/kernel", "fc1.weight", {"kind": "dense_after_flatten", "height": 5, "width": 5, "channels": 8},
        literal=True,
    ),
    ("head/.*", None),
    KeyRule("pooler/bias", "net.pooler.bias", optional="net.pooler", literal=True),
    KeyRule("old/pooler/bias", "net.pooler.bias", literal=True, alias=True),
]  # fmt: skip


def test_every_kind_of_rule(tmp_path: Path) -> None:
    """The file has the rules that can be written in Python; written again, it is read as the same."""
    (tmp_path / "map.toml").write_text(EXAMPLE)
    mapper = KeyMapper.from_file(tmp_path / "map.toml")
    assert mapper == KeyMapper(RULES, base="net") and hash(mapper) == hash(KeyMapper(RULES, base="net"))
    assert mapper != KeyMapper(RULES[:-1], base="net") and mapper != KeyMapper(RULES) and mapper != "map.toml"
    assert mapper.base == "net" and KeyMapper(RULES).base == ""
    mapper.to_file(tmp_path / "again.toml")
    assert KeyMapper.from_file(tmp_path / "again.toml") == mapper
    written = (tmp_path / "again.toml").read_text()
    assert "module = 'bert/encoder/layer_(\\d+)/attention/self/query'\nto = 'encoder.layer.\\1.att" in written
    assert 'layout = { kind = "dense_after_flatten", height = 5, width = 5, channels = 8 }' in written


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAME = TEXT.filter(bool)
LAYOUT = st.one_of(
    st.sampled_from(["dense", "squeeze", "in out -> out in", (2, 0, 1), [1, 0]]),
    st.fixed_dictionaries({"kind": st.just("dense_after_flatten"), "height": st.integers(1, 9)}),
    st.fixed_dictionaries({"kind": st.just("lstm_tf1"), "forget_bias": st.floats(-3, 3)}),
)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
PATTERN = st.lists(st.one_of(TEXT.map(re.escape), st.sampled_from([r"(\d+)", "(?P<n>.*)", "[^'\"]*", "'''", '"""'])),
                   max_size=4).map("".join)  # fmt: skip


@st.composite
def rules(draw: st.DrawFn) -> KeyRule:
    """Any rule without functions."""
    layout: Any = draw(st.none() | LAYOUT)
    targets = st.lists(NAME, min_size=2, max_size=4, unique=True)
    kind = draw(st.sampled_from(["name", "split", "pattern", "module", "join", "fill"]))
    if kind == "name":
        return KeyRule(draw(TEXT), draw(NAME), layout, add=draw(NUMBER), literal=True)
    if kind == "split":
        to = draw(targets)
        sizes = draw(st.none() | st.lists(st.integers(1, 9), min_size=len(to), max_size=len(to)))
        return KeyRule(draw(TEXT), to, layout, draw(st.integers(0, 5)), sizes, literal=True)
    if kind == "fill":
        return KeyRule(None, draw(NAME | targets), fill=draw(NUMBER))
    pattern = draw(PATTERN.filter(lambda text: text.count("(?P<n>") < 2))
    target = draw(NAME).replace("\\", "\\\\")
    if kind == "join":
        return KeyRule([pattern] * draw(st.integers(1, 4)), target, layout, draw(st.integers(0, 3)))
    flags = draw(st.sampled_from([re.NOFLAG, re.IGNORECASE, re.DOTALL | re.ASCII]))
    compiled = re.compile(pattern, flags)
    omitted = not compiled.groups and draw(st.booleans())
    full = target + r"\1" if compiled.groups else target
    return KeyRule(compiled, None if omitted else full, layout, module=kind == "module")


@given(st.lists(rules(), max_size=5), TEXT, TEXT)
def test_what_is_written_is_read_as_equal(
    tmp_path_factory: pytest.TempPathFactory, given_rules: list[KeyRule], base: str, optional: str
) -> None:
    """Whatever characters names, patterns and targets have."""
    try:
        mapper = KeyMapper([rule._replace(optional=optional) for rule in given_rules], base=base)
    except InvalidArgumentError as error:
        assert "another rule" in str(error) or "both mapped" in str(error)
        return
    path = tmp_path_factory.mktemp("maps", numbered=True) / "map.toml"
    mapper.to_file(path)
    tomllib.loads(path.read_bytes().decode())
    again = KeyMapper.from_file(path)
    assert again == mapper
    assert [each.identity for each in rules_of(again)] == [each.identity for each in rules_of(mapper)]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a = ", r"map\.toml is not a map file in TOML: Invalid value"),
        ("[[rules]]\nname = 'a'", r'map\.toml: unknown key "rules". Closest: "rule"'),
        ("[rule]\nname = 'a'", "rule is not an array of tables"),
        ("rule = [1]", "rule is not an array of tables"),
        ("[[rule]]\nnam = 'a'\nto = 'b'", r'map\.toml: rule 1: unknown key "nam". Closest: "name"'),
        ("[[rule]]\nname = 'a'\nto = 'b'\n[[rule]]\nname = 'c'", 'rule 2 has no target. Write to = "" to omit'),
        ("[[rule]]\nto = 'b'", "rule 1 needs one of name, pattern, module, join and fill, and has none"),
        ("[[rule]]\nname = 'a'\nmodule = 'c'\nto = 'b'", "needs one of .* and has name and module"),
        ("[[rule]]\nname = 3\nto = 'b'", "rule 1: name = 3 is not a string"),
        ("[[rule]]\nname = ['a']\nto = 'b'", "name = .* is not a string"),
        ("[[rule]]\nname = 'a'\nto = ['b', 3]", "to = .* is not a string"),
        ("[[rule]]\nmodule = 'a'\nto = ['b', 'c']", "to = .* is not a string"),
        ("[[rule]]\njoin = 'a'\nto = 'b'", "join = 'a' is not a list of strings"),
        ("[[rule]]\njoin = []\nto = 'b'", r"join = \[\] is not a list of strings"),
        ("[[rule]]\njoin = ['(a)', 'b']\nto = 'b'", "do not have the same groups"),
        ("[[rule]]\njoin = ['a', 'b']\nto = ''", "joins variables without a target"),
        ("[[rule]]\npattern = 'a('\nto = 'b'", r"rule 1: \"a\(\" is not a regular expression: missing \)"),
        ("[[rule]]\npattern = 'a'\nto = '\\1'", "invalid group reference 1"),
        ("[[rule]]\nname = 'a'\nto = 'b'\nlayout = 'dens'", 'unknown layout "dens". Closest: "dense"'),
        ("[[rule]]\nname = 'a'\nto = 'b'\nlayout = 3", "3 is not a layout"),
        ("[[rule]]\nname = 'a'\nto = 'b'\nlayout = []", "the layout is empty"),
        ("[[rule]]\nname = 'a'\nto = 'b'\nlayout = {kind='dense', height=3}", "invalid parameter 'height'=3"),
        ("[[rule]]\nname = 'a'\nto = 'b'\nlayout = {kind=['dense']}", "unknown layout"),
        ("[[rule]]\nname = 'a'\nto = 'b'\naxis = 1", "neither joins nor splits, so it cannot have axis"),
        ("[[rule]]\nname = 'a'\nto = ['b', 'c']\naxis = -1", "invalid axis -1. Count from 0"),
        ("[[rule]]\nname = 'a'\nto = ['b', 'c']\naxis = 10000000000", "invalid axis 10000000000"),
        ("[[rule]]\nname = 'a'\nto = ['b', 'c']\nsizes = [1]", "has 1 size for 2 targets"),
        ("[[rule]]\nname = 'a'\nto = ['b', 'c']\nsizes = [1, 0]", r"sizes \[1, 0\] is not a list of lengths"),
        ("[[rule]]\nname = 'a'\nto = ['b', 'b']", "has a state_dict key twice"),
        ("[[rule]]\nname = 'a'\nto = 'b'\nadd = 'x'", "add 'x' is not a finite number"),
        ("[[rule]]\nname = 'a'\nto = 'b'\nadd = nan", "add nan is not a finite number"),
        ("[[rule]]\nfill = true\nto = 'b'", "fill True is not a finite number"),
        ("[[rule]]\nfill = 1.0\nto = 'b'\nlayout = 'dense'", "a rule with fill cannot have a layout"),
        ("[[rule]]\nmodule = 'a'\nto = 'b'\nadd = 1.0", "is for modules, and cannot join, split or add"),
        ("[[rule]]\nname = 'a'\nto = 'b'\n[[rule]]\nname = 'c'\nto = 'b'", '"a" and "c" are both mapped to "b"'),
        ("[[rule]]\nname = 'a'\nto = 'b'\n[[rule]]\nname = 'a'\nto = 'c'", 'rule 2: there is another rule'),
        ("base = ['a']", r"map\.toml: base = \['a'\] is not a name. Write one such as base = \"bert\""),
        ("[[rule]]\nname = 'a'\nto = 'b'\noptional = true", 'rule 1: optional is True. Name the part that the module'),
        ("[[rule]]\nname = 'a'\nto = 'b'\nalias = 1", "rule 1: module, literal and alias must be True or False"),
        ("x = " + "[" * 100_000, "is not a map file in TOML: it is nested too deeply"),
        ("x = " + "9" * 100_000, "is not a map file in TOML: Exceeds the limit"),
        (".".join("a" * 100_000) + " = 1", "line 1 has a key of more than 8 parts"),
        ("x = '''a'''''\ny = {x = '''a'''', " + ".".join(["'b'"] * 50_000) + " = 1}", "line 2 has a key of more than"),
        ("[[rule]]\nname = 'a'\nto = " + "x" * 5_000_000, "bytes are too many for a map file"),
        ("\ud800", "is not a map file in TOML: .*utf-8"),
    ],
    ids=lambda value: value[:40],
)  # fmt: skip
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, error: str) -> None:
    """The message has the file, the number of the rule, what is wrong and, for a rule, an example that works."""
    (tmp_path / "map.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    start = time.perf_counter()
    with pytest.raises(InvalidArgumentError, match=error) as caught:
        KeyMapper.from_file(tmp_path / "map.toml")
    assert time.perf_counter() - start < 10
    message = str(caught.value)
    assert "map.toml" in message and len(message) < 2000
    if "Example" in message:
        example = message.partition("Example")[2].partition(":\n")[2]
        (tmp_path / "map.toml").write_text(example)
        assert rules_of(KeyMapper.from_file(tmp_path / "map.toml"))


def test_a_missing_file(tmp_path: Path) -> None:
    """It is not an empty map; an empty file is one."""
    with pytest.raises(NotFoundError, match=r"none\.toml"):
        KeyMapper.from_file(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_bytes(b"\xef\xbb\xbf# nothing\r\n")
    assert KeyMapper.from_file(tmp_path / "empty.toml") == KeyMapper({})


def rename(match: re.Match[str]) -> str:
    """A target that only Python can express."""
    return match[0]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (("a", rename), 'rule 1 of the KeyMapper: the target is the function "rename"'),
        (("a", "b", (rename, rename)), 'rule 1 of the KeyMapper: the layout is the function "rename"'),
    ],
)
def test_functions_are_refused_by_name(tmp_path: Path, rule: Any, text: str) -> None:
    """Nothing is written."""
    with pytest.raises(UnimplementedError, match=re.escape(text)):
        KeyMapper([("x", "y"), rule]).to_file(tmp_path / "map.toml")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    """UTF-8 has no lone surrogates."""
    with pytest.raises(InvalidArgumentError, match="is not a character"):
        KeyMapper({"a\ud800": "b"}).to_file(tmp_path / "map.toml")
