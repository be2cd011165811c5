"""Calls that one rank has not made: how it finds the call of the others that its next one belongs to.

The ranks number their calls, and the n-th call of one rank belongs to the n-th of the others. If a rank skips a save,
because an error prevented it or it came too late, the others end this call without it. Its next call would have the
number of a call that has ended, and all later calls would be one late. So a rank that finds such a failure of another
call takes the number of its own: the one under which rank 0 has begun the same call, or else the first that has not
ended yet.
"""

import json
from hashlib import blake2s
from typing import TYPE_CHECKING, Any, Final

from torch_tfckpt.distributed.failures import parsed
from torch_tfckpt.distributed.store_thread import peek

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_KEPT: Final = 64  # calls of rank 0 that other ranks can find


def call_text(action: str, target: str) -> str:
    """Return a short text that is equal for equal calls; "" if the target is not known."""
    return target and blake2s(f"{action} {target}".encode(errors="surrogateescape"), digest_size=8).hexdigest()


class RecentCalls:
    """The latest calls of rank 0."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # by `call_text`, in the order of the numbers

    def add(self, call: str, number: int) -> None:
        if call:
            self._numbers.pop(call, None)
            self._numbers[call] = number
        while len(self._numbers) > _KEPT:
            del self._numbers[next(iter(self._numbers))]

    def encode(self) -> str:
        """Return it as the text that is stored."""
        return json.dumps(self._numbers)


def number_to_join(store: "Store", number: int, call: str, forgotten: int) -> int:
    """Return the number of the call to take part in: `number`, or a later one if this rank has skipped some.

    Args:
        call: `call_text` of the call.
        forgotten: The `last_forgotten`.
    """
    while call:
        failed = _failed_call(store, number)
        if failed in ("", call) or (failed is None and number > forgotten):
            break  # this one, or one that has not ended
        known = _number_at_rank_0(store, call)
        if known and known <= number:
            break  # this rank comes late
        number = known or max(number, forgotten) + 1
    return number


def last_forgotten(store: "Store") -> int:
    """Return the number of the last call whose outcome rank 0 has removed although some ranks had not read it."""
    ended = peek(store, "ended")
    return int(ended) if ended is not None and ended.isdigit() and len(ended) < 20 else 0


def _failed_call(store: "Store", number: int) -> str | None:
    """Return the `call_text` of a call that has failed, "" if it is not known; None if it has not ended."""
    value = peek(store, f"{number}/state")
    if value is None:
        return None
    found = _object(value)
    text = found.get("call", "")
    return text if "failed" in found and isinstance(text, str) else ""


def _number_at_rank_0(store: "Store", call: str) -> int:
    """Return the number under which rank 0 has begun a call; 0 if it has not."""
    number = _object(peek(store, "latest") or b"{}").get(call, 0)
    return number if isinstance(number, int) else 0


def _object(value: bytes) -> dict[str, Any]:
    try:
        return parsed(value, "it")
    except ValueError:
        return {}  # whoever reads the state next reports it
