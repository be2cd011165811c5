"""Rules for whole modules, joined and split variables and constants: load_model and save_model apply the same ones.

The oracle is torch: slices, transposes and concatenations of what was stored, written out in each test.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.models.rules.key_rules import KeyRule
from torch_tfckpt.models.saving import save_model
from torch_tfckpt.tensor_dict import load_file, save_file

Tensors = dict[str, torch.Tensor]


def tree(**parts: nn.Module) -> nn.Module:
    """A module with these children, whose names may contain dots."""
    root = nn.Module()
    for name, part in parts.items():
        *above, last = name.split("__")
        here = root
        for each in above:
            if not hasattr(here, each):
                here.add_module(each, nn.Module())
            here = getattr(here, each)
        here.add_module(last, part)
    return root


def both_ways(path: Path, model: nn.Module, stored: Tensors, mapper: Any, *, naming: str = "torch") -> Tensors:
    """Load, save with the same mapper, and check that the same bytes are stored. Returns the state_dict."""
    mapper = mapper if isinstance(mapper, KeyMapper) else KeyMapper(mapper)
    save_file(stored, path / "stored")
    report = load_model(model, path / "stored", mapper=mapper)
    assert report.unexpected == report.missing == report.unused_rules == []
    save_model(model, path / "again", naming=naming, mapper=mapper)
    again = load_file(path / "again")
    assert again.keys() == stored.keys()
    for key, value in stored.items():
        assert torch.equal(again[key], value), key
    mapper.to_file(path / "map.toml")
    assert KeyMapper.from_file(path / "map.toml") == mapper
    return model.state_dict()


def test_a_rule_for_modules(tmp_path: Path) -> None:
    """The leaves are translated by the kind of each module: Linear, LayerNorm, Embedding; others go by their names."""
    model = tree(
        encoder__layer__0__query=nn.Linear(3, 3),
        encoder__layer__0__norm=nn.LayerNorm(3),
        embed__words=nn.Embedding(5, 3),
    )
    stored = {
        "bert/encoder/layer_0/attention/self/query/kernel": torch.randn(3, 3),
        "bert/encoder/layer_0/attention/self/query/bias": torch.randn(3),
        "bert/encoder/layer_0/norm/gamma": torch.randn(3),
        "bert/encoder/layer_0/norm/beta": torch.randn(3),
        "bert/embeddings/word/embeddings": torch.randn(5, 3),
    }
    rules: list[Any] = [
        KeyRule(r"bert/encoder/layer_(\d+)/attention/self/query", r"encoder.layer.\1.query", module=True),
        KeyRule(r"bert/encoder/layer_(\d+)", r"encoder.layer.\1", module=True),
        KeyRule("bert/embeddings/word", "embed.words", module=True),
    ]
    state = both_ways(tmp_path, model, stored, rules)
    kernel = stored["bert/encoder/layer_0/attention/self/query/kernel"]
    assert torch.equal(state["encoder.layer.0.query.weight"], kernel.T)
    assert torch.equal(state["encoder.layer.0.norm.weight"], stored["bert/encoder/layer_0/norm/gamma"])


def test_a_rule_for_the_whole_model(tmp_path: Path) -> None:
    """The root is "."; a rule may also rename a prefix of every path, whose parts are then modules."""
    model = tree(a__fc=nn.Linear(2, 3), conv=nn.Conv2d(2, 3, 2))
    stored = {
        "net/a/fc/kernel": torch.randn(2, 3), "net/a/fc/bias": torch.randn(3),
        "net/conv/kernel": torch.randn(2, 2, 2, 3), "net/conv/bias": torch.randn(3),
    }  # fmt: skip
    for rule in (KeyRule("net", ".", module=True), KeyRule("net/(.*)", r"\1", module=True)):
        state = both_ways(tmp_path, model, stored, [rule])
        assert torch.equal(state["conv.weight"], stored["net/conv/kernel"].permute(3, 2, 0, 1))


def test_modules_whose_tensors_are_joined_or_parts(tmp_path: Path) -> None:
    """MultiheadAttention from query, key and value; both weights of an LSTM from the one kernel of TensorFlow 1."""
    model = tree(attention=nn.MultiheadAttention(4, 2))
    stored = {
        f"layer/mha/{part}/{leaf}": torch.randn(shape)
        for part in ("query", "key", "value")
        for leaf, shape in (("kernel", (4, 4)), ("bias", (4,)))
    } | {"layer/mha/attention_output/kernel": torch.randn(4, 4), "layer/mha/attention_output/bias": torch.randn(4)}
    state = both_ways(tmp_path, model, stored, [KeyRule("layer/mha", "attention", module=True)])
    parts = [stored[f"layer/mha/{part}/kernel"].T for part in ("query", "key", "value")]
    assert torch.equal(state["attention.in_proj_weight"], torch.cat(parts))

    lstm = tree(rnn=nn.LSTM(2, 3))
    cell = {"r/lstm_cell/kernel": torch.randn(5, 12), "r/lstm_cell/bias": torch.zeros(12)}
    save_file(cell, tmp_path / "cell")
    layout: dict[str, Any] = {"kind": "lstm_tf1", "forget_bias": 3.0}
    load_model(lstm, tmp_path / "cell", mapper=[KeyRule("r/lstm_cell", "rnn", layout, module=True)])
    i, j, f, o = cell["r/lstm_cell/kernel"].T.chunk(4)
    assert torch.equal(lstm.state_dict()["rnn.weight_hh_l0"], torch.cat([i, f, j, o])[:, 2:])
    assert lstm.state_dict()["rnn.bias_ih_l0"].tolist() == [0.0] * 3 + [3.0] * 3 + [0.0] * 6


def test_a_layout_of_a_rule_for_modules(tmp_path: Path) -> None:
    """It is for kernels, not for biases, forwards and backwards."""
    stored = {"dense/kernel": torch.randn(12, 2), "dense/bias": torch.randn(2)}
    layout: dict[str, Any] = {"kind": "dense_after_flatten", "height": 3, "width": 2, "channels": 2}
    state = both_ways(tmp_path, tree(fc=nn.Linear(12, 2)), stored, [KeyRule("dense", "fc", layout, module=True)])
    expected = stored["dense/kernel"].reshape(3, 2, 2, 2).permute(3, 2, 0, 1).reshape(2, 12)
    assert torch.equal(state["fc.weight"], expected)


def test_a_module_is_omitted_with_all_below_it(tmp_path: Path) -> None:
    """Auxiliary variables of other modules are ignored as always; what no module has is named in the report."""
    stored = {
        "pooler/dense/kernel": torch.ones(2, 2), "pooler/dense/kernel/adam_m": torch.ones(2, 2), "step": torch.ones(()),
        "fc/kernel": torch.ones(2, 2), "fc/kernel/adam_m": torch.ones(2, 2),
    }  # fmt: skip
    save_file(stored, tmp_path / "m")
    model = tree(head=nn.Linear(2, 2, bias=False))
    rules: list[Any] = [KeyRule("pooler", None, module=True), KeyRule("fc", "head", module=True), ("step", None)]
    report = load_model(model, tmp_path / "m", mapper=rules)
    assert report.sources == {"head.weight": "fc/kernel"} and report.unexpected == []
    with pytest.raises(NotFoundError, match=r'"?fc/kernel"?.*mapped to "haed.kernel", which the module does not have'):
        load_model(model, tmp_path / "m", mapper=[*rules[::2], KeyRule("fc", "haed", module=True)])


def test_variables_are_joined(tmp_path: Path) -> None:
    """In the order of the patterns, each with its layout, along an axis of the module."""
    model = tree(layer__3__attn=nn.Linear(2, 9, bias=False))
    stored = {f"h3/{part}/kernel": torch.randn(2, 3) for part in "qkv"}
    patterns = tuple(rf"h(\d+)/{part}/kernel" for part in "qkv")
    state = both_ways(tmp_path, model, stored, [KeyRule(patterns, r"layer.\1.attn.weight")])
    assert torch.equal(state["layer.3.attn.weight"], torch.cat([stored[f"h3/{part}/kernel"].T for part in "qkv"]))
    stored = {"a": torch.randn(2, 4), "b": torch.randn(2, 1)}
    model.weight = nn.Parameter(torch.zeros(2, 5))
    del model.layer
    state = both_ways(tmp_path, model, stored, [KeyRule(("a", "b"), "weight", "same", axis=1, sizes=(4, 1))])
    assert torch.equal(state["weight"], torch.cat([stored["a"], stored["b"]], 1))


def test_parts_are_joined_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """One pattern for 16 variables; how many there are is not determined backwards."""
    stored = {f"emb/part_{number}": torch.full((2, 3), float(number)) for number in range(16)}
    save_file(stored, tmp_path / "m")
    model = tree(emb=nn.Embedding(32, 3))
    mapper = KeyMapper([KeyRule((r"emb/part_\d+",), "emb.weight", "same")])
    load_model(model, tmp_path / "m", mapper=mapper)
    assert model.state_dict()["emb.weight"][:, 0].tolist() == [float(row // 2) for row in range(32)]
    with pytest.raises(UnimplementedError, match="cannot be inverted"):
        save_model(model, tmp_path / "n", mapper=mapper)


def test_a_variable_is_split(tmp_path: Path) -> None:
    """With the sizes of the module, or of the rule; for names and for patterns."""
    model = tree(h__0__q=nn.Linear(2, 4), h__0__k=nn.Linear(2, 2), h__0__v=nn.Linear(2, 2))
    stored = {"block0/qkv/kernel": torch.randn(2, 8), "block0/qkv/bias": torch.randn(8)}
    targets = [rf"h.\1.{part}" for part in "qkv"]
    rules: list[Any] = [
        KeyRule(r"block(\d)/qkv/kernel", [f"{each}.weight" for each in targets], "dense"),
        KeyRule(r"block(\d)/qkv/bias", [f"{each}.bias" for each in targets], sizes=[4, 2, 2]),
    ]
    state = both_ways(tmp_path, model, stored, rules)
    assert torch.equal(state["h.0.k.weight"], stored["block0/qkv/kernel"].T[4:6])
    names = {f"block0/qkv/{leaf}": [f"h.0.{part}.{own}" for part in "qkv"] for leaf, own in
             (("kernel", "weight"), ("bias", "bias"))}  # fmt: skip
    assert both_ways(tmp_path, model, stored, names).keys() == state.keys()


def test_constants_are_filled_in_and_added(tmp_path: Path) -> None:
    """A filled tensor is not stored, and must have that value to be saved."""
    model = tree(fc=nn.Linear(2, 2), norm=nn.LayerNorm(2))
    stored = {"k": torch.randn(2, 2), "b": torch.tensor([1.0, 4.0]), "beta": torch.ones(2)}
    rules: list[Any] = [
        KeyRule("k", "fc.weight", "dense"), KeyRule("b", "fc.bias", add=2.0), KeyRule("beta", "norm.bias"),
        KeyRule(None, "norm.weight", fill=0.5),
    ]  # fmt: skip
    state = both_ways(tmp_path, model, stored, rules)
    assert state["fc.bias"].tolist() == [3.0, 6.0] and state["norm.weight"].tolist() == [0.5, 0.5]
    with torch.no_grad():
        model.get_parameter("norm.weight")[0] = 1.0
    with pytest.raises(InvalidArgumentError, match=r'"norm.weight" has values other than 0\.5, which a rule fills in'):
        save_model(model, tmp_path / "n", mapper=rules)


@pytest.mark.parametrize("names", ["keys", "objects", "variables"])
def test_rules_apply_to_all_names_of_a_variable(tmp_path: Path, names: str) -> None:
    """Keys, paths of objects and TensorFlow's names of variables."""
    from torch_tfckpt.objects.checkpoint import Checkpoint

    holder = nn.Module()
    holder.add_module("body", nn.Linear(2, 2))
    path = Checkpoint(model=holder).write(str(tmp_path / "objects"))
    rule = {"keys": r"model/body", "objects": r"model\.body", "variables": "model/body"}[names]
    model = tree(fc=nn.Linear(2, 2))
    load_model(model, path, mapper=[KeyRule(rule, "fc", module=True), (".*save_counter.*", None)])
    assert torch.equal(model.state_dict()["fc.weight"], holder.state_dict()["body.weight"])


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ([KeyRule(("a", "x"), "w", "same")], 'mapped from "x", which is not stored'),
        ([KeyRule((".", "b"), "w", "same")], r'"a" and "b" both match "\."'),
        ([KeyRule(("a", "b"), "w", "same"), ("c", "w", "same")], '"a" and "c" are both mapped to "w"'),
        ([KeyRule(("a", "b"), "w", "same", sizes=(1, 3))], r"but the rule gives it size 1 along axis 0"),
        ([KeyRule(("a", "b"), "w", "same", axis=4)], "size mismatch for w"),
        ([KeyRule("c", ("w", "z"), "same")], '"c".*mapped to "z", which the module does not have'),
        ([KeyRule("c", ("w", "u"), "same", sizes=(3, 3))], "size mismatch for w"),
        ([KeyRule("c", ("w", "u"), "same", axis=3)], r"cannot be split into 2 equal parts along axis 3"),
        ([KeyRule("n", "w", "same", add=1.0)], '"n" is not floating-point, so a rule cannot add to it'),
        ([KeyRule(("a", "b"), "w")], r"the layout of \"w\" of a Module is unknown"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(tmp_path: Path, rules: list[KeyRule], text: str) -> None:
    """It is named before the module changes."""
    model = nn.Module()
    model.w, model.u = nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(2, 2))
    stored = {"a": torch.ones(2, 2), "b": torch.ones(2, 2), "c": torch.ones(4, 2)}
    save_file({**stored, "n": torch.ones(4, 2, dtype=torch.int64)}, tmp_path / "m")
    with pytest.raises(CheckpointError, match=text):
        load_model(model, tmp_path / "m", mapper=rules)
    assert not model.w.any()


