"""The errors this package raises on purpose, and the words they share.

Every text says place, finding, mend: which file, tensor and bytes; what was expected and what was found; what to do. A
layer says what it knows. `format` speaks of offsets in its own buffer; whoever knows the file adds it with
`error_context`.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


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


def located(error: CheckpointError, place: str, mend: str = "") -> CheckpointError:
    """The same kind of error, its text put in its place."""
    text = f"{place}: {error}"
    return type(error)(f"{text.rstrip('.')}. {mend}" if mend else text)


def printable(path: str) -> str:
    """`path` as text that any stream takes: bytes that are no UTF-8 come out as \\xNN."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """'Closest: "a", "b".', or nothing where no known name is close."""
    # difflib is quadratic in the length of the names and linear in their number: bounded here, since it runs on the way
    # to an error and nobody waits a minute for a hint.
    candidates = [name for _, name in zip(range(20_000), known, strict=False) if abs(len(name) - len(wanted)) <= 20]
    close = difflib.get_close_matches(wanted[:200], candidates, n=3, cutoff=0.75)
    return f"Closest: {', '.join(quoted(name) for name in close)}." if close else ""


def quoted(name: str, limit: int = 200) -> str:
    """A tensor or file name in double quotes, control characters escaped, cut where a text could not hold it."""
    shown = name if len(name) <= limit else f"{name[: limit - 20]}...{name[-10:]}"
    return '"' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown) + '"'
