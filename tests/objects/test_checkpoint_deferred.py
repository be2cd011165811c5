"""Objects that are added after their restore."""

import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks

import torch_tfckpt as tfckpt
from torch_tfckpt.objects.checkpoint import Checkpoint


def scalar(value: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value))


def saved(path: Path, *, value: float = 1.0) -> str:
    """Save a model with a parameter, a buffer, a layer, and a list of layers."""
    model: Any = nn.Module()
    model.w = scalar(value)
    model.register_buffer("steps", torch.tensor(int(value)))
    model.fc = filled(nn.Linear(2, 3), value)
    model.blocks = nn.ModuleList([filled(nn.Linear(1, 1), value), filled(nn.Linear(1, 2), value)])
    model.heads = nn.ModuleDict({"a": filled(nn.Linear(1, 1), value)})
    return Checkpoint(model=model).write(path)


def filled(module: nn.Linear, value: float) -> nn.Linear:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def hooks_installed() -> int:
    return sum(
        len(each)
        for each in (
            hooks._global_parameter_registration_hooks,
            hooks._global_buffer_registration_hooks,
            hooks._global_module_registration_hooks,
        )
    )


def test_all_ways_to_add_to_a_module(tmp_path: Path) -> None:
    """Attributes, register_parameter, register_buffer, add_module, append and new keys are restored.

    In the end everything is restored.
    """
    path = saved(tmp_path / "m", value=2.0)
    model: Any = nn.Module()
    status = Checkpoint(model=model).read(path)
    status.assert_existing_objects_matched()
    model.register_parameter("w", scalar())
    assert model.w.item() == 2.0
    model.register_buffer("steps", torch.tensor(0))
    assert model.get_buffer("steps").item() == 2
    layer = nn.Linear(2, 3)
    model.add_module("fc", layer)
    assert layer.weight.tolist() == [[2.0, 2.0]] * 3
    model.blocks = nn.ModuleList([nn.Linear(1, 1)])
    assert model.blocks[0].weight.item() == 2.0
    second = nn.Linear(1, 2)
    model.blocks.append(second)
    assert second.bias.tolist() == [2.0, 2.0]
    model.heads = nn.ModuleDict()
    with pytest.raises(AssertionError, match=r"\(root\)\.model\.heads\.a\."):
        status.assert_consumed()
    model.heads["a"] = nn.Linear(1, 1)
    assert model.heads["a"].weight.item() == 2.0
    status.assert_consumed()


def test_a_module_that_builds_itself_later(tmp_path: Path) -> None:
    """It creates its layers in its first call, as Keras models do."""

    class Late(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, "fc"):
                self.fc = nn.Linear(x.shape[-1], 3)
            y: torch.Tensor = self.fc(x)
            return y

    path = saved(tmp_path / "m", value=2.0)
    model = Late()
    Checkpoint(model=model).read(path).expect_partial()
    assert model(torch.ones(2)).tolist() == [6.0, 6.0, 6.0]


def test_only_the_first_one_is_restored(tmp_path: Path) -> None:
    """An object that later replaces a restored one keeps its own values."""
    path = saved(tmp_path / "m", value=2.0)
    model: Any = nn.Module()
    Checkpoint(model=model).read(path).expect_partial()
    model.w = scalar()
    assert model.w.item() == 2.0
    del model.w
    model.w = scalar(5.0)
    assert model.w.item() == 5.0


def test_none_is_not_restored(tmp_path: Path) -> None:
    """An attribute that is None first is restored when it is set later."""
    path = saved(tmp_path / "m", value=2.0)
    model: Any = nn.Module()
    Checkpoint(model=model).read(path).expect_partial()
    model.register_parameter("w", None)
    model.register_module("fc", None)
    model.w, model.fc = scalar(), nn.Linear(2, 3)
    assert (model.w.item(), model.fc.bias.tolist()) == (2.0, [2.0] * 3)


def test_a_late_module_of_another_shape(tmp_path: Path) -> None:
    """Assigning another shape is an error, and none of its tensors is restored.

    The error is raised once, as in TensorFlow: the next object keeps its values.
    """
    path = saved(tmp_path / "m", value=2.0)
    model: Any = nn.Module()
    Checkpoint(model=model).read(path).expect_partial()
    wrong = filled(nn.Linear(2, 3), 7.0)
    wrong.bias = nn.Parameter(torch.full((5,), 7.0))
    with pytest.raises(tfckpt.InvalidArgumentError, match="incompatible tensor with shape"):
        model.fc = wrong
    assert wrong.weight.tolist() == [[7.0, 7.0]] * 3
    assert not hasattr(model, "fc")
    model.fc = filled(nn.Linear(2, 3), 7.0)
    assert model.fc.weight.tolist() == [[7.0, 7.0]] * 3


