"""Hints of load_model: what a newcomer reads if names, shapes or layouts do not fit, and that the fix works."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt import InvalidArgumentError, NotFoundError, load_model

FIX = "Map names with mapper=, or pass strict=False to load the tensors that fit"


def module(**layers: nn.Module) -> nn.Module:
    """A module with these layers."""
    return nn.ModuleDict(layers)


def last_lines(error: pytest.ExceptionInfo[tfckpt.CheckpointError], count: int) -> list[str]:
    """Return the last lines of a message."""
    return [line.strip() for line in str(error.value).splitlines()[-count:]]


@pytest.mark.parametrize(
    ("name", "shape", "layer", "layout"),
    [
        ("fc.weight", (3, 2), nn.Linear(3, 2), "dense"),
        ("fc.weight", (3, 3, 1, 8), nn.Conv2d(1, 8, 3), "conv2d"),
        ("fc/kernel", (2, 3), nn.Linear(3, 2), "same"),
        ("fc/kernel", (8, 1, 3, 3), nn.Conv2d(1, 8, 3), "same"),
    ],
)
def test_a_kernel_with_the_other_order_of_axes(
    tmp_path: Path, name: str, shape: tuple[int, ...], layer: nn.Module, layout: str
) -> None:
    """The hint names the layout, and the rule in it loads the tensor."""
    value = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    path = tfckpt.save_file({name: value, "fc.bias": torch.zeros(8 if len(shape) == 4 else 2)}, tmp_path / "m")
    with pytest.raises(InvalidArgumentError) as raised:
        load_model(module(fc=layer), path)
    order = "in torch's order, not in TensorFlow's" if layout == "same" else "in TensorFlow's order"
    assert last_lines(raised, 2) == [
        f'"fc.weight": the shape fits if the axes are stored {order}. If they are, name the layout: '
        f'mapper={{"{name}": ("fc.weight", "{layout}")}}',
        f"Nothing was loaded. {FIX}",
    ]
    assert load_model(module(fc=layer), path, mapper={name: ("fc.weight", layout)}).remarks == []
    assert sorted(layer.state_dict()["weight"].flatten().tolist()) == value.flatten().tolist()


def test_many_kernels_share_one_hint(tmp_path: Path) -> None:
    """A model of a thousand layers fits a screen; shapes that fit no layout give no hint."""
    names = [f"fc{number}" for number in range(5)]
    stored = {f"{name}.weight": torch.ones(3, 2) for name in names} | {"odd.weight": torch.ones(7, 5)}
    layers = {name: nn.Linear(3, 2, bias=False) for name in names} | {"odd": nn.Linear(3, 2, bias=False)}
    report = load_model(module(**layers), tfckpt.save_file(stored, tmp_path / "m"), strict=False)
    assert len(report.mismatched) == 6
    assert [remark.partition(":")[0] for remark in report.remarks] == ['"fc0.weight" and 4 more']


@pytest.mark.parametrize("stored", ["encoder/dense", "model/encoder/dense"])
@pytest.mark.parametrize("wrong", [{"encodr": "dense"}, {"encoder": "dens"}], ids=["outer", "inner"])
def test_a_typo_in_a_name_of_the_module(tmp_path: Path, stored: str, wrong: dict[str, str]) -> None:
    """Each missing name is followed by the closest stored one, also where TensorFlow's name is "kernel"."""
    path = tfckpt.save_file({f"{stored}/kernel": torch.ones(3, 2), f"{stored}/bias": torch.ones(2)}, tmp_path / "m")
    [(outer, inner)] = wrong.items()
    with pytest.raises(NotFoundError) as raised:
        load_model(module(**{outer: module(**{inner: nn.Linear(3, 2)})}), path)
    if stored.startswith("encoder"):
        assert f'"{outer}.{inner}.weight" (Closest: "{stored}/kernel")' in str(raised.value)
    assert f'"{outer}.{inner}.bias" (Closest: "{stored}/bias")' in str(raised.value)


def test_a_typo_with_an_object_based_checkpoint(tmp_path: Path) -> None:
    """The hint shows a name that a mapper takes, without the suffix of the key."""
    layer = tfckpt.Checkpoint(kernel=torch.ones(3, 2))
    path = tfckpt.Checkpoint(classifier=layer).save(tmp_path / "m")
    model = module(clasifier=nn.Linear(3, 2, bias=False))
    with pytest.raises(NotFoundError, match=r'"clasifier\.weight" \(Closest: "classifier/kernel"\)'):
        load_model(model, path)
    load_model(model, path, mapper={"classifier/kernel": "clasifier.weight"})
    assert model["clasifier"].weight.eq(1).all()  # type: ignore[index]


def test_only_unexpected_names(tmp_path: Path) -> None:
    """If nothing is missing, the last line says what to pass; both ways load the module."""
    path = tfckpt.save_file(
        {"a/kernel": torch.ones(3, 2), "a/bias": torch.ones(2), "b/x": torch.ones(1)}, tmp_path / "m"
    )
    model = module(a=nn.Linear(3, 2))
    with pytest.raises(InvalidArgumentError) as raised:
        load_model(model, path)
    assert last_lines(raised, 1) == [
        "Nothing was loaded. Every tensor of the module is stored, but the checkpoint has 1 tensor that the "
        "module lacks: pass "
        'strict="shapes" to ignore unexpected keys, or omit single ones with a rule such as mapper={"b/x": None}'
    ]
    assert load_model(model, path, strict="shapes").unexpected == ["b/x"]
    assert load_model(model, path, mapper={"b/x": None}).ignored == ["b/x"]


