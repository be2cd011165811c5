"""Put a converted target in place; at any moment, the earlier target or the new target is complete.

A single file is renamed. If there is also a sidecar, or if files of an earlier target have to be removed, all changes
take effect together, by means of a journal (`storage.journal`) that the readers of this package follow. Programs that
read only the file itself see a single rename.

Every program that reads several .safetensors files finds them by the names in their index. Therefore new shards first
get names that the current index does not use, and then the index is replaced. If the final names of the shards were in
use, the shards get these names afterwards, by means of links and a second index:

    m.safetensors.index.json -> m-00001-of-00002.safetensors ...                      the earlier target
    m-0123456789abcdef-00001-of-00002.safetensors ...                                 new, not used yet
    m.safetensors.index.json -> m-0123456789abcdef-00001-of-00002.safetensors ...     the switch
    m.safetensors.index.json -> m-00001-of-00002.safetensors ...                      done; the other names are removed

On file systems without links, the shards keep the names with the hexadecimal number, which every loader accepts.

Programs on the same host take turns; if several programs write the same target, the last one wins.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.foreign_files.identity import IDENTITY_SIZE
from torch_tfckpt.foreign_files.safetensors_format import read_identity
from torch_tfckpt.storage.journal import finish_journals, journal_of, switch
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.small_files import write_file
from torch_tfckpt.text import printable

_log = logging.getLogger(__name__)
SHARD_ENDING: Final = re.compile(rf"(-[0-9a-f]{{{IDENTITY_SIZE}}})?-\d{{5,}}-of-\d{{5,}}\.safetensors$")

EncodeIndex = Callable[[Sequence[str]], bytes]
"""Returns the index of shards with these names, in order."""


def publish_files(path: str, files: Mapping[str, str], dropped: Iterable[str], committed: Callable[[], object]) -> None:
    """Put `files` (final path -> temporary path) in place and remove `dropped`.

    All of these are in the directory of `path`.

    Raises:
        OSError: a file operation failed; nothing was changed, unless it is an IncompleteSaveError.
    """
    with LOCAL.exclusive(os.path.dirname(path)):
        _switch(path, files, dropped, committed)


def _switch(path: str, files: Mapping[str, str], dropped: Iterable[str], committed: Callable[[], object]) -> None:
    gone = [each for each in dropped if LOCAL.exists(each)]
    if len(files) == 1 and not gone and not LOCAL.exists(journal_of(path)):
        ((final, temporary),) = files.items()
        LOCAL.replace(temporary, final)
        committed()
    else:
        switch(LOCAL, journal_of(path), files, gone, committed)


def publish_shards(
    path: str,
    index_path: str,
    shards: Sequence[tuple[str, str]],
    others: Mapping[str, str],
    dropped: Iterable[str],
    committed: Callable[[], object],
    *,
    identity: str,
    encode_index: EncodeIndex,
    used_by: Callable[[], Sequence[str]],
) -> list[str]:
    """Replace a target with several .safetensors files.

    Args:
        path: The name without shard numbers, m.safetensors.
        shards: (final path, temporary path) of each shard.
        others: Final path -> temporary path of the index and the sidecar.
        dropped: Files to remove.
        used_by: Returns the paths of the shards that the current index names.

    Returns:
        The paths at which the shards are stored now.

    Raises:
        OSError: as `publish_files`.
    """
    directory = os.path.dirname(path)
    proper = [final for final, _ in shards]
    over = False

    def switched() -> None:
        nonlocal over
        over = True
        committed()

    with LOCAL.exclusive(directory) as locked:
        finish_journals(LOCAL, directory, [os.path.basename(journal_of(path))])
        current = set(used_by())
        if locked:  # otherwise another program may be about to use them
            _remove_orphans(path, current)
        names = proper
        if LOCAL.exists(index_path) and any(map(LOCAL.exists, proper)):
            stem = path.removesuffix(".safetensors")
            names = [f"{stem}-{identity}{each.removeprefix(stem)}" for each in proper]
            _overwrite(others[index_path], encode_index([os.path.basename(name) for name in names]))
        with ExitStack() as cleanup:
            for (_, temporary), name in zip(shards, names, strict=True):
                if name not in current:  # otherwise it replaces a shard with the same bytes
                    cleanup.callback(_remove_quietly, name)
                LOCAL.replace(temporary, name)
            LOCAL.sync_directory(directory)
            try:
                _switch(path, others, ({*dropped, *current}) - {*names}, switched)
            finally:
                if over:
                    cleanup.pop_all()
        return names if names == proper else _rename(names, proper, index_path, encode_index)


def _rename(names: Sequence[str], proper: Sequence[str], index_path: str, encode_index: EncodeIndex) -> list[str]:
    """Give the shards their final names; return the names that they have afterwards. Never raises OSError."""
    try:
        for name, final in zip(names, proper, strict=True):
            LOCAL.remove(final)  # of the earlier target, if it is still there
            LOCAL.link(name, final)
        LOCAL.sync_directory(os.path.dirname(index_path))
        write_file(LOCAL, index_path, encode_index([os.path.basename(final) for final in proper]))
    except OSError as error:
        _log.info("%s: could not rename the shards to their final names: %s", printable(index_path), error)
        return list(names)
    for name in names:
        _remove_quietly(name)
    return list(proper)


def _remove_orphans(path: str, current: set[str]) -> None:
    """Remove shards left by a killed conversion: files that have an identity but are not in `current`."""
    stem = path.removesuffix(".safetensors")
    directory, base = os.path.split(stem)
    for name in LOCAL.list(directory):
        shard = os.path.join(directory, name)
        ours = name.startswith(base) and SHARD_ENDING.fullmatch(name[len(base) :]) and shard not in current
        if ours and _is_marked(shard):
            _remove_quietly(shard)


def _is_marked(path: str) -> bool:
    try:
        file = LOCAL.open(path)
    except CheckpointError:
        return False
    try:
        return read_identity(file) is not None
    except CheckpointError:
        return False
    finally:
        file.close()


def _remove_quietly(path: str) -> None:
    try:
        LOCAL.remove(path)
    except OSError as error:
        _log.info("could not remove %s: %s", printable(path), error)


def _overwrite(path: str, content: bytes) -> None:
    """Replace the bytes of a temporary file."""
    with Path(path).open("r+b") as file:
        file.truncate(0)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
