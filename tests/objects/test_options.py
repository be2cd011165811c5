"""CheckpointOptions: accepted values, and callbacks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.options import CheckpointOptions, run_callbacks


@pytest.mark.parametrize("device", [None, "cpu", "/cpu:0", "/job:localhost", "/job:a/replica:0/task:1/device:CPU:3"])
def test_devices_that_have_files(device: str | None) -> None:
    """A CPU in any spelling, or its host, is accepted."""
    assert CheckpointOptions(experimental_io_device=device).experimental_io_device == device


@pytest.mark.parametrize("device", ["cuda:1", "/gpu:0", "meta", "/job:a/device:TPU:0"])
def test_devices_without_files(device: str) -> None:
    """Rejected; the error has the given and the accepted values."""
    with pytest.raises(InvalidArgumentError, match=f'"{device}".*Pass "cpu"'):
        CheckpointOptions(experimental_io_device=device)


def test_an_invalid_device() -> None:
    """A string that is not a device is rejected."""
    with pytest.raises(InvalidArgumentError, match="device spec"):
        CheckpointOptions(experimental_io_device="somewhere/else")


def test_callbacks_get_the_path_or_nothing() -> None:
    """Called in order with the path or without arguments; methods are counted without self."""
    seen: list[str] = []
    options = CheckpointOptions(experimental_write_callbacks=[seen.append, lambda: seen.append("none")])
    run_callbacks(options, "p")
    assert seen == ["p", "none"]


@pytest.mark.parametrize("callback", [lambda a, b: None, lambda a, b=1: None], ids=["two", "one of two optional"])
def test_callbacks_with_more_parameters(callback: Callable[..., object]) -> None:
    """An AssertionError, as in TensorFlow, before anything is saved."""
    with pytest.raises(AssertionError, match=r"one parameter, .* this one has 2"):
        CheckpointOptions(experimental_write_callbacks=[callback])


def test_an_error_of_a_callback_is_raised_unchanged() -> None:
    """Later callbacks are not called."""
    seen: list[str] = []

    def fail() -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        run_callbacks(CheckpointOptions(experimental_write_callbacks=[fail, seen.append]), "p")
    assert seen == []


def test_defaults() -> None:
    """Files are written before `save` returns, one per host, with all values."""
    options = CheckpointOptions()
    assert options.experimental_io_device is None
    assert not (options.enable_async or options.experimental_skip_slot_variables or options.sharded)
    assert (options.experimental_write_callbacks, options.staging) == (None, None)


@pytest.mark.parametrize("enable_async", [False, True], ids=["sync", "async"])
def test_callbacks_are_called_when_the_checkpoint_is_complete(tmp_path: Path, enable_async: bool) -> None:
    """`save` and `write` pass the path; the state file is already updated."""
    seen: list[tuple[str, str | None]] = []

    def note(path: str) -> None:
        assert tfckpt.checkpoint_exists(path)
        seen.append((path, tfckpt.latest_checkpoint(tmp_path)))

    options = CheckpointOptions(experimental_write_callbacks=[note], enable_async=enable_async)
    checkpoint = Checkpoint(v=torch.ones(1))
    written = checkpoint.write(tmp_path / "w", options)
    saved = checkpoint.save(tmp_path / "m", options)
    checkpoint.sync()
    assert seen == [(written, None), (saved, saved)]


def test_one_file_for_each_device(tmp_path: Path) -> None:
    """One file per host, or per device with `sharded`; the values that are read are the same."""
    objects = {
        f"v{i}": tfckpt.Variable(torch.full((2,), float(i)), f"v{i}", device=device)
        for i, device in enumerate(["/cpu:0", "/cpu:1", "/job:worker/task:1/cpu:0", "/job:worker/task:1/cpu:1"])
    }
    whole = Checkpoint(**objects).write(tmp_path / "whole")
    parts = Checkpoint(**objects).write(tmp_path / "parts", CheckpointOptions(sharded=True))
    assert len(list(tmp_path.glob("whole.data-*-of-00002"))) == 2
    assert len(list(tmp_path.glob("parts.data-*-of-00004"))) == 4
    for path in (whole, parts):
        for variable in objects.values():
            variable.tensor.zero_()
        Checkpoint(**objects).read(path).assert_consumed()
        assert [variable.tensor.tolist() for variable in objects.values()] == [[float(i)] * 2 for i in range(4)]