@pytest.mark.parametrize(
    ("layer", "kernel", "shape"),
    [
        (nn.Bilinear(4, 3, 8), "kernel", (4, 3, 8)),
        (nn.Bilinear(4, 4, 8), "bilinear_kernel", (4, 4, 8)),
    ],
    ids=["kernel", "another kernel"],
)
def test_a_layer_without_a_known_layout(tmp_path: Path, layer: nn.Module, kernel: str, shape: tuple[int, ...]) -> None:
    """The error says why the stored kernel is not loaded, and what to pass if its axes are in torch's order."""
    path = tfckpt.save_file({f"x/{kernel}": torch.ones(shape), "x/bias": torch.zeros(8)}, tmp_path / "m")
    with pytest.raises(NotFoundError) as raised:
        load_model(module(x=layer), path)
    rule = f'mapper={{"x/{kernel}": ("x.weight", "same")}}'
    assert (
        f'"x/{kernel}": no layout is known for this weight of {type(layer).__name__}, so it is not loaded. Load '
        f"it with load_file and permute it yourself; or, if its axes are in torch's order, pass {rule}"
    ) in str(raised.value)
    shape = tuple(layer.state_dict()["weight"].shape)
    bias = layer.state_dict()["bias"]
    path = tfckpt.save_file({f"x/{kernel}": torch.full(shape, 2.0), "x/bias": bias}, tmp_path / "fits")
    load_model(module(x=layer), path, mapper={f"x/{kernel}": ("x.weight", "same")})
    assert layer.state_dict()["weight"].eq(2).all()


def test_several_kernels_of_a_recurrent_layer(tmp_path: Path) -> None:
    """It is unknown which of the tensors of stacked layers a kernel belongs to, so no rule is proposed."""
    stored = {"lstm/kernel": torch.ones(3, 16), "lstm/recurrent_kernel": torch.ones(4, 16)}
    model = module(lstm=nn.LSTM(3, 4, num_layers=2))
    report = load_model(model, tfckpt.save_file(stored, tmp_path / "m"), strict=False)
    assert report.remarks == [
        '"lstm/kernel": no layout is known for this weight of LSTM, so it is not loaded. Load it with '
        "load_file and permute it yourself"
    ]


class Mixing(nn.Module):
    """A layer of one's own that names its weight as TensorFlow does."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(3, 3))
        self.scale = nn.Parameter(torch.zeros(3, 3))


def test_a_kernel_that_was_copied_as_it_is(tmp_path: Path) -> None:
    """A kernel of a module without a known layout is reported: its square shape does not show the order of axes."""
    path = tfckpt.save_file({"x/kernel": torch.ones(3, 3), "x/scale": torch.ones(3, 3)}, tmp_path / "m")
    assert load_model(module(x=Mixing()), path).remarks == [
        'no layout is known for "x.kernel": copied with the axes as stored. If they are in a different order in the '
        "module, permute them after loading"
    ]


@pytest.mark.parametrize(
    ("stored", "model"),
    [
        ({"0/kernel": torch.rand(2, 3, 4, 5), "0/bias": torch.rand(5)}, nn.Sequential(nn.Linear(24, 5))),
        ({"0/kernel": torch.rand(5, 3), "0/bias": torch.rand(5)}, nn.Sequential(nn.Linear(3, 5))),
        ({"0/kernel": torch.rand(5, 2, 3, 3), "0/bias": torch.rand(5)}, nn.Sequential(nn.Conv2d(2, 5, 3))),
        ({"0.weight": torch.rand(3, 5), "0.bias": torch.rand(5)}, nn.Sequential(nn.Linear(3, 5))),
        ({"0/kernel": torch.rand(3, 3), "1.weight": torch.rand(3, 3)},
         nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))),
        ({"0/kernel": torch.rand(3, 3), "1/kernel": torch.rand(1)}, nn.Sequential(nn.Linear(3, 3, bias=False))),
        ({"0/kernel": torch.rand(1, 3, 5), "0/bias": torch.rand(1, 5)}, nn.Sequential(nn.Linear(3, 5))),
        ({"0/alpha": torch.rand(3, 5)}, nn.Sequential(nn.PReLU(15))),
    ],
    ids=["conv", "torchs-order", "torchs-conv", "dense", "ambiguous", "unexpected", "heads", "none"],
)  # fmt: skip
def test_a_rule_in_an_error_can_be_pasted(tmp_path: Path, stored: dict[str, torch.Tensor], model: nn.Module) -> None:
    """With the rule, the load succeeds, or the error has another rule. Where no layout fits, it asks for functions."""
    tfckpt.save_file(stored, tmp_path / "m")
    rules: dict[str, Any] = {}
    for _ in range(3):
        try:
            tfckpt.load_model(model, tmp_path / "m", mapper=rules or None)
            return
        except tfckpt.CheckpointError as error:
            found = re.search(r"mapper=(\{.*?\})", str(error))
            if found is None:
                text = 'no layout turns [3,5] of "0/alpha" into [15] of "0.weight"'
                assert text in str(error) and "(to_torch, to_stored)" in str(error)
                return
            rule = ast.literal_eval(found[1])
            assert not rules.keys() & rule.keys(), str(error)
            rules |= rule
    raise AssertionError(f"{rules} is not enough")
