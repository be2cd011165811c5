"""LoadReport.semantics: of which modules there are findings, how they are accepted, and that they change nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import Small, bits, numbered, small_in_tensorflow
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.models.findings.semantics import SEMANTICS
from torch_tfckpt.models.loading import load_model

AVERAGE = "/ExponentialMovingAverage"


@pytest.fixture
def model() -> Small:
    return Small()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A checkpoint of `Small`."""
    return tfckpt.save_file(small_in_tensorflow(), tmp_path / "m")


def save_as_tensorflow(model: nn.Module, path: Path) -> str:
    """Save under TensorFlow's names, in its layouts."""
    return tfckpt.save_model(model, path, naming="tf")


def findings(model: nn.Module, path: Path, **arguments: Any) -> dict[str, tuple[str, ...]]:
    """Name -> modules, for a module whose values are saved as TensorFlow's, and loaded."""
    saved = save_as_tensorflow(model, path)
    report = load_model(model, saved, strict="shapes", **arguments)
    return {finding.name: finding.modules for finding in report.semantics}


def named(**modules: nn.Module) -> nn.Sequential:
    model = nn.Sequential()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def test_report_remarks_and_log(path: str, model: Small, caplog: pytest.LogCaptureFixture) -> None:
    """One finding with its modules, in the report, in its printed form, in its remarks and in the log."""
    report = load_model(model, path)
    (finding,) = report.semantics
    assert (finding.name, finding.modules, finding.accepted) == ("batch_norm_epsilon", ("bn",), False)
    assert str(finding) == f"batch_norm_epsilon: {finding.message}"
    assert report.remarks == [str(finding)] and str(finding) in str(report)
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {finding}"]


def test_accepted_findings_are_quiet(path: str, model: Small, caplog: pytest.LogCaptureFixture) -> None:
    """They stay in report.semantics, and are neither remarked nor logged nor an error."""
    for strict in (True, "semantics"):
        report = load_model(model, path, strict=strict, accept=("batch_norm_epsilon", "gelu_form"))
        assert [(each.name, each.accepted) for each in report.semantics] == [("batch_norm_epsilon", True)]
        assert report.remarks == [] and "eps" not in str(report)
    assert not caplog.records


def test_strict_semantics(path: str, model: Small, caplog: pytest.LogCaptureFixture) -> None:
    """What nobody accepted is an error that lists what to accept, and nothing is changed; a fixed module is loaded."""
    before = bits(model)
    with pytest.raises(InvalidArgumentError) as raised:
        load_model(model, path, strict="semantics", accept=["gelu_form"])
    message = str(raised.value)
    assert bits(model) == before and not caplog.records
    assert path in message and 'in "bn"; ' in message and message.endswith('accept=("batch_norm_epsilon",)')
    model.bn.eps = 1e-3
    assert load_model(model, path, strict="semantics").semantics == []


def test_strict_semantics_is_strict(tmp_path: Path, model: Small) -> None:
    """It raises whatever strict=True raises, first."""
    stored = small_in_tensorflow()
    del stored["fc/bias"]
    tfckpt.save_file(stored, tmp_path / "missing")
    tfckpt.save_file(small_in_tensorflow() | {"more": numbered(2)}, tmp_path / "more")
    tfckpt.save_file(small_in_tensorflow() | {"fc/bias": numbered(9)}, tmp_path / "shape")
    with pytest.raises(NotFoundError, match=r'Missing key\(s\): "fc\.bias"'):
        load_model(model, tmp_path / "missing", strict="semantics")
    with pytest.raises(InvalidArgumentError, match=r'Unexpected key\(s\): "more"'):
        load_model(model, tmp_path / "more", strict="semantics")
    with pytest.raises(InvalidArgumentError, match=r"size mismatch for fc\.bias"):
        load_model(model, tmp_path / "shape", strict="semantics")


def test_wrong_names(path: str, model: Small) -> None:
    """A name that no finding has is an error with the closest and with all names; a string is not a tuple."""
    with pytest.raises(InvalidArgumentError, match=r'no finding "batch_norm_eps"\. Closest: "batch_norm_epsilon"'):
        load_model(model, path, accept=("batch_norm_eps",))
    with pytest.raises(InvalidArgumentError, match=f"Names: {', '.join(SEMANTICS)}"):
        load_model(model, path, accept=[3])  # type: ignore[list-item]
    wrong: list[Any] = ["batch_norm_epsilon", None, 3]
    for accept in wrong:
        with pytest.raises(InvalidArgumentError, match="pass a tuple of names"):
            load_model(model, path, accept=accept)


