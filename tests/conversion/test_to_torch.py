"""convert(to_torch=True) writes what load_model would load, or nothing; every stored tensor is accounted for."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.models.rules.key_mapper import Rules


class Net(nn.Module):
    """One layer of each kind whose layout differs, with odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, (3, 5))
        self.dw = nn.Conv2d(4, 8, 3, groups=4, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)
        self.emb = nn.Embedding(7, 3)
        self.rnn = nn.LSTM(3, 2)


def stored() -> dict[str, Any]:
    """TensorFlow's variables of Net; the BatchNorm has no gamma, and the Linear has slots and an average."""
    torch.manual_seed(0)
    shapes = {
        "conv/kernel": (3, 5, 2, 4), "conv/bias": (4,), "dw/depthwise_kernel": (3, 3, 4, 2), "bn/beta": (8,),
        "bn/moving_mean": (8,), "bn/moving_variance": (8,), "fc/kernel": (8, 3), "fc/bias": (3,),
        "emb/embeddings": (7, 3), "rnn/lstm_cell/kernel": (5, 8), "rnn/lstm_cell/bias": (8,),
        "fc/kernel/ExponentialMovingAverage": (8, 3), "fc/kernel/Adam": (8, 3), "fc/kernel/Adam_1": (8, 3),
    }  # fmt: skip
    values: dict[str, Any] = {name: torch.randn(shape) for name, shape in shapes.items()}
    return values | {"global_step": torch.tensor(7), "beta1_power": torch.tensor(0.5), "labels": ["cat", "dog"]}


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tfckpt.save_file(stored(), tmp_path / "net.ckpt-7")


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
@pytest.mark.parametrize("ema", ["ignore", "prefer"])
def test_the_file_is_what_load_model_loads(checkpoint: str, tmp_path: Path, name: str, ema: Any) -> None:
    """With a module; torch's own loaders read it."""
    report = tfckpt.convert(checkpoint, tmp_path / name, to_torch=True, check=Net, ema=ema)
    model = Net()
    tfckpt.load_model(model, checkpoint, ema=ema)
    found = read(tmp_path / name)
    expected = model.state_dict()
    expected["bn.num_batches_tracked"] = torch.tensor(0)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert report.filled["bn.weight"] == 1.0
    assert report.checked


def test_every_stored_tensor_has_an_outcome(checkpoint: str, tmp_path: Path) -> None:
    """A new name with the transform and both shapes, or a reason."""
    report = tfckpt.convert(checkpoint, tmp_path / "net.pt", to_torch=True, check=Net)
    assert {outcome.name for outcome in report.outcomes} == stored().keys()
    rows = {(row.name, row.new_name): (row.transform, row.shape, row.new_shape) for row in report.outcomes}
    assert rows["fc/kernel", "fc.weight"] == ("dense", (8, 3), (3, 8))
    assert rows["rnn/lstm_cell/kernel", "rnn.weight_hh_l0"] == ("lstm_tf1, 3:5 of axis 1", (5, 8), (8, 2))
    reasons = {row.name: row.reason for row in report.outcomes if row.new_name is None}
    assert reasons == {
        "fc/kernel/ExponentialMovingAverage": "a moving average",
        "fc/kernel/Adam": "optimizer state",
        "fc/kernel/Adam_1": "optimizer state",
        "beta1_power": "optimizer state",
        "global_step": "a counter",
        "labels": "not a weight: a string, a metric or auxiliary state",
    }
    assert any(remark.startswith("averages_not_used") for remark in report.remarks)
    assert any(remark.startswith("batch_norm_epsilon") for remark in report.remarks)


def test_the_report_file(checkpoint: str, tmp_path: Path) -> None:
    """JSON with all outcomes and remarks."""
    report = tfckpt.convert(checkpoint, tmp_path / "net.pt", to_torch=True, check=Net, report=tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in found["outcomes"]] == [row.name for row in report.outcomes]
    assert found["remarks"] == report.remarks


RULES: Rules = [
    ("conv/kernel", "conv.weight", "conv2d"),
    ("dw/depthwise_kernel", "dw.weight", "depthwise"),
    ("fc/kernel", "fc.weight", "dense"),
    tfckpt.KeyRule("rnn/.*", None),
    tfckpt.KeyRule("(.*)", r"\1", module=True),
]


def test_rules_with_layouts_need_no_module(checkpoint: str, tmp_path: Path) -> None:
    """Names of variables tell the rest; auxiliary variables are left out, whatever rules match."""
    report = tfckpt.convert(checkpoint, tmp_path / "net.pt", to_torch=True, map=RULES)
    model = Net()
    tfckpt.load_model(model, checkpoint, ema="ignore")
    found, expected = read(tmp_path / "net.pt"), model.state_dict()
    assert found.keys() == {key for key in expected if not key.startswith(("rnn.", "bn.weight", "bn.num"))}
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert {outcome.name for outcome in report.outcomes} == stored().keys()
    assert any("moving averages of 1 variable" in remark for remark in report.remarks)