@pytest.mark.parametrize(
    ("rules", "keys"),
    [
        ([("(.*)/kernel", r"\1.weight"), ("(.*)/bias", r"\1.bias")], {"fc/kernel", "fc/bias", "n/bias", "n/kernel"}),
        # The kind of the module decides between two rules for one target.
        (
            [("(.*)/kernel", r"\1.weight"), ("(.*)/gamma", r"\1.weight"), (r"(\w+)/bias", r"\1.bias")],
            {"fc/kernel", "n/gamma", "fc/bias", "n/bias"},
        ),
        ([(r"x\.(?P<l>f[abc]|n)/k", r"\g<l>.weight", "same"), ("(.*)/b", r"\1.bias")],
         {"x.fc/k", "x.n/k", "fc/b", "n/b"}),
        ([("fc/kernel", "fc.weight"), ("n/(.*)", None)], {"fc/kernel", "fc.bias", "n.weight", "n.bias"}),
        ([("(?=fc)(.*)/k", r"\1.weight", "same"), ("(?=n/)(.*)/g", r"\1.weight")],
         {"fc/k", "fc.bias", "n/g", "n.bias"}),
    ],
)  # fmt: skip
def test_patterns_backwards(tmp_path: Path, rules: Any, keys: set[str]) -> None:
    """A pattern is inverted if that gives exactly one name, and the rules lead from it back to the tensor."""
    model = tree(fc=nn.Linear(2, 2), n=nn.LayerNorm(2))
    save_model(model, tmp_path / "m", mapper=rules)
    assert load_file(tmp_path / "m").keys() == keys
    other = tree(fc=nn.Linear(2, 2), n=nn.LayerNorm(2))
    load_model(other, tmp_path / "m", mapper=rules)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_numbers_with_leading_zeros(tmp_path: Path) -> None:
    """block_007 and block_011: the pattern says how many digits there are, so the zeros are restored."""
    model = nn.ModuleDict({"block": nn.ModuleList(nn.LayerNorm(2) for _ in range(12))})
    rules = [
        (rf"block_(?=\d{{3}}/)0*(\d+)/{leaf}", rf"block.\1.{name}") for leaf, name in (("g", "weight"), ("b", "bias"))
    ]
    save_model(model, tmp_path / "m", mapper=rules)
    assert load_file(tmp_path / "m").keys() == {f"block_{number:03}/{leaf}" for number in range(12) for leaf in "gb"}
    other = nn.ModuleDict({"block": nn.ModuleList(nn.LayerNorm(2) for _ in range(12))})
    load_model(other, tmp_path / "m", mapper=rules)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    with pytest.raises(UnimplementedError, match="cannot be inverted"):  # block_7 or block_07?
        save_model(model, tmp_path / "n", mapper=[(r"block_0*(\d+)/(.*)", r"block.\1.\2")])