class Everything(nn.Module):
    """A module with something to find for almost every name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.bn = nn.BatchNorm2d(4, momentum=0.99)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.average = nn.AvgPool2d(3, 2, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.relu = nn.LeakyReLU()
        self.gate = nn.Hardsigmoid()
        self.fc = nn.Linear(4 * 4 * 4, 4)
        self.gelu = nn.GELU()
        self.norm = nn.LayerNorm(4)
        self.groups = nn.GroupNorm(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gate(self.relu(self.up(self.average(self.pool(self.bn(self.conv(x)))))))
        return self.groups(self.norm(self.gelu(self.fc(x.flatten(1)))))  # type: ignore[no-any-return]


FOUND = {
    "batch_norm_epsilon": ("bn",), "layer_norm_epsilon": ("norm",), "group_norm_epsilon": ("groups",),
    "batch_norm_momentum": ("bn",), "dense_after_flatten": ("fc",), "same_padding_stride": ("conv",),
    "same_padding_pool": ("pool", "average"), "average_pool_padding": ("average",), "gelu_form": ("gelu",),
    "leaky_relu_slope": ("relu",), "hard_sigmoid_form": ("gate",), "upsample_alignment": ("up",),
}  # fmt: skip


@pytest.mark.parametrize(
    "wrap",
    [
        lambda module: module,
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda module: torch.compile(module, backend="eager"),
        lambda module: named(inner=module)[0],
    ],
    ids=["plain", "DataParallel", "AveragedModel", "compiled", "inner"],
)
def test_everything(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """All findings in the order of SEMANTICS, also in a wrapped module, whose parts keep their bare names."""
    found = findings(wrap(Everything()), tmp_path / "m")
    assert found == FOUND and list(found) == sorted(found, key=SEMANTICS.index)


def test_what_torch_stored_has_no_findings(tmp_path: Path) -> None:
    """Under torch's names, by a Saver, by save_model, below a prefix, by rules from torch's names, and by objects."""
    model = Everything()
    paths = [tfckpt.save_model(model, tmp_path / "torch"), tfckpt.Saver(model).save(tmp_path / "saver")]
    paths.append(tfckpt.Saver({"net": model}).save(tmp_path / "below"))
    paths.append(tfckpt.Checkpoint(net=model).save(tmp_path / "objects"))
    flat = {name.replace(".", "_"): value for name, value in model.state_dict().items()}
    paths.append(tfckpt.save_file(flat, tmp_path / "flat"))
    rules: list[Any] = [None] * 4
    rules.append({name.replace(".", "_"): (name, "same") for name in model.state_dict()})
    for path, mapper in zip(paths, rules, strict=True):
        report = load_model(Everything(), str(path), mapper=mapper, strict="semantics")
        assert report.semantics == [] and len(report.sources) == len(model.state_dict())


def test_only_modules_whose_values_are_tensorflows(tmp_path: Path) -> None:
    """In a module of two halves, one from TensorFlow and one from torch, and a third that is not stored."""
    model = named(one=Everything(), other=Everything(), third=Everything())
    stored = {
        f"one/{key}": value for key, value in tfckpt.load_file(save_as_tensorflow(model[0], tmp_path / "x")).items()
    }
    stored |= {f"other.{name}": value for name, value in model[1].state_dict().items()}
    tfckpt.save_file(stored, tmp_path / "m")
    report = load_model(model, tmp_path / "m", strict=False)
    assert {finding.name for finding in report.semantics} == FOUND.keys()
    assert all(name.startswith("one.") for finding in report.semantics for name in finding.modules)


def test_many_modules_are_one_finding(tmp_path: Path) -> None:
    """With their number and the first names in the message, and all names in `modules`."""
    model = nn.Sequential(*[nn.BatchNorm1d(2) for _ in range(60)])
    (finding,) = load_model(model, save_as_tensorflow(model, tmp_path / "m")).semantics
    assert finding.modules == tuple(map(str, range(60)))
    assert '60 modules ("0", "1", "2" and 57 more)' in finding.message


def test_the_model_itself(tmp_path: Path) -> None:
    """A layer that is the whole model has no name."""
    model = nn.LayerNorm(3)
    (finding,) = load_model(model, save_as_tensorflow(model, tmp_path / "m")).semantics
    assert finding.modules == ("",) and "in the model;" in finding.message


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (nn.BatchNorm2d(4, eps=1e-3), set()),
        (nn.BatchNorm2d(4, eps=1.001e-5), set()),  # Keras's ResNet: somebody set it
        (nn.BatchNorm3d(4), {"batch_norm_epsilon"}),
        (nn.SyncBatchNorm(4), {"batch_norm_epsilon"}),
        (nn.BatchNorm2d(4, eps=1e-3, momentum=0.01), set()),
        (nn.BatchNorm2d(4, eps=1e-3, momentum=None), set()),
        (nn.BatchNorm2d(4, eps=1e-3, momentum=0.9997), {"batch_norm_momentum"}),
        (nn.BatchNorm2d(4, affine=False), {"batch_norm_epsilon"}),
        (nn.LayerNorm(4, eps=1e-12), set()),
        (nn.GroupNorm(2, 4, eps=1e-3), set()),
        (nn.Conv2d(4, 4, 3, 1, 1), set()),
        (nn.Conv2d(4, 4, 3, 2), set()),
        (nn.Conv2d(4, 4, 3, padding="same"), set()),
        (nn.Conv2d(4, 4, 4, 2, 1), set()),
        (nn.Conv2d(4, 4, 3, 2, 1, 2), {"same_padding_stride"}),  # dilated: SAME pads (1, 2)
        (nn.Conv2d(4, 4, 5, 3, 1), set()),
        (nn.Conv2d(4, 4, (1, 3), (1, 2), (0, 1)), {"same_padding_stride"}),
        (nn.Conv2d(4, 4, 3, 2, 1, groups=4), {"same_padding_stride"}),
        (nn.Conv1d(4, 4, 3, 2, 1), {"same_padding_stride"}),
        (nn.Conv3d(4, 4, 3, 2, 1), {"same_padding_stride"}),
        (nn.ConvTranspose2d(4, 4, 4, 2, 1), set()),
        (nn.ConvTranspose2d(4, 4, 5, 2, 1), set()),  # the end can be cropped afterwards
        (nn.ConvTranspose2d(4, 4, 5, 2, 2, 1), {"same_padding_transposed"}),
        (nn.MaxPool2d(2), set()),
        (nn.MaxPool2d(3, 2, ceil_mode=True), set()),
        (nn.MaxPool1d(3, 2, 1), {"same_padding_pool"}),
        (nn.AvgPool2d(3, 1, 1), {"average_pool_padding"}),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), set()),
        (nn.GELU("tanh"), set()),
        (nn.LeakyReLU(0.2), set()),
        (nn.Upsample(scale_factor=2), set()),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), set()),
        (nn.TransformerEncoderLayer(4, 2, 8, activation="gelu"), {"gelu_form", "layer_norm_epsilon"}),
        (nn.TransformerEncoderLayer(4, 2, 8, layer_norm_eps=1e-6), set()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "-".join(sorted(value)) or "none",
)
def test_settings(tmp_path: Path, layer: nn.Module, names: set[str]) -> None:
    """Torch's defaults are findings, other settings are not."""
    assert findings(named(dense=nn.Linear(4, 4), layer=layer), tmp_path / "m").keys() == names


