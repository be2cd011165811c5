"""Saves and restores of saveables by all ranks of a program, for a Saver or a Checkpoint.

`distributed.rank_save` writes and publishes; here saveables become its entries.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.distributed.calls import RankCalls, calls_of
from torch_tfckpt.distributed.commit import Commit, Json
from torch_tfckpt.distributed.comparison import Entry
from torch_tfckpt.distributed.rank_save import RankSave, telling_the_others
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError
from torch_tfckpt.save_restore.builder import BaseSaverBuilder, Saveables, writes_in_bulk
from torch_tfckpt.save_restore.restore import Agree, alone
from torch_tfckpt.saveables.save_spec import slice_of, specs_of, value_of
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.transfer.staging import Staging


def calls_for(ranks: object, builder: BaseSaverBuilder | None, write_version: int) -> RankCalls | None:
    """Return `calls_of(ranks)`; raise InvalidArgumentError if ranks cannot write with this builder or version."""
    calls = calls_of(ranks)
    if calls is not None and (write_version == SaverDef.V1 or (builder is not None and not writes_in_bulk(builder))):
        raise InvalidArgumentError(
            "ranks: the ranks write version 2 together, with the default builder. Omit write_version and builder"
        )
    return calls


def begin_rank_save(
    ranks: RankCalls,
    commit: Commit,
    storage: Storage,
    path: str,
    saveables: Callable[[], Saveables],
    *,
    sharded: bool,
    snapshot: bool,
    staging: Staging,
    note: Json | None = None,
) -> RankSave:
    """Begin to write this rank's part of a checkpoint. Arguments as for `begin_save` and RankSave.

    Args:
        saveables: Returns what to save; if it raises, the other ranks are told.
    """
    with telling_the_others(ranks, commit):
        entries = [
            Entry(
                spec.name,
                value_of(spec),
                slice_of(spec) if spec.slice_spec else None,
                spec.dtype,
                spec.device if sharded else "",
            )
            for spec in specs_of(saveables())
        ]
    return RankSave(ranks, commit, storage, path, entries, staging, snapshot=snapshot, note=note)


class _RestoreStopped(Exception):
    """Carries the error of another rank past the handlers for errors of this rank's own restore."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def agreed_restore(ranks: RankCalls | None, path: str) -> Iterator[Agree]:
    """Restore on all ranks, or on none.

    Yields:
        A function to call when everything is read and checked, and before the first value is assigned: it returns
        when all ranks have called it.

    Raises:
        The error of the rank that has failed, or IncompleteSaveError if a rank is missing; nothing is assigned.
    """
    if ranks is None:
        yield alone
        return
    commit = ranks.begin("restore", path)

    def agree() -> None:
        if commit.is_over:
            return
        try:
            commit.report({})
            if ranks.rank:
                commit.result()
            else:
                commit.gather()
                commit.go()
                commit.conclude({})
        except CheckpointError as error:
            raise _RestoreStopped(error) from error
        finally:
            ranks.ended(commit)

    try:
        with telling_the_others(ranks, commit):
            yield agree
            agree()
    except _RestoreStopped as stopped:
        raise stopped.error from None