@pytest.mark.parametrize(
    "rule",
    [
        (r"a\d/(.*)", r"\1"), ("(.*)/x?", r"\1"), ("(?i)a/(.*)", r"\1"), ("a|(.*)", r"\1"), ("(a/)?(.*)", r"\1\2"),
        (r"(\w)(?:/|x)(.*)", r"\1\2"), ("(.*)/(.*)", r"\1.\2"), (r"(.)\1/(.*)", r"\1\2"), (r"(?!x)(.*)", r"\1"),
        (".*", lambda match: match[0]), (r"((a)/.*)", r"\1\2"),
    ],
)  # fmt: skip
def test_what_is_not_determined_is_not_guessed(tmp_path: Path, rule: Any) -> None:
    """Nothing is written then. A rule whose target is certainly another tensor does not matter."""
    model = nn.Module()
    model.add_module("fc", tree(a=nn.Linear(2, 2, bias=False)))
    with pytest.raises(UnimplementedError, match=r"cannot be inverted|map both"):
        save_model(model, tmp_path / "m", mapper=[rule])
    assert list(tmp_path.iterdir()) == []
    save_model(model, tmp_path / "m", mapper=[(r"x\d/(.*)", r"other.\1"), (".*/adam_.", None)])
    assert list(load_file(tmp_path / "m")) == ["fc.a.weight"]


