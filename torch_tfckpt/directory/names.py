"""Match names in a directory: those that belong to a checkpoint, and what a pattern stands for.

What exists as written is taken as written; a path is a pattern only where nothing of that very name exists, so brackets
in names do no harm.

Source: tensorflow/python/training/checkpoint_management.py.
"""

import fnmatch
import os
import re
from collections.abc import Iterable
from typing import Final

from torch_tfckpt.format.tensor_bundle import index_filename, parse_data_filename
from torch_tfckpt.storage.protocol import Storage

STATE_FILE: Final = "checkpoint"
V1_SHARD: Final = re.compile(r"(?P<prefix>.*)-(?P<shard>[0-9]{5,}|\?+)-of-(?P<count>[0-9]{5,})", re.DOTALL)


def of_version_2(name: str) -> bool:
    """Whether `name` is that of a file beside which version 1 files are not looked for."""
    return name.endswith((".index", ".meta")) or parse_data_filename(name) is not None or name == STATE_FILE


def is_there(storage: Storage, prefix: str) -> bool:
    """Whether a checkpoint of either version has this very prefix or pattern. Looks at names only."""
    return (
        storage.exists(index_filename(prefix))
        or storage.exists(prefix)
        or bool(matching(storage, prefix))
        or bool(matching(storage, index_filename(prefix), indexes=True))
    )


def matching(storage: Storage, pattern: str, *, indexes: bool = False) -> tuple[str, ...]:
    """Files whose last component matches; those of version 2 and meta graphs only where `indexes` asks for them."""
    directory, last = os.path.split(pattern)
    if not any(sign in last for sign in "*?["):
        return ()
    names = [name for name in storage.list(directory) if fnmatch.fnmatchcase(name, last)]
    if not indexes:
        names = [name for name in names if not of_version_2(name)]
    paths = [os.path.join(directory, name) for name in names]
    return tuple(path for path in paths if not storage.is_directory(path))


def prefixes_of(names: Iterable[str]) -> set[str]:
    """The checkpoints that `names` tell of; an unsharded one of version 1 has no telling name."""
    names = list(names)
    found = {name.removesuffix(".index") for name in names if name.endswith(".index")}
    return found | {
        match["prefix"] for name in names if (match := V1_SHARD.fullmatch(name)) and parse_data_filename(name) is None
    }