@pytest.mark.parametrize("kernel", [(4, 4), (3, 3, 4, 4), (3, 4, 4)])
def test_kernels_without_a_layout_are_refused(tmp_path: Path, kernel: tuple[int, ...]) -> None:
    """Square ones would load in silence. The proposed rules can be pasted, and work."""
    values = {f"layer_{number}/kernel": torch.randn(kernel) for number in range(3)}
    prefix = tfckpt.save_file(values, tmp_path / "net.ckpt")
    with pytest.raises(tfckpt.InvalidArgumentError, match="rules map 3 variables to torch's names") as caught:
        tfckpt.convert(prefix, tmp_path / "net.pt", to_torch=True, map=[(r"layer_(\d)/kernel", r"net.\1.weight")])
    assert not (tmp_path / "net.pt").exists()
    text = str(caught.value)
    (tmp_path / "map.toml").write_text(text[text.index("\n") :])
    tfckpt.convert(prefix, tmp_path / "net.pt", to_torch=True, map=tmp_path / "map.toml")
    layout = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}[len(kernel)]
    found = read(tmp_path / "net.pt")
    assert torch.equal(found["net.2.weight"], values["layer_2/kernel"].permute(layout))


def test_rules_of_several_ranks_are_completed_one_by_one(tmp_path: Path) -> None:
    """One rule cannot give a layout for kernels of 2 and of 4 axes."""
    prefix = tfckpt.save_file({"a/kernel": torch.randn(2, 3), "b/kernel": torch.randn(3, 3, 2, 4)}, tmp_path / "net")
    with pytest.raises(tfckpt.InvalidArgumentError) as caught:
        tfckpt.convert(prefix, tmp_path / "net.pt", to_torch=True, map=[("(.*)/kernel", r"\1.weight")])
    text = str(caught.value)
    (tmp_path / "map.toml").write_text(text[text.index("\n") :])
    tfckpt.convert(prefix, tmp_path / "net.pt", to_torch=True, map=tmp_path / "map.toml")
    shapes = {name: tuple(value.shape) for name, value in read(tmp_path / "net.pt").items()}
    assert shapes == {"a.weight": (3, 2), "b.weight": (4, 2, 3, 3)}


@pytest.mark.parametrize(
    ("values", "rules", "message"),
    [
        ({"q/kernel": (2, 3, 6)}, {"q/kernel": ("q.weight", "dense")}, "fits in 2 ways"),
        ({"l/bias": (8,)}, {"l/bias": "l.bias_ih_l0"}, "Only the module determines how such a tensor is made"),
        ({"n/g": (3,)}, {"n/g": "n.weight_g"}, "Only the module determines how such a tensor is made"),
        ({"d/depthwise_kernel": (3, 3, 4, 1)}, [tfckpt.KeyRule("(.)", r"\1", "conv2d", module=True)], "depthwise"),
        ({"t/table": (4, 4)}, {"t/table": "t.weight"}, 'layout = "dense"'),
        ({"a/gamma": (3, 2)}, {"a/gamma": "a.weight"}, "without a layout"),
        ({"x/bias": (2,), "y/bias": (2,)}, [("./bias", "b.bias")], "are both mapped to"),
        ({"x/bias": (2,), "y/bias": (2,)}, {"x/bias": "a", "y/bias": "a.b"}, "cannot be a tensor"),
        ({"x/bias": (2,)}, [("x/bias", "x.bias"), tfckpt.KeyRule(None, "x.weight", fill=1.0)], "only the module"),
    ],
    ids=str,
)  # fmt: skip
def test_what_only_a_module_tells_is_asked_for(
    tmp_path: Path, values: dict[str, tuple[int, ...]], rules: Any, message: str
) -> None:
    """Nothing is written."""
    prefix = tfckpt.save_file({name: torch.randn(shape) for name, shape in values.items()}, tmp_path / "net")
    with pytest.raises(tfckpt.CheckpointError, match=re.escape(message)):
        tfckpt.convert(prefix, tmp_path / "net.pt", to_torch=True, map=rules)
    assert not (tmp_path / "net.pt").exists()


def test_weights_without_a_rule_are_an_error_or_listed(checkpoint: str, tmp_path: Path) -> None:
    """Never left out in silence."""
    rules = {"fc/kernel": ("fc.weight", "dense"), "fc/bias": "fc.bias"}
    with pytest.raises(tfckpt.FailedPreconditionError, match="9 weights would be lost"):
        tfckpt.convert(checkpoint, tmp_path / "fc.pt", to_torch=True, map=rules)
    report = tfckpt.convert(checkpoint, tmp_path / "fc.pt", to_torch=True, map=rules, strict=False)
    assert read(tmp_path / "fc.pt").keys() == {"fc.weight", "fc.bias"}
    assert sum(outcome.reason == "no rule matches it" for outcome in report.outcomes) == 9


