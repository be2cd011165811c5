"""Find the prefix of stored names: "model/" if "fc.weight" is wanted and "model/fc.weight" is stored."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from torch_tfckpt.text import quoted

_LOOKED_AT: Final = 8  # only the most frequent prefixes are tried: each costs a pass over the stored names
_SHOWN: Final = 4  # maximum number of prefixes in a hint
_SEPARATOR: Final = "/"  # between the key of a module in a var_list and the names in the module


def prefixes_of_names(stored: Iterable[str], wanted: Mapping[str, set[str]], separator: str) -> dict[str, set[str]]:
    """Return each prefix, including "", with the wanted names that are found below it.

    Args:
        wanted: Name without prefix -> the wanted names that it stands for.
        separator: Last character of a prefix.

    Cost: looks at each stored name once, and at each suffix of it that is short enough to be wanted.
    """
    found: dict[str, set[str]] = {}
    longest = max(map(len, wanted), default=0)
    for name in stored:
        for start in _starts(name, len(name) - longest, separator):
            if name[start:] in wanted:
                found.setdefault(name[:start], set()).update(wanted[name[start:]])
    return found


def _starts(name: str, earliest: int, separator: str) -> Iterator[int]:
    """Yield the offsets of a name's parts from `earliest` on; earlier ones leave too much of it to match."""
    if earliest <= 0:
        yield 0
    at = name.find(separator, max(0, earliest - 1))
    while at >= 0:
        yield at + 1
        at = name.find(separator, at + 1)


class _OtherPrefix(NamedTuple):
    """Names that are stored below a different prefix."""

    wanted: str  # their prefix in the Saver
    stored: str  # their prefix in the checkpoint
    found: int  # how many of them are stored below `stored`
    total: int  # how many names have the prefix `wanted`


def prefix_hint(wanted: Collection[str], stored: Collection[str]) -> str:
    """Return a hint if the names of a Saver are stored below a different prefix; "" if they are not.

    A prefix is considered only if at least two of the names, and more than half of all, are found below it.
    """
    candidates: list[_OtherPrefix] = []
    own = Counter(name[: name.find(_SEPARATOR) + 1] for name in wanted)
    for prefix in ("", *(prefix for prefix, _ in own.most_common(_LOOKED_AT) if prefix)):
        names = {name[len(prefix) :] for name in wanted if name.startswith(prefix)}
        for other, of in prefixes_of_names(stored, {name: {name} for name in names}, _SEPARATOR).items():
            if other != prefix and len(of) > max(1, len(names) // 2):
                candidates.append(_OtherPrefix(prefix, other, len(of), len(names)))
    if not candidates:
        return ""
    best = max(candidates, key=lambda each: each.found)
    rivals = [each.stored for each in candidates if (each.wanted, each.found) == (best.wanted, best.found)]
    here = f"All {best.total} names" if best.found == best.total else f"{best.found} of {best.total} names"
    here += f" below {quoted(best.wanted)}" if best.wanted else ""
    there = " or ".join(f"below {quoted(prefix)}" if prefix else "without a prefix" for prefix in rivals[:_SHOWN])
    key = quoted(best.stored.removesuffix(_SEPARATOR))
    if not best.stored:
        fix = f"Pass the value under {quoted(best.wanted.removesuffix(_SEPARATOR))} itself: Saver(model)"
    elif best.wanted:
        fix = f"Name it {key} in the saver: Saver({{{key}: model}})"
    else:
        fix = f"Name it in the saver: Saver({{{key}: model}})"
    return f"{here} are stored {there}. {fix}"
