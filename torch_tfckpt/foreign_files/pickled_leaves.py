"""The leaves of a decoded pickle: its values that are not containers, with names made from their keys.

Containers of a pickle may share items, or contain themselves, so that a small file can have any number of leaves, at
any depth. Guaranteed for every pickle: at most MAX_DEPTH levels, and work that is linear in its size.
"""

from collections.abc import Iterator
from typing import Any, Final

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.foreign_files.pickled_values import Opaque, PickledDict, PickledStorage, Reference, dtype_of
from torch_tfckpt.text import escaped, quoted

MAX_DEPTH: Final = 64  # of nested containers
MAX_SHARED_VALUES: Final = 100_000  # allowed in any pickle, however small; a larger pickle may have one value per byte
MAX_NAME_CHARACTERS: Final = 64  # of all names together, per byte of the pickle
_MIN_NAME_CHARACTERS: Final = 64 * 1024 * 1024
_MAX_KEY_ITEMS: Final = 16  # of a tuple that is a dictionary key
_SHOWN: Final = 60  # characters of a skipped value


def named_leaves(value: Any, pickle_bytes: int) -> Iterator[tuple[str, Any]]:
    """Yield all values that are not containers, named by their keys, joined with dots.

    Raises:
        DataLossError: containers are nested too deeply, contain themselves, or share so many items that there are too
            many leaves for the size of the pickle.
    """
    allowed = max(MAX_SHARED_VALUES, pickle_bytes)
    characters = max(_MIN_NAME_CHARACTERS, MAX_NAME_CHARACTERS * pickle_bytes)
    # The remaining items of each open container, outermost first.
    open_containers: list[Iterator[tuple[str, Any]]] = [iter([("", value)])]
    while open_containers:
        item = next(open_containers[-1], None)
        if item is None:
            open_containers.pop()
            continue
        name, value = item
        allowed -= 1
        characters -= len(name)
        if allowed < 0 or characters < 0:
            raise DataLossError(
                f"its containers share items so often that they expand to more values than a pickle of {pickle_bytes} "
                "bytes should have"
            )
        pairs = _pairs_of(value)
        if pairs is None:
            yield name, value
        elif len(open_containers) > MAX_DEPTH:
            raise DataLossError(f"{quoted(name)}: containers are nested more than {MAX_DEPTH} deep")
        else:
            open_containers.append(_below(name, pairs))


def _below(name: str, pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    return ((name_below(name, key), item) for key, item in pairs)


def name_below(name: str, key: str) -> str:
    """Return the name of a container's item, from the container's name and the item's key as text."""
    return f"{name}.{key}" if name else key


def _pairs_of(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Return (key as text, item) for each item of a non-empty container; None for all other values."""
    if isinstance(value, PickledDict) and value.pairs:
        return map(_named_pair, value.pairs)
    if type(value) in (list, tuple) and value:
        return ((str(number), item) for number, item in enumerate(value))
    return None


def _named_pair(pair: Any) -> tuple[str, Any]:
    if type(pair) not in (list, tuple) or len(pair) != 2:
        raise DataLossError("damaged pickle: a dictionary is made of values that are not pairs")
    key, item = pair
    return key_text(key), item


def key_text(key: Any) -> str:
    """Return a dictionary key as part of a name; raise DataLossError if it is not a plain value."""
    if isinstance(key, Reference):
        return key.path
    if _is_plain(key) or (type(key) is tuple and len(key) <= _MAX_KEY_ITEMS and all(map(_is_plain, key))):
        return key if isinstance(key, str) else str(key)
    raise DataLossError(f"a key of a dictionary is not a plain value: {describe(key)}")


def _is_plain(key: object) -> bool:
    return key is None or type(key) in (str, bytes, int, float, bool)


def describe(leaf: Any) -> str:
    """Return the kind and the beginning of a value that is not a tensor, for a list of what was skipped."""
    if isinstance(leaf, Opaque):
        return leaf.kind
    if isinstance(leaf, Reference):
        what = "dtype" if dtype_of(leaf) is not None else "reference to"
        return f"{what} {leaf.path}"
    if isinstance(leaf, PickledDict):
        return "dict {}" if not leaf.pairs else "dict"
    if isinstance(leaf, PickledStorage):
        return "storage without a tensor"
    if isinstance(leaf, str | bytes):
        leaf = leaf[:_SHOWN]
    elif isinstance(leaf, list | tuple) and leaf:
        return type(leaf).__name__
    return f"{type(leaf).__name__} {escaped(repr(leaf)[:_SHOWN])}"
