"""The errors this package raises on purpose, and the words they share.

Every message has a place, a finding and a hint: which file, tensor and bytes; what was expected and what was found; how
to fix it. Each layer adds what it knows: `format` gives offsets in its own buffer, and whoever knows the file adds it
with `error_context`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

# The hint for damaged bytes.
DAMAGED: Final = "The file is damaged, half copied, or of another save. Copy it again, or read another checkpoint"

# How TensorFlow's message begins if there is no checkpoint: programs look for these words, people need not read them.
NO_MATCHING_FILES: Final = "Unsuccessful TensorSliceReader constructor: Failed to find any matching files for "


class CheckpointError(Exception):
    """Base of every error this package raises on purpose."""


class NotFoundError(CheckpointError, LookupError):
    """No such checkpoint, file or tensor."""


class DataLossError(CheckpointError, ValueError):
    """Stored bytes break the format. Retrying does not help."""


class InvalidArgumentError(CheckpointError, ValueError):
    """The caller asked for something that cannot be right."""


class UnimplementedError(CheckpointError, NotImplementedError):
    """A valid checkpoint, or a valid wish, that this package does not handle yet."""


class FailedPreconditionError(CheckpointError, RuntimeError):
    """The object is in a state, named in the text, in which the call makes no sense."""


class IncompleteSaveError(CheckpointError, OSError):
    """Some writer or rank failed, so nothing was published. `failures`: rank or shard -> exception."""

    def __init__(self, message: str, failures: Mapping[int, BaseException] | None = None) -> None:
        super().__init__(message)
        self.failures: dict[int, BaseException] = dict(failures or {})


@contextmanager
def error_context(place: str, hint: str = "") -> Iterator[None]:
    """Put `place` before, and `hint` after, the message of any CheckpointError raised inside."""
    try:
        yield
    except CheckpointError as error:
        raise located(error, place, hint) from error.__cause__


@contextmanager
def as_data_loss(place: str) -> Iterator[None]:
    """Turn argument errors into a DataLossError that begins with `place`: the bad value came from a file."""
    try:
        yield
    except (CheckpointError, ValueError) as error:
        raise DataLossError(f"{place}: {error}") from error


def located(error: CheckpointError, place: str, hint: str = "") -> CheckpointError:
    """The same kind of error, with `place` before and `hint` after its message."""
    text = f"{place}: {error}"
    placed = type(error)(f"{text.rstrip('.')}. {hint}" if hint else text)
    placed.__dict__.update(vars(error))  # the failures of an IncompleteSaveError
    return placed