def test_a_late_attribute_of_another_shape(tmp_path: Path) -> None:
    """Assigning it to a Checkpoint is an error too, and the attribute is not set."""
    path = Checkpoint(v=torch.tensor([2.0])).write(tmp_path / "m")
    checkpoint: Any = Checkpoint()
    checkpoint.read(path).expect_partial()
    wrong, right = torch.zeros(3), torch.zeros(1)
    with pytest.raises(tfckpt.InvalidArgumentError, match="incompatible tensor with shape"):
        checkpoint.v = wrong
    assert not hasattr(checkpoint, "v")
    checkpoint.v = right
    assert right.tolist() == [0.0]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is found again after the working directory has changed."""
    monkeypatch.chdir(tmp_path)
    Checkpoint(v=torch.tensor(2.0)).write("run/m")
    checkpoint: Any = Checkpoint()
    checkpoint.read("run/m")
    monkeypatch.chdir("/")
    checkpoint.v = torch.tensor(0.0)
    assert checkpoint.v.item() == 2.0


def test_a_deleted_checkpoint(tmp_path: Path) -> None:
    """Assigning an object whose values were not restored before the deletion is an error."""
    path = saved(tmp_path / "m", value=2.0)
    model: Any = nn.Module()
    Checkpoint(model=model).read(path).expect_partial()
    tfckpt.remove_checkpoint(path)
    with pytest.raises(tfckpt.NotFoundError):
        model.w = scalar()
    model.something_else = scalar(3.0)
    assert model.something_else.item() == 3.0


@pytest.mark.parametrize("first", [0, 1])
def test_the_newest_restore_wins(tmp_path: Path, first: int) -> None:
    """The later of two waiting restores determines the value; values only in the earlier come from it."""
    small = nn.Module()
    small.w = scalar(9.0)
    paths = [saved(tmp_path / "m", value=2.0), Checkpoint(model=small).write(tmp_path / "small")]
    if first:
        paths.reverse()
    model: Any = nn.Module()
    for path in paths:
        Checkpoint(model=model).read(path).expect_partial()
    model.w = scalar()
    assert model.w.item() == (2.0 if first else 9.0)
    model.fc = nn.Linear(2, 3)
    assert model.fc.bias.tolist() == [2.0] * 3


def test_a_restored_object_is_not_overwritten_by_an_older_restore(tmp_path: Path) -> None:
    """An object restored by a newer restore keeps its values when attached for an older one."""
    old, new = saved(tmp_path / "old", value=1.0), saved(tmp_path / "new", value=2.0)
    parent, model = nn.Module(), nn.Module()
    layer = nn.Linear(2, 3)
    Checkpoint(model=parent).read(old).expect_partial()
    model.fc = layer
    Checkpoint(model=model).read(new).expect_partial()
    parent.fc = layer
    assert layer.weight.tolist() == [[2.0, 2.0]] * 3


def test_attributes_of_a_checkpoint(tmp_path: Path) -> None:
    """Modules, tensors, plain values, dicts and other Checkpoints are restored when assigned later."""
    inner = Checkpoint(v=torch.tensor(4.0))
    path = Checkpoint(
        model=filled(nn.Linear(1, 1), 2.0), v=torch.tensor(3.0), epoch=7, extra={"lr": 0.5}, inner=inner
    ).write(tmp_path / "m")
    checkpoint: Any = Checkpoint()
    status = checkpoint.read(path)
    checkpoint.model = nn.Linear(1, 1)
    checkpoint.v = torch.tensor(0.0)
    checkpoint.epoch = 0
    extra = {"lr": 0.0}
    checkpoint.extra = extra
    checkpoint.inner = Checkpoint(v=torch.tensor(0.0))
    assert (checkpoint.model.weight.item(), checkpoint.v.item(), checkpoint.epoch) == (2.0, 3.0, 7)
    assert checkpoint.extra is extra and extra == {"lr": 0.5}
    assert checkpoint.inner.v.item() == 4.0
    status.assert_consumed()
    checkpoint.epoch = 8
    assert checkpoint.epoch == 8


def test_items_wait_for_the_next_restore(tmp_path: Path) -> None:
    """A new item in a dict or list is not noticed until the next restore."""
    path = Checkpoint(extra={"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, all=[torch.tensor(3.0)]).write(
        tmp_path / "m"
    )
    extra, items = {"a": torch.tensor(0.0)}, list[torch.Tensor]()
    checkpoint = Checkpoint(extra=extra, all=items)
    status = checkpoint.read(path)
    extra["b"] = torch.tensor(0.0)
    items.append(torch.tensor(0.0))
    assert (extra["a"].item(), extra["b"].item(), items[0].item()) == (1.0, 0.0, 0.0)
    with pytest.raises(AssertionError):
        status.assert_consumed()
    status.expect_partial()
    checkpoint.read(path).assert_consumed()
    assert (extra["b"].item(), items[0].item()) == (2.0, 3.0)


def test_the_counter_waits(tmp_path: Path) -> None:
    """read() creates no counter, but one that is created later continues from the stored value."""
    v = torch.tensor(1.0)
    first = Checkpoint(v=v)
    first.save(tmp_path / "m")
    path = first.save(tmp_path / "m")
    checkpoint = Checkpoint(v=v)
    checkpoint.read(path).expect_partial()
    assert checkpoint.save(tmp_path / "m") == str(tmp_path / "m-3")
    untouched = Checkpoint(v=v)
    assert untouched.save(tmp_path / "m") == str(tmp_path / "m-1")


def test_a_lazy_module(tmp_path: Path) -> None:
    """Lazy parameters get the stored shape, at once or on late assignment; the model then works."""
    layer = nn.Linear(5, 3)
    path = Checkpoint(model=nn.Sequential(layer, nn.BatchNorm1d(3))).write(tmp_path / "m")
    lazy: Callable[[], nn.Module] = lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())  # noqa: E731
    now = lazy()
    Checkpoint(model=now).read(path).assert_consumed()
    later = lazy()
    checkpoint = Checkpoint()
    checkpoint.read(path)
    checkpoint.model = later
    for model in (now, later):
        first = model.get_submodule("0")
        assert torch.equal(first.get_parameter("weight"), layer.weight)
        model.eval()
        x = torch.rand(2, 5)
        torch.testing.assert_close(first(x), layer(x))
        assert model(x).shape == (2, 3)


def test_an_error_leaves_lazy_parameters_lazy(tmp_path: Path) -> None:
    """A mismatch of another tensor materializes nothing."""
    path = Checkpoint(a=nn.Linear(5, 3), z=torch.zeros(2)).write(tmp_path / "m")
    lazy = nn.LazyLinear(3)
    with pytest.raises(tfckpt.InvalidArgumentError):
        Checkpoint(a=lazy, z=torch.zeros(3)).read(path)
    assert lazy.has_uninitialized_params()


def test_hooks_are_removed_in_the_end(tmp_path: Path) -> None:
    """torch's registration hooks are installed only while values wait; deleted modules remove theirs."""
    gc.collect()
    path = saved(tmp_path / "m")
    before = hooks_installed()
    small = nn.Module()
    small.w = scalar(9.0)
    of_small = Checkpoint(model=small).write(tmp_path / "small")
    model: Any = nn.Module()
    checkpoint = Checkpoint(model=model)
    checkpoint.read(of_small)
    assert hooks_installed() > before
    model.w = scalar()
    assert hooks_installed() == before
    checkpoint = Checkpoint(model=nn.Module())
    checkpoint.read(path).expect_partial()
    del checkpoint
    done = Checkpoint(model=small)
    done.read(of_small).assert_consumed()
    small.v = scalar(1.0)  # any registration, after which no hook may be left
    assert hooks_installed() == before


