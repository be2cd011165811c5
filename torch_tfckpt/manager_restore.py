"""Restore the newest complete and undamaged checkpoint, from which a CheckpointManager continues.

Only a checkpoint that is known to be damaged is skipped. If a system error prevents checking it, or if it does not fit
the objects, the error is raised: restoring an older checkpoint would conceal the problem.
"""

import logging
import os
from collections.abc import Sequence
from typing import Final, Protocol

from torch_tfckpt.directory.completeness import check_complete
from torch_tfckpt.directory.manager_records import ManagerRecords
from torch_tfckpt.directory.names import STATE_FILE
from torch_tfckpt.errors import CheckpointError, DataLossError
from torch_tfckpt.objects.status import CheckpointLoadStatus, NameBasedSaverStatus
from torch_tfckpt.storage.refusals import is_refusal
from torch_tfckpt.text import listed, printable

_REASONS: Final = 3  # maximum number of reasons in an error message

_log = logging.getLogger(__name__)


class Restorable(Protocol):
    """The object that a manager restores."""

    def restore(self, path: str) -> object:
        """Restore the values from a checkpoint."""


def restore_named(checkpoint: Restorable, records: ManagerRecords) -> str | None:
    """Restore the checkpoint that the state file names, if any, and return its path.

    Raises:
        DataLossError: the state file, or the checkpoint, is damaged.
        Any other error of `checkpoint.restore`.
    """
    if records.damage is not None:
        raise records.damage
    if records.named is not None:
        _restore(checkpoint, records.named)
    return records.named


def restore_newest(checkpoint: Restorable, records: ManagerRecords, directory: str) -> str | None:
    """Restore the newest checkpoint that is undamaged, and return its path; None in the first run.

    Raises:
        DataLossError: no checkpoint can be restored, although this is not the first run.
        FailedPreconditionError: a system error prevents reading a file.
        Any other error of `checkpoint.restore`.
    """
    problems: dict[str, CheckpointError] = {}
    for path in records.candidates():
        problem = _damage_or_restore(checkpoint, records, path)
        if problem is None:
            if problems:
                _log.warning("%s was restored, since newer checkpoints are damaged", printable(path))
                records.passed_over(list(problems))
            return path
        _log.warning("%s is skipped: %s", printable(path), problem)
        problems[path] = problem
    if not records.is_first_run:
        raise nothing_to_restore(records, directory, list(problems.values()))
    return None


def _damage_or_restore(checkpoint: Restorable, records: ManagerRecords, path: str) -> CheckpointError | None:
    """Restore a checkpoint; if it is incomplete or damaged, return the error instead. Other errors are raised."""
    try:
        check_complete(records.storage, path)
    except CheckpointError as error:
        if is_refusal(error):
            raise
        return error
    try:
        _restore(checkpoint, path)
    except DataLossError as error:  # other errors mean that names, types or shapes do not match the objects
        if is_refusal(error):
            raise
        return error
    return None


def _restore(checkpoint: Restorable, path: str) -> None:
    """Restore, and log a warning that names the objects whose values are not in the checkpoint."""
    status = checkpoint.restore(path)
    if not isinstance(status, CheckpointLoadStatus | NameBasedSaverStatus):
        return
    try:
        status.assert_existing_objects_matched()
    except AssertionError as error:
        _log.warning("some objects were not restored: %s", error)


def nothing_to_restore(records: ManagerRecords, directory: str, problems: Sequence[CheckpointError]) -> DataLossError:
    """Return the error for a directory that was used before, but from which nothing can be restored."""
    reasons = [str(problem) for problem in (records.damage, *problems) if problem is not None]
    shown = listed(reasons, _REASONS, str) or "none is complete"
    return DataLossError(
        f"{printable(directory or os.curdir)}: checkpoints were saved here, but none can be restored: {shown}. "
        f"Copy a complete checkpoint there; to start over, remove the files, including `{STATE_FILE}`"
    )
