"""Hints of load_model: what a newcomer reads if names, shapes or layouts do not fit, and that the fix works."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt import InvalidArgumentError, KeyMapper, NotFoundError, load_model

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
        '"lstm/kernel": the name does not show which weight of LSTM this is, so it is not loaded. Map it to one with '
        "mapper="
    ]


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ({"fc/kernel": "fcc.weight"}, 'mapped to "fcc.weight", which the module does not have. Closest: "fc.weight"'),
        ({"fc/kernel": ("fc.kernel", "dense")}, 'mapped to "fc.kernel", which the module does not have'),
        ({"fc/kernal": "fc.weight"}, 'mapped from "fc/kernal", which is not stored. Closest: "fc/kernel"'),
        ([("fc/(.*)", r"fcc.\1")], 'mapped to "fcc.bias", which the module does not have. Closest: "fc.bias"'),
    ],
    ids=["target", "other target", "stored name", "pattern"],
)
@pytest.mark.parametrize("layer", [nn.Linear(3, 3), nn.Conv2d(3, 3, 3)], ids=["fc", "conv"])
def test_a_mistake_in_a_rule_for_a_known_layer(tmp_path: Path, layer: nn.Module, rule: Any, hint: str) -> None:
    """The error names the mistake. It proposes no layout: the stored name implies it, whatever the rule says."""
    tfckpt.save_model(module(fc=layer), tmp_path / "m", naming="tf")
    with pytest.raises(NotFoundError) as raised:
        load_model(module(fc=layer), tmp_path / "m", mapper=rule)
    assert hint in str(raised.value)
    assert "layout" not in str(raised.value) and '"same"' not in str(raised.value)


@pytest.mark.parametrize(
    "rule", [[("fc/(.*)", r"fcc.\1")], {"fc/kernel": "fcc.weight_ih_l0"}, {"fc/recurrent_kernel": "fc.weight_hh"}]
)
def test_a_mistake_in_a_rule_for_a_recurrent_layer(tmp_path: Path, rule: Any) -> None:
    """The same, where a layer has several weights."""
    stored = {"kernel": torch.ones(3, 12), "recurrent_kernel": torch.ones(3, 12), "bias": torch.ones(12)}
    path = tfckpt.save_file({f"fc/{name}": value for name, value in stored.items()}, tmp_path / "m")
    with pytest.raises(tfckpt.CheckpointError, match=r"mapped to .* which the module does not have") as raised:
        load_model(module(fc=nn.LSTM(3, 3)), path, mapper=rule)
    assert "mapper={" not in str(raised.value) and "does not tell" not in str(raised.value)


def test_a_kernel_under_another_name(tmp_path: Path) -> None:
    """For a layer that is known, the proposal is the layout in which TensorFlow stores it."""
    kernel = torch.arange(9.0).view(3, 3)
    path = tfckpt.save_file({"fc/my_kernel": kernel, "fc/bias": torch.zeros(3)}, tmp_path / "m")
    with pytest.raises(NotFoundError, match=r"if its axes are in TensorFlow's order") as raised:
        load_model(module(fc=nn.Linear(3, 3)), path)
    rule = {"fc/my_kernel": ("fc.weight", "dense")}
    assert f"mapper={rule}".replace("'", '"') in str(raised.value) and "no layout is known" not in str(raised.value)
    model = module(fc=nn.Linear(3, 3))
    load_model(model, path, mapper=rule)
    assert torch.equal(model.state_dict()["fc.weight"], kernel.t())


@pytest.mark.parametrize("layer", [nn.GRU(3, 5), nn.GRUCell(3, 5), nn.GRU(15, 5)], ids=["layer", "cell", "wide"])
def test_another_formula_is_explained_once(tmp_path: Path, layer: nn.GRU | nn.GRUCell) -> None:
    """All tensors of a GRU with reset_after=False are refused. No rule would help, so the error has none."""
    stored = {"kernel": torch.ones(layer.input_size, 15), "recurrent_kernel": torch.ones(5, 15), "bias": torch.ones(15)}
    path = tfckpt.save_file({f"gru/{name}": value for name, value in stored.items()}, tmp_path / "m")
    with pytest.raises(InvalidArgumentError) as raised:
        load_model(module(gru=layer), path)
    text = str(raised.value)
    assert text.count("reset_after=False") == 1 and text.count("formula mismatch for gru.") == 4
    assert "size mismatch" not in text and "mapper={" not in text


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(3, 2), (3, 3)])
def test_a_wrong_dtype_is_no_matter_of_layouts(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """An integer kernel is refused for its dtype alone."""
    stored = {"fc/kernel": torch.ones(shape, dtype=dtype), "fc/bias": torch.zeros(shape[1])}
    with pytest.raises(InvalidArgumentError, match=r"dtype mismatch for fc\.weight") as raised:
        load_model(module(fc=nn.Linear(*shape)), tfckpt.save_file(stored, tmp_path / "m"))
    assert "layout" not in str(raised.value) and "mapper={" not in str(raised.value)


def test_optimizer_state_that_is_not_stored(tmp_path: Path) -> None:
    """The error says to omit the optimizer; if a part of the state is stored, also how to load that."""
    stored = {"fc/kernel": torch.ones(3, 2), "fc/bias": torch.zeros(2)}
    model = module(fc=nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    with pytest.raises(NotFoundError) as raised:
        load_model(model, tfckpt.save_file(stored, tmp_path / "none"), optimizer=optimizer)
    text = "No state for this optimizer was found: omit `optimizer` to load the module alone"
    assert last_lines(raised, 1) == [f"Nothing was loaded. {text}"]
    load_model(model, tmp_path / "none")
    path = tfckpt.save_file(stored | {"fc/kernel/Momentum": torch.ones(3, 2)}, tmp_path / "some")
    with pytest.raises(NotFoundError) as raised:
        load_model(model, path, optimizer=optimizer)
    text = "Omit `optimizer` to load the module alone, or pass strict=False to load the state that is stored"
    assert last_lines(raised, 1) == [f"Nothing was loaded. {text}"]
    assert list(load_model(model, path, optimizer=optimizer, strict=False).slots) == ["fc.weight"]


@pytest.mark.parametrize(
    "mapper",
    [KeyMapper.preset("bert"), KeyMapper.preset("mobilenet-v2"), {"f/kernel": "fc.weight"}, [("f/.*", None)]],
    ids=["bert", "mobilenet", "names", "patterns"],
)
def test_a_mapper_of_which_no_rule_matches(tmp_path: Path, mapper: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is reported and logged, though everything is loaded by the module's own names."""
    path = tfckpt.save_file({"fc/kernel": torch.ones(3, 2), "fc/bias": torch.zeros(2)}, tmp_path / "m")
    report = load_model(module(fc=nn.Linear(3, 2)), path, mapper=mapper, strict=False)
    [remark] = [each for each in report.remarks if "no rule of the mapper matches a stored name" in each]
    assert caplog.messages == [f"{path}: {remark}"]
    caplog.clear()
    both = {"fc/bias": "fc.bias", "unused": None}
    assert load_model(module(fc=nn.Linear(3, 2)), path, mapper=both).remarks == [] and not caplog.messages


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


def test_rules_that_do_not_cover_everything_can_be_completed(tmp_path: Path) -> None:
    """As after a preset for a model that got another head: the error names KeyMapper.infer, which finds the rest."""
    path = tmp_path / "net"
    tfckpt.save_file({"body/kernel": torch.ones(3, 2), "flowers/kernel": torch.full((2, 5), 2.0)}, path)
    rules = tfckpt.KeyMapper({"body/kernel": ("trunk.weight", "dense")})
    head = nn.Linear(2, 5, bias=False)
    model = nn.ModuleDict({"trunk": nn.Linear(3, 2, bias=False), "head": head})
    with pytest.raises(tfckpt.NotFoundError, match=r"KeyMapper\.infer\(path, model, rules=mapper\)"):
        tfckpt.load_model(model, path, mapper=rules)
    tfckpt.load_model(model, path, mapper=tfckpt.KeyMapper.infer(path, model, rules=rules))
    assert torch.equal(head.weight, torch.full((5, 2), 2.0))
