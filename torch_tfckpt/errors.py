"""Exceptions that this package raises deliberately, and helpers that build their messages.

Every message contains a place (file, tensor, bytes), a finding (expected and actual value) and a
hint. Each layer adds what it knows: `format` reports offsets in its own buffer, and the caller that knows the file
adds its path with `error_context`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

# The hint for damaged bytes.
DAMAGED: Final = "The file is damaged, partly copied, or from another save. Copy it again, or read another checkpoint"

# The beginning of TensorFlow's message if there is no checkpoint. Programs search for these words; the command line
# omits them.
NO_MATCHING_FILES: Final = "Unsuccessful TensorSliceReader constructor: Failed to find any matching files for "


class CheckpointError(Exception):
    """Base class of every error that this package raises deliberately.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> try:
        ...     tfckpt.load_file("no_such_checkpoint")
        ... except tfckpt.CheckpointError as error:
        ...     print(type(error).__name__)
        NotFoundError
    """


class NotFoundError(CheckpointError, LookupError):
    """A checkpoint, file or tensor does not exist.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"dense/kernel": torch.ones(2)}, "model.ckpt-1")
        >>> try:
        ...     tfckpt.load_variable(prefix, "dense/kernle")
        ... except tfckpt.NotFoundError as error:
        ...     print("dense/kernel" in str(error))  # the message names the closest key
        True
    """


class DataLossError(CheckpointError, ValueError):
    """Stored bytes violate the file format. Retrying does not help.

    Examples:
        >>> import pathlib, torch_tfckpt as tfckpt
        >>> size = pathlib.Path("model.ckpt-1.index").write_bytes(b"not an index" * 8)
        >>> try:
        ...     tfckpt.load_file("model.ckpt-1")
        ... except tfckpt.DataLossError as error:
        ...     print("model.ckpt-1.index" in str(error))
        True
    """


class InvalidArgumentError(CheckpointError, ValueError):
    """An argument, or a combination of arguments, is invalid.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt-1")
        >>> reader = tfckpt.load_checkpoint(prefix)
        >>> try:
        ...     reader.get_tensor("w", out=torch.empty(3))
        ... except tfckpt.InvalidArgumentError as error:
        ...     print("stored tensor is torch.float32 [2]" in str(error))
        True
    """


class UnimplementedError(CheckpointError, NotImplementedError):
    """A valid checkpoint or request that this package does not support.

    Examples:
        >>> import numpy, torch_tfckpt as tfckpt
        >>> try:
        ...     tfckpt.save_file({"day": numpy.array("2024-02-29", dtype="datetime64[D]")}, "model.ckpt-1")
        ... except tfckpt.UnimplementedError as error:
        ...     print(error)
        tensor "day": numpy dtype datetime64[D] has no torch dtype
    """


class FailedPreconditionError(CheckpointError, RuntimeError):
    """The call is not allowed in the object's current state; the message names the state.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt-1")
        >>> reader = tfckpt.load_checkpoint(prefix)
        >>> reader.close()
        >>> try:
        ...     reader.get_tensor("w")
        ... except tfckpt.FailedPreconditionError as error:
        ...     print("the reader is closed" in str(error))
        True
    """


class IncompleteSaveError(CheckpointError, OSError):
    """Some writers or ranks failed, so nothing was published.

    Attributes:
        failures: Rank or shard number -> the exception it raised.
        errno: The system's error number, if all failures have the same one; otherwise None.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> error = tfckpt.IncompleteSaveError("rank 3 of 8 failed", {3: OSError("No space left on device")})
        >>> sorted(error.failures)
        [3]
    """

    def __init__(self, message: str, failures: Mapping[int, BaseException] | None = None) -> None:
        super().__init__(message)
        self.failures: dict[int, BaseException] = dict(failures or {})
        numbers = {getattr(failure, "errno", None) for failure in self.failures.values()}
        self.errno = numbers.pop() if len(numbers) == 1 else None


@contextmanager
def error_context(place: str, hint: str = "") -> Iterator[None]:
    """Put `place` before, and `hint` after, the message of any CheckpointError raised in the `with` block."""
    try:
        yield
    except CheckpointError as error:
        raise located(error, place, hint) from error.__cause__


@contextmanager
def as_data_loss(place: str) -> Iterator[None]:
    """Convert argument errors to a DataLossError starting with `place`: the value came from a file."""
    try:
        yield
    except (CheckpointError, ValueError) as error:
        raise DataLossError(f"{place}: {error}") from error


def located(error: CheckpointError, place: str, hint: str = "") -> CheckpointError:
    """Return an error of the same class, with `place` before and `hint` after its message."""
    text = f"{place}: {error}"
    placed = type(error)(f"{text.rstrip('.')}. {hint}" if hint else text)
    placed.__dict__.update(vars(error))  # copies the `failures` of an IncompleteSaveError
    return placed
