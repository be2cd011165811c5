"""The errors this package raises on purpose, and the words they share.

Every text says place, finding, mend: which file, tensor and bytes; what was expected and what was found; what to do. A
layer says what it knows. `format` speaks of offsets in its own buffer; whoever knows the file adds it with
`error_context`.
"""

import difflib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

# The mend for bytes that are not what they should be.
DAMAGED: Final = "The file is damaged, half copied, or of another save. Copy it again, or read another checkpoint"
_LOOKED_AT: Final = 200  # names that a hint is chosen from


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
def error_context(place: str, mend: str = "") -> Iterator[None]:
    """Puts `place` before, and `mend` behind, the text of any CheckpointError raised inside."""
    try:
        yield
    except CheckpointError as error:
        raise located(error, place, mend) from error.__cause__


@contextmanager
def as_data_loss(place: str) -> Iterator[None]:
    """What would be a wrong argument is broken bytes where a file says it: a DataLossError that begins with `place`."""
    try:
        yield
    except (CheckpointError, ValueError) as error:
        raise DataLossError(f"{place}: {error}") from error


def located(error: CheckpointError, place: str, mend: str = "") -> CheckpointError:
    """The same kind of error, its text put in its place."""
    text = f"{place}: {error}"
    placed = type(error)(f"{text.rstrip('.')}. {mend}" if mend else text)
    placed.__dict__.update(vars(error))  # the failures of an IncompleteSaveError
    return placed


def printable(path: str) -> str:
    """`path` as text that any stream takes: bytes that are no UTF-8 come out as \\xNN."""
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file name holds
        return path.encode("utf-8", "backslashreplace").decode()


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """'Closest: "a", "b".', or nothing where no known name is close."""
    # difflib takes a millisecond for a pair of long names, and nobody waits a minute for a hint. A typo leaves most of
    # a name as it is, so only those that begin or end most like it are looked at.
    wanted = wanted[:200]
    near = [name for name in known if abs(len(name) - len(wanted)) <= 20]
    best = heapq.nlargest(_LOOKED_AT, near, key=lambda name: _common(name, wanted) + _common(name[::-1], wanted[::-1]))
    close = difflib.get_close_matches(wanted, best, n=3, cutoff=0.75)
    return f"Closest: {', '.join(quoted(name) for name in close)}." if close else ""


def _common(a: str, b: str) -> int:
    """Characters that two names have in common at their beginnings."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def escaped(name: str, limit: int = 200) -> str:
    """A tensor or file name for a line of text: control characters escaped, cut where the line could not hold it."""
    shown = name if len(name) <= limit else f"{name[: limit - 20]}...{name[-10:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def quoted(name: str) -> str:
    """`escaped` in double quotes."""
    return f'"{escaped(name)}"'
