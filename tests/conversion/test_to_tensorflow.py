"""convert(to_tf=True) inverts to_torch: the same names, layouts and bytes, or an error."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_tfckpt as tfckpt


def build() -> nn.Module:
    layers = {
        "conv": nn.Conv2d(2, 4, (3, 5)),
        "bn": nn.BatchNorm2d(4),
        "fc": nn.Linear(8, 3),
        "norm": nn.LayerNorm(3),
        "emb": nn.Embedding(7, 3),
    }
    return nn.ModuleDict(layers)


RULES: Any = [
    ("net/conv/kernel", "conv.weight", "conv2d"),
    ("net/fc/kernel", "fc.weight", "dense"),
    ("net/emb/embeddings", "emb.weight", "same"),
    tfckpt.KeyRule("net/(.*)", r"\1", module=True),
]


def variables() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {
        "conv/kernel": (3, 5, 2, 4), "conv/bias": (4,), "bn/gamma": (4,), "bn/beta": (4,), "bn/moving_mean": (4,),
        "bn/moving_variance": (4,), "fc/kernel": (8, 3), "fc/bias": (3,), "norm/gamma": (3,), "norm/beta": (3,),
        "emb/embeddings": (7, 3),
    }  # fmt: skip
    return {f"net/{name}": torch.randn(shape) for name, shape in shapes.items()}


def contents(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}{ending}").read_bytes() for ending in (".index", ".data-00000-of-00001")]


@pytest.mark.parametrize("middle", ["net.safetensors", "net.pt", "net.npz"])
@pytest.mark.parametrize("with_module", [True, False], ids=["module", "rules"])
def test_there_and_back_gives_the_same_bytes(tmp_path: Path, middle: str, with_module: bool) -> None:
    """Index and data, with the module and without it."""
    check = build if with_module else None
    tfckpt.save_file(variables(), tmp_path / "first")
    tfckpt.convert(tmp_path / "first", tmp_path / middle, to_torch=True, map=RULES, check=check)
    report = tfckpt.convert(tmp_path / middle, tmp_path / "again", to_tf=True, map=RULES, check=check)
    assert contents(tmp_path / "again") == contents(tmp_path / "first")
    left_out = {row.name: row.reason for row in report.outcomes if row.new_name is None}
    counter = {"bn.num_batches_tracked": "a counter that TensorFlow does not have"}
    assert left_out == (counter if with_module else {})


def test_a_state_dict_of_torch(tmp_path: Path) -> None:
    """torch.save(model.state_dict()) becomes what save_model writes; so does a file with the optimizer's state."""
    model = build()
    tfckpt.save_model(model, tmp_path / "expected", naming="tf")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    optimizer = torch.optim.Adam(model.parameters())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}, tmp_path / "full.pt")
    for name in ("plain", "full"):
        tfckpt.convert(tmp_path / f"{name}.pt", tmp_path / name, to_tf=True, check=build)
        expected, found = tfckpt.load_file(tmp_path / "expected"), tfckpt.load_file(tmp_path / name)
        assert found.keys() == {key for key in expected if "num_batches" not in key}
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_joined_and_divided_tensors(tmp_path: Path) -> None:
    """Parts come back from a joined tensor, and the whole from its parts."""
    rules = [
        tfckpt.KeyRule(("q/kernel", "k/kernel"), "qk.weight", "dense"),
        tfckpt.KeyRule("kv/kernel", ("k.weight", "v.weight"), "dense", sizes=(2, 4)),
        tfckpt.KeyRule("b/bias", "b.bias", add=1.0),
    ]
    values = {"q/kernel": torch.randn(3, 2), "k/kernel": torch.randn(3, 2), "kv/kernel": torch.randn(5, 6)}
    tfckpt.save_file(values | {"b/bias": torch.tensor([0.5, 2.0])}, tmp_path / "first")
    tfckpt.convert(tmp_path / "first", tmp_path / "net.pt", to_torch=True, map=rules)
    shapes = {name: tuple(value.shape) for name, value in torch.load(tmp_path / "net.pt").items()}
    assert shapes == {"qk.weight": (4, 3), "k.weight": (2, 5), "v.weight": (4, 5), "b.bias": (2,)}
    tfckpt.convert(tmp_path / "net.pt", tmp_path / "again", to_tf=True, map=rules)
    assert contents(tmp_path / "again") == contents(tmp_path / "first")


@pytest.mark.parametrize(
    ("tensors", "rules", "message"),
    [
        ({"fc.weight": (4, 4), "fc.bias": (4,)}, [tfckpt.KeyRule("(.*)", r"\1", module=True)], "has no layout"),
        ({"x.weight": (4, 4)}, [tfckpt.KeyRule("(.*)", r"\1", "dense", module=True)], "a kernel or an embedding"),
        ({"fc.weight": (4, 4), "other": (2,)}, {"fc/kernel": ("fc.weight", "dense")}, "1 tensor of the file"),
        ({"fc.weight": (4, 4)}, {"fc/kernel": "fc.weight"}, "layout"),
        ({"a.b": (2,)}, [(r"(.*)/(.*)", lambda match: "a.b")], "cannot be inverted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_rules_do_not_tell_is_refused(tmp_path: Path, tensors: dict[str, Any], rules: Any, message: str) -> None:
    """Nothing is written."""
    torch.save({name: torch.randn(shape) for name, shape in tensors.items()}, tmp_path / "net.pt")
    with pytest.raises(tfckpt.CheckpointError, match=re.escape(message)):
        tfckpt.convert(tmp_path / "net.pt", tmp_path / "out", to_tf=True, map=rules)
    assert not (tmp_path / "out.index").exists()


def test_a_file_of_another_module(tmp_path: Path) -> None:
    """Missing names and other shapes are listed; an additional tensor is an error, or listed."""
    torch.save({**build().state_dict(), "fc.weight": torch.ones(2, 2)}, tmp_path / "shape.pt")
    torch.save({"fc.weight": torch.ones(3, 8)}, tmp_path / "missing.pt")
    torch.save({**build().state_dict(), "more": torch.ones(2)}, tmp_path / "more.pt")
    for name, message in (("shape", r"is \[2,2\], not \[3,8\]"), ("missing", "missing: "), ("more", '"more"')):
        with pytest.raises(tfckpt.FailedPreconditionError, match=message):
            tfckpt.convert(tmp_path / f"{name}.pt", tmp_path / "out", to_tf=True, check=build)
    report = tfckpt.convert(tmp_path / "more.pt", tmp_path / "out", to_tf=True, check=build, strict=False)
    assert {row.name: row.reason for row in report.outcomes}["more"] == "the module does not have it"