def test_a_rule_for_one_of_the_tensors_of_a_variable(tmp_path: Path) -> None:
    """The others follow, in both directions: both weights of an LSTM cell of TensorFlow 1, both biases of a GRU."""
    stored = {"cell/kernel": torch.randn(5, 12), "cell/bias": torch.randn(12)}
    rules = {"cell/kernel": ("rnn.weight_hh_l0", "lstm_tf1"), "cell/bias": ("rnn.bias_ih_l0", "lstm_tf1")}
    save_file(stored, tmp_path / "m")
    model = tree(rnn=nn.LSTM(2, 3))
    load_model(model, tmp_path / "m", mapper=rules)
    save_model(model, tmp_path / "n", mapper={**rules})
    again = load_file(tmp_path / "n")
    assert torch.equal(again["cell/kernel"], stored["cell/kernel"])
    torch.testing.assert_close(again["cell/bias"], stored["cell/bias"])  # forget_bias was added and subtracted
    gru = {"g/kernel": torch.randn(2, 9), "g/recurrent_kernel": torch.randn(3, 9), "g/bias": torch.randn(2, 9)}
    names = {"g/kernel": "rnn.weight_ih_l0", "g/recurrent_kernel": "rnn.weight_hh_l0", "g/bias": "rnn.bias_hh_l0"}
    both_ways(tmp_path, tree(rnn=nn.GRU(2, 3)), gru, names)


def test_a_gru_is_saved_by_tensorflow_s_names(tmp_path: Path) -> None:
    """Without rules, too: both biases are the rows of one variable."""
    model, other = tree(rnn=nn.GRU(2, 3, bidirectional=True)), tree(rnn=nn.GRU(2, 3, bidirectional=True))
    save_model(model, tmp_path / "m", naming="tf")
    load_model(other, tmp_path / "m")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
