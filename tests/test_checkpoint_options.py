"""CheckpointOptions: what is accepted, and callbacks."""

from collections.abc import Callable

import pytest

from torch_tfckpt.checkpoint_options import CheckpointOptions
from torch_tfckpt.errors import InvalidArgumentError


@pytest.mark.parametrize("device", [None, "cpu", "/cpu:0", "/job:localhost", "/job:a/replica:0/task:1/device:CPU:3"])
def test_devices_that_have_files(device: str | None) -> None:
    """A CPU in any spelling, or the host of one."""
    assert CheckpointOptions(experimental_io_device=device).experimental_io_device == device


@pytest.mark.parametrize("device", ["cuda:1", "/gpu:0", "meta", "/job:a/device:TPU:0"])
def test_devices_that_have_none(device: str) -> None:
    """Refused with what was given, and what is possible."""
    with pytest.raises(InvalidArgumentError, match=f'"{device}".*Pass "cpu"'):
        CheckpointOptions(experimental_io_device=device)


def test_no_device() -> None:
    """Text that names no device at all."""
    with pytest.raises(InvalidArgumentError, match="device spec"):
        CheckpointOptions(experimental_io_device="somewhere/else")


def test_callbacks_are_given_the_path_or_nothing() -> None:
    """In their order; methods count their arguments without self."""
    seen: list[str] = []
    options = CheckpointOptions(experimental_write_callbacks=[seen.append, lambda: seen.append("none")])
    options.run_callbacks("p")
    assert seen == ["p", "none"]


@pytest.mark.parametrize("callback", [lambda a, b: None, lambda a, b=1: None], ids=["two", "one of two optional"])
def test_callbacks_that_want_more(callback: Callable[..., object]) -> None:
    """SAVER 7: an AssertionError, before anything is saved."""
    with pytest.raises(AssertionError, match="takes 2 arguments"):
        CheckpointOptions(experimental_write_callbacks=[callback])


def test_an_error_of_a_callback_comes_out_as_it_is() -> None:
    """And those behind it are not called."""
    seen: list[str] = []

    def fail() -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        CheckpointOptions(experimental_write_callbacks=[fail, seen.append]).run_callbacks("p")
    assert seen == []
