"""The errors of ranks: as JSON for the store, and in the message that every rank raises.

Errors are never pickled: their class name, text and errno are sent, and only errors of this package and a few of Python
become exceptions of the same class again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch_tfckpt import errors
from torch_tfckpt.errors import CheckpointError, IncompleteSaveError
from torch_tfckpt.text import and_more

LONGEST_VALUE: Final = 64 << 20  # bytes of one value in the store
_LONGEST_TEXT: Final = 4_000  # characters of one error
_LISTED: Final = 8  # ranks that a message names

_CLASSES: Final[dict[str, type[Exception]]] = {
    **{
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, CheckpointError)
    },
    **{
        kind.__name__: kind
        for kind in (
            *(AttributeError, IndexError, KeyError, LookupError, MemoryError, NotImplementedError, OSError),
            *(FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
            *(RuntimeError, TimeoutError, TypeError, ValueError),
        )
    },
}

Failures = Mapping[int, BaseException]


def described(error: BaseException) -> dict[str, object]:
    """Return an error as JSON."""
    if isinstance(error, IncompleteSaveError) and len(error.failures) == 1:
        (error,) = error.failures.values()  # the system's error; its wrapper names only this rank's part
    number = getattr(error, "errno", None)
    text = str(error)[:_LONGEST_TEXT]
    return {"type": type(error).__name__, "text": text, "errno": number if isinstance(number, int) else None}


def as_exception(description: object) -> BaseException:
    """Return the exception that `described` has described; raise ValueError if it is something else."""
    if not isinstance(description, dict):
        raise ValueError("a failure is not an object")
    name, text, number = (description.get(key) for key in ("type", "text", "errno"))
    if not isinstance(name, str) or not isinstance(text, str) or not isinstance(number, int | None):
        raise ValueError("a failure has no type and text")
    kind = _CLASSES.get(name)
    if kind is KeyError:
        return KeyError(text.strip("'"))
    if kind is None:
        return RuntimeError(f"{name}: {text}")
    error = kind(text)
    if isinstance(error, OSError):
        error.errno = number
    return error


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a save or restore has failed.

    Attributes:
        failures: Rank -> its error.
        common: One message instead of the errors of the ranks, if they are about the same thing.
        in_place: Whether the checkpoint is published nevertheless.
    """

    failures: Failures
    common: str = ""
    in_place: bool = False

    def encode(self, call: str) -> str:
        """Return it as the text that is stored. `call`: which call has failed."""
        failed = {str(rank): described(error) for rank, error in self.failures.items()}
        return json.dumps({"failed": failed, "common": self.common, "in_place": self.in_place, "call": call})

    @property
    def missing(self) -> list[int]:
        """The ranks that were not heard of."""
        return [rank for rank, error in self.failures.items() if isinstance(error, TimeoutError)]


def decoded(value: Mapping[str, Any], world_size: int) -> Outcome:
    """Return the outcome that `encode` has stored; raise ValueError if it is something else."""
    failed = value["failed"]
    if not isinstance(failed, dict) or not failed:
        raise ValueError("no failures")
    ranks = {int(rank): as_exception(each) for rank, each in failed.items()}
    if not all(0 <= rank < world_size for rank in ranks):
        raise ValueError("a rank does not exist")
    common = value.get("common", "")
    return Outcome(ranks, common if isinstance(common, str) else "", value.get("in_place") is True)


def parsed(value: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in a value of the store; raise ValueError if it is something else."""
    if len(value) > LONGEST_VALUE:
        raise ValueError(f"{what} has {len(value)} bytes, more than {LONGEST_VALUE}")
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError(f"{what} is not a JSON object")
    return found


def of_all(place: str, outcome: Outcome, world_size: int, consequence: str) -> IncompleteSaveError:
    """Return the error that every rank raises.

    Args:
        place: What the ranks were doing: "save of run/m-1".
        consequence: What has, or has not, happened, and what to do.
    """
    ranks = sorted(outcome.failures)
    shown = "; ".join(_of_rank(rank, outcome.failures[rank], world_size) for rank in ranks[:_LISTED])
    found = outcome.common or f"{shown}{and_more(len(ranks), _LISTED)}"
    return IncompleteSaveError(f"{place}: {found}. {consequence}", outcome.failures)


def _of_rank(rank: int, error: BaseException, world_size: int) -> str:
    if isinstance(error, TimeoutError):
        return f"rank {rank} of {world_size}: {error}"
    kind = "" if isinstance(error, CheckpointError | OSError) else f"{type(error).__name__}: "
    return f"rank {rank} of {world_size} failed: {kind}{str(error).rstrip('.')}"
