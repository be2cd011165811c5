"""CheckpointOptions: how a Checkpoint saves and restores.

Source: tensorflow/python/checkpoint/checkpoint_options.py.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch_tfckpt.devices import canonical_device
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import quoted
from torch_tfckpt.transfer.staging import StagingOptions

WriteCallback = Callable[[], object] | Callable[[str], object]


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """Options of Checkpoint.write, save, read and restore.

    Attributes:
        experimental_io_device: The device whose host reads and writes files. Only this host is supported, so any
            spelling of a CPU has the same effect.
        enable_async: `save` and `write` return as soon as training may continue; `sync` waits for the rest.
        experimental_write_callbacks: Functions that are called in the given order once a checkpoint is published, with
            its path or without arguments.
        experimental_skip_slot_variables: Omit the state of optimizers: slot variables and everything else.
        sharded: Write one data file for each device, as Saver(sharded=True) does, instead of one for each host.
        staging: How much host memory and how many threads saves may use; the Checkpoint keeps the setting. None: no
            change.

    Raises:
        AssertionError: a callback has more than one parameter.
        InvalidArgumentError: `experimental_io_device` is not a CPU.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> checkpoint = tfckpt.Checkpoint(w=torch.ones(2))
        >>> options = tfckpt.CheckpointOptions(experimental_write_callbacks=[lambda path: print("saved", path)])
        >>> path = checkpoint.save("run/ckpt", options)
        saved run/ckpt-1
    """

    experimental_io_device: str | None = None
    enable_async: bool = False
    experimental_write_callbacks: Sequence[WriteCallback] | None = None
    experimental_skip_slot_variables: bool = False
    sharded: bool = False
    staging: StagingOptions | None = None

    def __post_init__(self) -> None:
        device = canonical_device(self.experimental_io_device)
        if "/device:" in device and "/device:CPU:" not in device:
            raise InvalidArgumentError(
                f"experimental_io_device={quoted(str(self.experimental_io_device))}: files are read and written by a "
                f'CPU. Pass "cpu" or None'
            )
        for callback in self.experimental_write_callbacks or ():
            count = len(inspect.signature(callback).parameters)
            assert count <= 1, f"a write callback has one parameter, the path, or none; this one has {count}"


def run_callbacks(options: CheckpointOptions, path: str) -> None:
    """Call the write callbacks with `path`. Their exceptions are passed on."""
    for callback in options.experimental_write_callbacks or ():
        if inspect.signature(callback).parameters:
            callback(path)  # type: ignore[call-arg]
        else:
            callback()  # type: ignore[call-arg]


def checked(options: CheckpointOptions | None) -> CheckpointOptions:
    """Return the options, or the default ones. InvalidArgumentError for anything else."""
    if options is None:
        return CheckpointOptions()
    if not isinstance(options, CheckpointOptions):
        raise InvalidArgumentError(f"options must be a CheckpointOptions, got {type(options).__name__}")
    return options
