"""Numbers in the names of variables that are joined: "emb/part_0" to "emb/part_15".

Contract: if the names differ in one number only, none may be missing between the first and the last. Otherwise the rows
after the gap would move up, and the shape would not reveal this if the module has as many rows as are left.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import quoted

_NUMBER: Final = re.compile(r"(\d{1,9})")


def check_numbers(names: Sequence[str]) -> None:
    """Raise InvalidArgumentError if a number is missing in the sorted names that one pattern matches."""
    split = [_NUMBER.split(name) for name in names]
    if len({len(parts) for parts in split}) != 1:
        return
    changing = [at for at, parts in enumerate(zip(*split, strict=True)) if len(set(parts)) > 1]
    if len(changing) != 1 or changing[0] % 2 == 0:
        return
    [at] = changing
    numbers = [int(parts[at]) for parts in split]
    missing = next((one + 1 for one, other in pairwise(sorted(numbers)) if other > one + 1), None)
    if missing is not None:
        padded = max((len(parts[at]) for parts in split if parts[at].startswith("0")), default=0)
        absent = "".join([*split[0][:at], str(missing).zfill(padded), *split[0][at + 1 :]])
        raise InvalidArgumentError(
            f"{quoted(absent)} is not stored, but {quoted(names[-1])} is: a part is missing. If all parts are there, "
            f"list their names in the rule instead of one pattern"
        )