def test_excluded_tensors_are_explained(checkpoint: str, tmp_path: Path) -> None:
    """`exclude` takes names in the checkpoint."""
    report = tfckpt.convert(checkpoint, tmp_path / "net.pt", to_torch=True, map=RULES, exclude=["^emb/"])
    assert "emb.weight" not in read(tmp_path / "net.pt")
    [row] = [row for row in report.outcomes if row.name == "emb/embeddings"]
    assert row.reason == "left out by include and exclude"


def wrong_shape() -> nn.Module:
    model = Net()
    model.fc = nn.Linear(8, 4)
    return model


def additional_layer() -> nn.Module:
    model = Net()
    model.more = nn.Linear(1, 1)
    return model


class Strange(Net):
    """Refuses every state_dict."""

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("not today")


@pytest.mark.parametrize("factory", [wrong_shape, additional_layer, Strange], ids=lambda each: each.__name__)
def test_nothing_is_published_that_does_not_fit(
    checkpoint: str, tmp_path: Path, factory: Callable[[], nn.Module]
) -> None:
    """An earlier target stays."""
    target = tmp_path / "net.pt"
    target.write_bytes(b"earlier")
    with pytest.raises(tfckpt.FailedPreconditionError, match="Nothing was"):
        tfckpt.convert(checkpoint, target, to_torch=True, check=factory)
    assert target.read_bytes() == b"earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"net.pt", Path(checkpoint).name + ".index"} | {
        path.name for path in tmp_path.glob("*.data-*")
    }