def test_an_incomplete_restore_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The warning lists the unrestored paths, and is logged when no object can get the values any more."""
    path = saved(tmp_path / "m")
    model: Any = nn.Module()
    with caplog.at_level(logging.WARNING, "torch_tfckpt"):
        checkpoint = Checkpoint(model=model)
        status = checkpoint.read(path)
        model.w = scalar()
        del status, checkpoint
        assert model.w.item() == 1.0
        assert not caplog.records  # the model still exists and may get the rest
        del model
        gc.collect()
    assert len(caplog.records) == 1
    assert "(root).model.fc.weight" in caplog.text
    assert "(root).model.w" not in caplog.text.replace("(root).model.weight", "")
    assert "expect_partial" in caplog.text


def test_complete_restores_log_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A failed restore logs nothing either, since it raised an error."""
    v = torch.tensor(1.0)
    path = Checkpoint(v=v).write(tmp_path / "m")
    with caplog.at_level(logging.WARNING, "torch_tfckpt"):
        for _ in range(2):
            Checkpoint(v=v).read(path)
        with pytest.raises(tfckpt.InvalidArgumentError):
            Checkpoint(v=torch.zeros(2)).read(path)
        gc.collect()
    assert not caplog.records


def test_an_overwritten_checkpoint(tmp_path: Path) -> None:
    """Waiting values are not read from another checkpoint that replaced the restored one."""
    model: Any = nn.Module()
    model.v = nn.Parameter(torch.tensor(1.0))
    path = Checkpoint(model=model).write(tmp_path / "m")
    waiting: Any = nn.Module()
    status = Checkpoint(model=waiting).read(path)
    model.v = nn.Parameter(torch.tensor(2.0))
    Checkpoint(model=model).write(path)
    os.utime(f"{path}.index", (1, 1))  # in case the clock of the file system is coarse
    with pytest.raises(tfckpt.FailedPreconditionError, match="overwritten after it was restored"):
        waiting.v = nn.Parameter(torch.tensor(3.0))
    assert not hasattr(waiting, "v")
    status.expect_partial()


def test_two_objects_of_one_name(tmp_path: Path) -> None:
    """A name-based checkpoint gives both the same value."""
    path = tfckpt.save_file({"x": torch.tensor([1.0, 2.0])}, tmp_path / "m")
    one, other = (tfckpt.Variable(torch.zeros(2), "x") for _ in range(2))
    Checkpoint(one=one, other=other).read(path).assert_consumed()
    assert one.tensor.tolist() == other.tensor.tolist() == [1.0, 2.0]
