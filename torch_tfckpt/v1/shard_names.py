"""Names of the shards of a version 1 checkpoint, and their publication in one step.

Contents and names are as in TensorFlow, so a shard does not show which save it belongs to. While the shards of a
save are being renamed, a journal lists them (`storage.journal`), and the readers of this package follow it: they find
all old shards or all new ones, at every moment and after a kill. TensorFlow's reader finds a mix during the
renames, and after a kill until the next save into that directory.

Shards of an earlier save with a different count (m-00000-of-00002 before m-00000-of-00003) are removed after the
switch.
"""

import os
import re
from collections.abc import Sequence
from typing import Final

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.storage.journal import Journal, journal_of, read_journal, switch
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable

V1_SHARD: Final = re.compile(r"(?P<prefix>.*)-(?P<shard>[0-9]{5,}|\?+)-of-(?P<count>[0-9]{5,})", re.DOTALL)


def shard_names(prefix: str, count: int) -> list[str]:
    """Return the paths of all shards."""
    return [f"{prefix}-{shard:05d}-of-{count:05d}" for shard in range(count)]


def shard_pattern(prefix: str, count: int) -> str:
    """Return the pattern by which a `checkpoint` file refers to the shards."""
    return f"{prefix}-?????-of-{count:05d}"


def publish_shards(storage: Storage, prefix: str, temporaries: Sequence[str], committed: list[bool]) -> None:
    """Publish `temporaries`, complete and durable files, as the shards of `prefix`, replacing all others.

    Args:
        committed: An item is appended once the new shards may be in place; from then on, `temporaries` must not be
            removed.

    Raises:
        OSError: a step failed; nothing was changed, unless the error is an IncompleteSaveError.
    """
    directory, base = os.path.split(prefix)
    targets = shard_names(prefix, len(temporaries))
    with storage.exclusive(directory):
        others = {
            os.path.join(directory, name)
            for name in storage.list(directory)
            if (match := V1_SHARD.fullmatch(name)) is not None and match["prefix"] == base and "?" not in match["shard"]
        }
        switch(
            storage,
            journal_of(prefix),
            dict(zip(targets, temporaries, strict=True)),
            sorted(others - set(targets)),
            lambda: committed.append(True),
        )


def unfinished_shards(storage: Storage, prefix: str) -> Journal | None:
    """Return the journal of a save of `prefix` whose shards are not all renamed; None if there is none.

    Raises:
        DataLossError: it is damaged, or lists files that are not shards of `prefix`.
    """
    journal = read_journal(storage, journal_of(prefix))
    if journal is None:
        return None
    if list(journal.files) != [os.path.basename(path) for path in shard_names(prefix, len(journal.files))]:
        raise DataLossError(
            f"{printable(journal.path)}: lists files that are not shards of {printable(prefix)}. Delete it to use "
            f"the shards as they are"
        )
    return journal
