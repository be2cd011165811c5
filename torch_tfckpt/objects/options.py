"""CheckpointOptions: how a Checkpoint saves and restores.

Source: tensorflow/python/checkpoint/checkpoint_options.py; spec: SAVER 7.
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

    Raises:
        AssertionError: a callback wants more than one argument.
        InvalidArgumentError: an `experimental_io_device` that is no CPU.
    """

    experimental_io_device: str | None = None
    """The device whose host does all that happens to files. That is this one, so any spelling of a CPU will do."""
    enable_async: bool = False
    """`save` and `write` return as soon as training may go on; `sync` waits for the rest."""
    experimental_write_callbacks: Sequence[WriteCallback] | None = None
    """Functions that are called in this order once a checkpoint is published, with its path or with nothing."""
    experimental_skip_slot_variables: bool = False
    """Leave out optimizers: their slot variables and all other state of theirs."""
    sharded: bool = False
    """One data file for each device, as of Saver(sharded=True), instead of one for each host."""

    staging: StagingOptions | None = None
    """How much host memory saves may take, and how many threads; of the Checkpoint from then on. None: as before."""

    def __post_init__(self) -> None:
        device = canonical_device(self.experimental_io_device)
        if "/device:" in device and "/device:CPU:" not in device:
            raise InvalidArgumentError(
                f"experimental_io_device={quoted(str(self.experimental_io_device))}: files are read and written by a "
                f'CPU. Pass "cpu", or nothing'
            )
        for callback in self.experimental_write_callbacks or ():
            count = len(inspect.signature(callback).parameters)
            assert count <= 1, f"a write callback takes the path or nothing, this one takes {count} arguments"

    def run_callbacks(self, path: str) -> None:
        """Calls them with `path`. Whatever they raise."""
        for callback in self.experimental_write_callbacks or ():
            if inspect.signature(callback).parameters:
                callback(path)  # type: ignore[call-arg]
            else:
                callback()  # type: ignore[call-arg]