class OwnNorm(nn.Module):
    """A norm of a user, and what makes it one: epsilon and vectors."""

    def __init__(self, *names: str, shape: tuple[int, ...] = (4,), **settings: float | None) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))
        for name, value in settings.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (OwnNorm("weight", "bias", variance_epsilon=1e-5), {"layer_norm_epsilon"}),
        (OwnNorm("weight", "bias", epsilon=1e-12), set()),
        (OwnNorm("weight", eps=None), {"rms_norm_epsilon"}),
        (OwnNorm("weight", variance_epsilon=1e-6), set()),
        (OwnNorm("weight", "bias"), set()),
        (OwnNorm("weight", shape=(2, 3), eps=1e-5), set()),
    ],
)
def test_norms_of_other_classes(tmp_path: Path, layer: OwnNorm, names: set[str]) -> None:
    """They are recognised by structure."""
    rules: dict[str, Any] = {"n/gamma": "n.weight", "n/beta": "n.bias"}
    values = {f"n/{leaf}": torch.ones(4) for leaf in ("gamma", "beta")}
    if layer.get_parameter("weight").dim() == 2:
        values["n/gamma"] = torch.ones(2, 3)
        rules["n/gamma"] = ("n.weight", "same")
    tfckpt.save_file(values, tmp_path / "m")
    report = load_model(named(n=layer), tmp_path / "m", mapper=rules, strict=False)
    assert {finding.name for finding in report.semantics} == names


def test_the_epsilon_of_sonnet_and_gpt2_is_torchs(tmp_path: Path) -> None:
    """Where the names of the variables tell that, there is no finding."""
    for scale, offset in (("scale", "offset"), ("g", "b")):
        tfckpt.save_file({f"n/{scale}": torch.ones(4), f"n/{offset}": torch.zeros(4)}, tmp_path / "m")
        rules = {f"n/{scale}": "n.weight", f"n/{offset}": "n.bias"}
        assert load_model(named(n=nn.LayerNorm(4)), tmp_path / "m", mapper=rules).semantics == []


