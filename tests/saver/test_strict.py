"""Saver.restore(strict=...): what is missing, unexpected, created and lost, and the report of it."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import torch_tfckpt as tfckpt


class Lazily(nn.Module):
    """A module with a buffer that its first forward pass creates."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.mean: torch.Tensor | None
        self.register_buffer("mean", None, persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mean is None:
            self.mean = torch.zeros(2)
        self.mean += x.mean(0).detach()
        return cast(torch.Tensor, self.layer(x - self.mean))


def written(path: Path, values: dict[str, Any]) -> str:
    return tfckpt.save_file(values, path)


@pytest.mark.parametrize("form", ["bare", "keyed", "compiled", "nested"])
def test_a_buffer_that_is_none_is_created(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its value is not lost, and continues; a warning says so."""

    def var_list(module: nn.Module) -> object:
        if form == "compiled":
            return {"net": torch.compile(module, backend="eager")}
        return {"bare": module, "keyed": {"net": module}, "nested": nn.Sequential(nn.ReLU(), module)}[form]

    source, target = Lazily(), Lazily()
    source(torch.ones(3, 2))
    path = tfckpt.Saver(var_list(source)).save(tmp_path / "m")
    key = {"bare": "mean", "nested": "1.mean"}.get(form, "net/mean")
    with caplog.at_level(logging.WARNING):
        report = tfckpt.Saver(var_list(target)).restore(path)
    assert report.remarks == [f'buffers that were None were created: "{key}"'] and report.sources[key] == key
    assert report.remarks[0] in caplog.text
    target(torch.ones(3, 2))
    assert torch.equal(cast(torch.Tensor, target.mean), torch.full((2,), 2.0))
    assert "mean" in target.state_dict()


def test_a_buffer_that_is_stored_under_an_old_name_is_created(tmp_path: Path) -> None:
    """By an earlier version, for a compiled module."""
    target = Lazily()
    values = {f"net/_orig_mod.{name}": value for name, value in target.state_dict().items()}
    path = written(tmp_path / "m", {**values, "net/_orig_mod.mean": torch.ones(2)})
    tfckpt.Saver({"net": target}).restore(path)
    assert torch.equal(cast(torch.Tensor, target.mean), torch.ones(2))


@pytest.mark.parametrize("strict", [True, False])
def test_a_buffer_that_is_not_stored(tmp_path: Path, strict: bool) -> None:
    """The reverse: it was None when the checkpoint was written. An error, or in the report."""
    source, target = Lazily(), Lazily()
    target(torch.ones(3, 2))
    path = tfckpt.Saver({"net": source}).save(tmp_path / "m")
    if strict:
        with pytest.raises(tfckpt.NotFoundError, match="Key net/mean not found"):
            tfckpt.Saver({"net": target}).restore(path)
    else:
        report = tfckpt.Saver({"net": target}).restore(path, strict=False)
        assert tuple(report) == (["net/mean"], [])
        assert torch.equal(source.layer.weight, target.layer.weight)


SETTINGS: dict[str, tuple[nn.Module, nn.Module, list[str]]] = {
    "parameter": (nn.Linear(2, 2), nn.Linear(2, 2, bias=False), ["bias"]),
    "buffers of torch": (
        nn.BatchNorm1d(2),
        nn.BatchNorm1d(2, track_running_stats=False),
        ["num_batches_tracked", "running_mean", "running_var"],
    ),
    "a submodule": (
        nn.Sequential(OrderedDict(a=nn.Linear(1, 1), head=nn.Linear(1, 1))),
        nn.Sequential(OrderedDict(a=nn.Linear(1, 1))),
        ["head.bias", "head.weight"],
    ),
    "a buffer that is not persistent": (Lazily(), Lazily(persistent=False), ["mean"]),
}


@pytest.mark.parametrize(("source", "target", "lost"), SETTINGS.values(), ids=SETTINGS)
def test_stored_tensors_without_a_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: nn.Module, target: nn.Module, lost: list[str]
) -> None:
    """None that is a setting is not changed. As in TensorFlow this is no error, but it is reported and logged."""
    if isinstance(source, Lazily):
        source(torch.ones(1, 2))
    before = list(target.state_dict())
    path = tfckpt.Saver({"net": source}).save(tmp_path / "m")
    with caplog.at_level(logging.WARNING):
        report = tfckpt.Saver({"net": target}).restore(path)
    assert report.unexpected == [f"net/{name}" for name in lost]
    assert all(name in caplog.text for name in lost) and "match nothing in the restored modules" in caplog.text
    assert list(target.state_dict()) == before


def test_other_values_are_ignored_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TensorFlow restores a part of a checkpoint without a remark: here other keys of the var_list."""
    model, step = nn.Linear(1, 1), torch.tensor(3)
    optimizer = torch.optim.SGD(model.parameters())
    path = tfckpt.Saver(
        {"net": model, "net2": nn.Linear(1, 1), "net/optimizer": optimizer, "step": step, "log": {"a": 1}}
    ).save(tmp_path / "m")
    with caplog.at_level(logging.WARNING):
        report = tfckpt.Saver({"net": model}).restore(path)
    assert report.unexpected == [] and caplog.text == ""
    assert {"step", "net2/weight", "log", "net/optimizer"} <= set(report.ignored)
    assert report.sources == {"net/bias": "net/bias", "net/weight": "net/weight"}


def test_names_that_only_look_like_those_of_a_bare_module(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a key, only names below existing submodules belong to the module for certain."""
    target = nn.Sequential(nn.Linear(1, 1, bias=False))
    path = written(tmp_path / "m", {"0.weight": torch.ones(1, 1), "0.bias": torch.ones(1), "step": torch.ones(1)})
    report = tfckpt.Saver(target).restore(path)
    assert report.unexpected == ["0.bias"] and report.ignored == ["step"]
    assert '"0.bias"' in caplog.text and "step" not in caplog.text


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize("difference", [0.0, 1.0])
def test_tied_tensors_that_are_stored_with_two_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, difference: float
) -> None:
    """If the values differ, one would be lost: a warning, and in the report. Equal ones are no problem."""
    value = torch.tensor([[1.0, float("nan")], [3.0, 4.0]])
    path = written(tmp_path / "m", {"n/0.weight": value, "n/1.weight": value + difference})
    target = tied()
    report = tfckpt.Saver({"n": target}).restore(path)
    assert torch.equal(target.state_dict()["0.weight"].nan_to_num(7), value.nan_to_num(7))
    assert report.unexpected == (["n/1.weight"] if difference else [])
    assert ("different values" in caplog.text) == bool(difference)
    model = tfckpt.load_model(tied(), path)
    assert any("different values" in text for text in model.remarks) == bool(difference)


@pytest.mark.parametrize("difference", [0.0, 1.0])
def test_checkpoints_of_untied_tensors_are_not_consumed_by_tied_ones(tmp_path: Path, difference: float) -> None:
    """The second value found no place."""
    source = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        source.state_dict()["1.weight"].copy_(source.state_dict()["0.weight"] + difference)
    path = tfckpt.Checkpoint(net=source).write(tmp_path / "m")
    target = tied()
    status = tfckpt.Checkpoint(net=target).read(path).expect_partial()
    assert torch.equal(target.state_dict()["0.weight"], source.state_dict()["0.weight"])
    if difference:
        with pytest.raises(AssertionError, match=r"Unresolved object in checkpoint \(root\)\.net\.1\.weight"):
            status.assert_consumed()
    else:
        status.assert_consumed()


def test_what_fits_is_restored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """strict=False: missing names, other shapes, other types and other state are reported; the rest is restored."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    path = tfckpt.Saver(
        {"net": model, "shape": torch.ones(3), "type": torch.ones(2), "same": torch.ones(2), "opt": optimizer}
    ).save(tmp_path / "m")
    fresh, same = nn.Linear(2, 2), torch.zeros(2)
    values = {
        "net": fresh,
        "shape": torch.zeros(4),
        "type": torch.zeros(2, dtype=torch.int32),
        "same": same,
        "more": torch.zeros(1),
        "opt": torch.optim.Adam(fresh.parameters()),
        "scheduler": {"last": 1},
    }
    saver = tfckpt.Saver(values)
    with pytest.raises(tfckpt.CheckpointError):
        saver.restore(path)
    assert torch.equal(same, torch.zeros(2))
    report = saver.restore(path, strict=False)
    assert sorted(report.missing) == ["more", "opt", "scheduler"]
    assert [each.name for each in report.mismatched] == ["shape", "type"]
    assert [each.key for each in report.mismatched] == ["shape", "type"]
    assert torch.equal(same, torch.ones(2)) and torch.equal(fresh.weight, model.weight)
    assert set(report.sources) == {"net/bias", "net/weight", "same"}
    assert any("SGD" in remark for remark in report.remarks)
    assert '"more"' in caplog.text and "not restored" in caplog.text
    assert "loaded 3 tensors" in str(report)


def test_object_based_checkpoints_by_name(tmp_path: Path) -> None:
    """strict=False applies to names of variables, too."""
    path = tfckpt.Checkpoint(a=tfckpt.Variable(torch.ones(2), "x"), b=tfckpt.Variable(torch.ones(2), "y")).write(
        tmp_path / "m"
    )
    x, z = torch.zeros(2), torch.zeros(2)
    with pytest.raises(tfckpt.NotFoundError, match="Existing variables not in the checkpoint"):
        tfckpt.Saver({"x": x, "z": z}).restore(path)
    report = tfckpt.Saver({"x": x, "z": z}).restore(path, strict=False)
    assert torch.equal(x, torch.ones(2)) and report.missing == ["z"]
    assert report.sources == {"x": "a/.ATTRIBUTES/VARIABLE_VALUE"}


def test_checksums_are_verified_on_request(tmp_path: Path) -> None:
    """verify=False reads a damaged value."""
    path = written(tmp_path / "m", {"w": torch.ones(4)})
    data = tmp_path / "m.data-00000-of-00001"
    data.write_bytes(b"\1" + data.read_bytes()[1:])
    saver = tfckpt.Saver({"w": torch.zeros(4)})
    with pytest.raises(tfckpt.DataLossError):
        saver.restore(path)
    assert saver.restore(path, verify=False).sources == {"w": "w"}


def test_counters_that_old_checkpoints_lack(tmp_path: Path) -> None:
    """As in torch, for a state_dict without versions."""
    source, target = nn.Sequential(nn.BatchNorm1d(2)), nn.Sequential(nn.BatchNorm1d(2))
    source(torch.randn(3, 2)), target(torch.randn(3, 2)), target(torch.randn(3, 2))
    values = {name: value for name, value in source.state_dict().items() if "num" not in name}
    report = tfckpt.Saver(target).restore(written(tmp_path / "m", values))
    assert report.remarks == ['not stored, and unchanged: "0.num_batches_tracked"']
    expected = nn.Sequential(nn.BatchNorm1d(2))
    expected.load_state_dict(values)
    assert torch.equal(expected.state_dict()["0.running_mean"], target.state_dict()["0.running_mean"])
    assert target.state_dict()["0.num_batches_tracked"].item() == 2


def test_a_saver_of_nothing_reports_nothing() -> None:
    """Saver(allow_empty=True)."""
    assert tfckpt.Saver([], allow_empty=True).restore("nowhere") == tfckpt.LoadReport()


def test_values_of_one_dict_are_all_reported(tmp_path: Path) -> None:
    """`sources` also has the parts of state."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    path = tfckpt.Saver({"net": model, "opt": optimizer}).save(tmp_path / "m")
    report = tfckpt.Saver({"net": model, "opt": optimizer}).restore(path)
    assert "opt/state/bias/momentum_buffer" in report.sources and report.ignored == []