def test_a_module_in_use_is_not_changed(checkpoint: str, tmp_path: Path) -> None:
    """check= takes a module with values, too."""
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tfckpt.convert(checkpoint, tmp_path / "net.pt", to_torch=True, check=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tied_weights_have_all_their_names(tmp_path: Path) -> None:
    """load_state_dict(strict=True) asks for each."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.emb.weight

    value = torch.randn(5, 3)
    prefix = tfckpt.save_file({"emb/embeddings": value}, tmp_path / "tied")
    tfckpt.convert(prefix, tmp_path / "tied.safetensors", to_torch=True, check=Tied)
    found = read(tmp_path / "tied.safetensors")
    assert found.keys() == {"emb.weight", "out.weight"}
    assert torch.equal(found["out.weight"], value)


def test_dtype_and_shards(checkpoint: str, tmp_path: Path) -> None:
    """Turned tensors are cast and divided among files like any others."""
    tfckpt.convert(checkpoint, tmp_path / "net.safetensors", to_torch=True, check=Net, dtype="bf16", max_shard_size=300)
    index = json.loads((tmp_path / "net.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    shard = index["weight_map"]["fc.weight"]
    value = safetensors.torch.load_file(tmp_path / shard)["fc.weight"]
    assert torch.equal(value, stored()["fc/kernel"].T.to(torch.bfloat16))


def test_optimizer_state(tmp_path: Path) -> None:
    """As load_model gives it to the optimizer; the slots of a kernel are transposed like the kernel."""
    names = {"kernel": (3, 2), "bias": (2,)}
    values: dict[str, Any] = {f"fc/{name}": torch.randn(shape) for name, shape in names.items()}
    values |= {f"fc/{name}/Adam": torch.randn(shape) for name, shape in names.items()}
    values |= {f"fc/{name}/Adam_1": torch.rand(shape) for name, shape in names.items()}
    prefix = tfckpt.save_file(values | {"global_step": torch.tensor(7)}, tmp_path / "net")

    def build() -> nn.Module:
        return nn.ModuleDict({"fc": nn.Linear(3, 2)})

    report = tfckpt.convert(prefix, tmp_path / "net.pt", to_torch=True, check=build, optimizer=True)
    checkpoint = torch.load(tmp_path / "net.pt", weights_only=True)
    model, theirs = build(), build()
    optimizer, expected = torch.optim.Adam(model.parameters()), torch.optim.Adam(theirs.parameters())
    model.load_state_dict(checkpoint["model"], strict=True)
    optimizer.load_state_dict(checkpoint["optimizer"])
    tfckpt.load_model(theirs, prefix, optimizer=expected)
    found, wanted = optimizer.state_dict()["state"], expected.state_dict()["state"]
    assert found.keys() == wanted.keys()
    for number, state in wanted.items():
        assert all(torch.equal(found[number][name], value) for name, value in state.items())
    assert torch.equal(found[0]["exp_avg"], values["fc/kernel/Adam"].T)
    assert all(row.new_name for row in report.outcomes if "Adam" in row.name)
    assert any("Adam or AdamW" in remark for remark in report.remarks)


def test_optimizer_state_that_cannot_be_written(checkpoint: str, tmp_path: Path) -> None:
    """No place in the file, no order of parameters, or not stored for all of them."""
    for target, options, message in (
        ("net.safetensors", {"check": Net}, "cannot store optimizer state"),
        ("net.pt", {"map": RULES}, "optimizer=True needs a module"),
        ("net.pt", {"check": Net}, "no state"),
    ):
        with pytest.raises(tfckpt.CheckpointError, match=message):
            tfckpt.convert(checkpoint, tmp_path / target, to_torch=True, optimizer=True, **options)
        assert not (tmp_path / target).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to_torch": True}, "needs rules for names and layouts"),
        ({"check": Net}, "`check` has no effect"),
        ({"preset": "bert"}, "`preset` has no effect"),
        ({"to_torch": True, "to_tf": True}, "are mutually exclusive"),
        ({"to_torch": True, "preset": "bert", "map": {}}, "are mutually exclusive"),
        ({"to_torch": True, "preset": "brt"}, 'Closest: "bert"'),
        ({"to_torch": True, "map": "no_such_map.toml"}, "no such file"),
        ({"to_torch": True, "check": Net, "ema": "always"}, "ema='always'"),
        ({"to_torch": True, "check": Net, "rename": [("a", "b")]}, "cannot be combined with to_torch"),
        ({"to_torch": True, "check": Net, "skip_damaged": True}, "cannot be combined with to_torch"),
        ({"to_torch": True, "check": Net, "to": "tf"}, "to_torch does not write"),
        ({"to_torch": True, "check": "no_such_module_here:build"}, "no_such_module_here"),
        ({"to_torch": True, "check": lambda: 3}, "returned a int"),
        ({"to_torch": True, "check": 3}, "pass a module, a function"),
        ({"names": "full"}, "names='full'"),
        ({"scope": "net"}, "`scope` has no effect"),
        ({"to_torch": True, "map": {}, "scope": "net"}, "`scope` is for the rules of a `preset` or of a map file"),
        ({"to_torch": True, "preset": "resnet", "scope": "vgg_16"}, "no rule for the scope"),
        ({"to_tf": True, "infer": Net, "to": "tf"}, "Find them in the original checkpoint with `tfckpt map`"),
        ({"to_tf": True, "check": Net, "optimizer": True, "to": "tf"}, "call save_model(model, prefix, optimizer="),
        ({"to_tf": True, "check": Net, "ema": "prefer", "to": "tf"}, "`ema` cannot be combined with to_tf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments(checkpoint: str, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Each says what to pass instead."""
    target = tmp_path / ("out" if options.get("to") == "tf" else "net.pt")
    with pytest.raises(tfckpt.CheckpointError, match=re.escape(message)):
        tfckpt.convert(checkpoint, target, **options)
    assert not target.exists()


@pytest.mark.parametrize("middle", ["net.npz", "net.safetensors"])
def test_files_with_tensorflows_names_are_turned_like_checkpoints(checkpoint: str, tmp_path: Path, middle: str) -> None:
    """A file of plain `convert`, turned later."""
    tfckpt.convert(checkpoint, tmp_path / middle)
    tfckpt.convert(tmp_path / middle, tmp_path / "late.pt", to_torch=True, check=Net)
    tfckpt.convert(checkpoint, tmp_path / "direct.pt", to_torch=True, check=Net)
    late, direct = read(tmp_path / "late.pt"), read(tmp_path / "direct.pt")
    assert late.keys() == direct.keys()
    assert all(torch.equal(late[name], value) for name, value in direct.items())


def test_a_plain_conversion_says_that_layouts_are_tensorflows(checkpoint: str, tmp_path: Path) -> None:
    """Once; with a stronger remark if kernels get torch's names; not for tensors that torch stored, nor for a copy."""
    report = tfckpt.convert(checkpoint, tmp_path / "net.safetensors")
    assert sum("layouts are still TensorFlow's" in remark for remark in report.remarks) == 1
    assert "note: names and layouts are still TensorFlow's" in str(report)
    report = tfckpt.convert(checkpoint, tmp_path / "net.safetensors", rename=[("kernel$", "weight"), ("/", ".")])
    assert '"conv.weight" was "conv/kernel" [3,5,2,4]' in report.remarks[0]
    assert tfckpt.convert(checkpoint, tmp_path / "copy", to="tf").remarks == []
    saved = tfckpt.save_model(Net(), tmp_path / "torch")
    assert tfckpt.convert(saved, tmp_path / "torch.safetensors").remarks == []