def test_settings_that_matter_in_training(tmp_path: Path) -> None:
    """Only if an optimizer is loaded, too."""
    model = named(bn=nn.BatchNorm1d(4, eps=1e-3), fc=nn.Linear(4, 4))
    path = save_as_tensorflow(model, tmp_path / "m")
    assert load_model(model, path).semantics == []
    report = load_model(model, path, optimizer=torch.optim.SGD(model.parameters()))
    assert [finding.name for finding in report.semantics] == ["batch_norm_momentum", "running_var"]


def test_a_decay_as_momentum(tmp_path: Path) -> None:
    """The message has the momentum that is meant."""
    model = nn.BatchNorm1d(4, eps=1e-3, momentum=0.9997)
    (finding,) = load_model(model, save_as_tensorflow(model, tmp_path / "m")).semantics
    assert "momentum=0.9997" in finding.message and "Set momentum=0.0003." in finding.message


def test_parametrized_layers(tmp_path: Path) -> None:
    """The finding names the layer, whose tensors are in a list of parametrizations."""
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3, 2, 1))
    tfckpt.save_file({"c/g": torch.ones(3, 1, 1, 1), "c/v": torch.ones(3, 2, 3, 3)}, tmp_path / "m")
    rules: dict[str, Any] = {
        "c/g": ("c.parametrizations.weight.original0", "same"), "c/v": ("c.parametrizations.weight.original1", "same"),
    }  # fmt: skip
    report = load_model(named(c=layer), tmp_path / "m", mapper=rules, strict=False)
    assert [(finding.name, finding.modules) for finding in report.semantics] == [("same_padding_stride", ("c",))]


def test_averages(tmp_path: Path, model: Small, caplog: pytest.LogCaptureFixture) -> None:
    """ "warn", the default, reports averages of loaded variables; "ignore", "prefer" and "only" do not."""
    model.bn.eps = 1e-3
    stored = small_in_tensorflow()
    some = {name + AVERAGE: value + 100 for name, value in stored.items() if name.startswith(("fc", "bn/moving"))}
    path = tfckpt.save_file(stored | some | {f"other/kernel{AVERAGE}": torch.ones(1)}, tmp_path / "m")
    report = load_model(model, path)
    (finding,) = report.semantics
    assert (finding.name, finding.modules) == ("averages_not_used", ("bn", "fc"))
    assert 'moving averages of 4 tensors of 2 modules ("bn", "fc")' in finding.message and str(finding) in caplog.text
    assert report.averaged == [] and load_model(model, path, ema="warn") == report
    with pytest.raises(InvalidArgumentError, match=r'averages_not_used: .*ema="prefer".*ema="ignore"'):
        load_model(model, path, strict="semantics")
    caplog.clear()
    assert load_model(model, path, strict="semantics", ema="ignore").semantics == []
    assert load_model(model, path, strict="semantics", ema="prefer").averaged == [
        "bn.running_mean", "bn.running_var", "fc.weight", "fc.bias",
    ]  # fmt: skip
    assert load_model(model, path, strict="semantics", accept=("averages_not_used",)).semantics[0].accepted
    assert not caplog.records


def test_averages_of_what_is_not_loaded(tmp_path: Path, model: Small) -> None:
    """They are no finding."""
    model.bn.eps = 1e-3
    path = tfckpt.save_file(small_in_tensorflow() | {f"other/kernel{AVERAGE}": torch.ones(1)}, tmp_path / "m")
    assert load_model(model, path, strict="semantics").semantics == []


def test_the_page_lists_every_name() -> None:
    """docs/conversion/semantics.md has a section for each name, in this order."""
    page = Path(__file__).parents[2] / "docs" / "conversion" / "semantics.md"
    assert re.findall(r"^## `(\w+)`", page.read_text(encoding="utf-8"), re.MULTILINE) == list(SEMANTICS)


def test_the_module_is_not_touched(tmp_path: Path) -> None:
    """Finding out changes no attribute, calls no hook of the module, and leaves no reference to it."""
    model = Everything()
    path = save_as_tensorflow(model, tmp_path / "m")
    calls: list[str] = []
    for name, part in model.named_modules():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
        part.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    before = {name: {**vars(part)} for name, part in model.named_modules()}
    load_model(model, path)
    after = {name: {**vars(part)} for name, part in model.named_modules()}
    assert calls == [] and after == before
