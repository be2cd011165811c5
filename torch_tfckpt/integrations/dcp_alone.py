"""Saves with use_collectives=False: each rank plans alone, and the ranks agree over the store of the process group.

DCP then calls all methods of the writer on every rank, with the rank's own plan only, and nothing removes what several
ranks have. So each rank decides what is its own:

    DTensors         the rank that has the first replica
    everything else  the rank with the number crc32(name) modulo the number of ranks

In `finish` every rank reports what it has written, and the names of all its values. Rank 0 publishes the checkpoint if
each of them was written by somebody. A rank that fails tells the others (`distributed.commit`).
"""

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType

from torch_tfckpt.distributed.rank_save import writer_of
from torch_tfckpt.distributed.ranks import Ranks
from torch_tfckpt.distributed.shards import is_dtensor, local_shard
from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    IncompleteSaveError,
    InvalidArgumentError,
)
from torch_tfckpt.integrations.dcp_names import Path
from torch_tfckpt.text import printable, quoted

_FAILED: Final = "failed"  # in the result that rank 0 tells


@dataclass(frozen=True, slots=True)
class RankPart:
    """What one rank has written.

    Attributes:
        rank: Its number.
        path: Its data file, with a temporary name; "" if it has written no tensor.
        index: The index entries of its tensors, as the shard with the rank's number.
        values: Name -> JSON of the values that are not tensors.
    """

    rank: int
    path: str
    index: bytes
    values: dict[str, str]


@dataclass(frozen=True, slots=True)
class RankNames:
    """The names of all values of a rank's state_dict.

    Attributes:
        tensors: Name of a tensor -> its path.
        others: Name of any other value -> its path.
        forms: Name of a tensor -> its dtype and whole shape.
    """

    tensors: Mapping[str, Path]
    others: Mapping[str, Path]
    forms: Mapping[str, str]


class CommitOverStore:
    """One save of all ranks of the default process group.

    Args:
        rank: This rank, as DCP knows it.

    Raises:
        InvalidArgumentError: DCP saves on another process group.
        IncompleteSaveError: by every method: another rank has failed, or is missing.
    """

    def __init__(self, ranks: Ranks, prefix: str, rank: int) -> None:
        if rank != ranks.rank:
            raise InvalidArgumentError(
                f"use_collectives=False works on the default process group only: this is rank {ranks.rank} there, and "
                f"{rank} in process_group=. Omit process_group, or use_collectives"
            )
        self.rank, self.world_size = ranks.rank, ranks.world_size
        self._ranks, self._prefix = ranks._calls, prefix
        self._commit = self._ranks.begin("save", prefix)

    def is_own(self, item: WriteItem, planner: SavePlanner) -> bool:
        """Return whether this rank writes an item of its plan."""
        name = item.index.fqn
        if item.type != WriteItemType.SHARD:
            return writer_of(name, self.world_size) == self.rank
        tensor = getattr(planner, "state_dict", {}).get(name)
        shard = local_shard(name, tensor) if is_dtensor(tensor) else None
        return shard is None or shard.is_first_replica

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank has failed. Does nothing if the outcome is known."""
        if not self._commit.is_over:
            try:
                with suppress(CheckpointError):
                    self._commit.fail({self.rank: error})
            finally:
                self._ranks.ended(self._commit)

    def abandon(self) -> None:
        """End a save that this rank does not continue."""
        self.fail(FailedPreconditionError("this rank has given up the save, because of an error before it was written"))

    def finish(self, part: RankPart, names: RankNames, publish: Callable[[list[RankPart], RankNames], object]) -> None:
        """Report what this rank has written; on rank 0, call `publish` with what all have written."""
        try:
            self._commit.report(_encoded(part, names))
            if self.rank == 0:
                self._publish(publish)
            elif (failure := self._commit.result().get(_FAILED)) is not None:
                raise IncompleteSaveError(
                    f"save of {printable(self._prefix)}: rank 0 of {self.world_size} failed to publish it: {failure}"
                )
        finally:
            self._ranks.ended(self._commit)

    def _publish(self, publish: Callable[[list[RankPart], RankNames], object]) -> None:
        reports = self._commit.gather()
        try:
            decoded = [_decoded(rank, report) for rank, report in enumerate(reports)]
            tensors: dict[str, Path] = {}
            others: dict[str, Path] = {}
            for _, of_rank in decoded:
                tensors.update(of_rank.tensors)
                others.update(of_rank.others)
            forms = self._same_forms([of_rank.forms for _, of_rank in decoded])
        except BaseException as error:
            self.fail(error)
            raise
        self._commit.go()
        try:
            publish([part for part, _ in decoded], RankNames(tensors, others, forms))
        except BaseException as error:
            self._commit.conclude({_FAILED: f"{type(error).__name__}: {error}"})
            raise
        self._commit.conclude({})

    def _same_forms(self, by_rank: Sequence[Mapping[str, str]]) -> dict[str, str]:
        """Return the forms of all tensors; raise InvalidArgumentError if ranks differ in one."""
        found: dict[str, tuple[str, int]] = {}
        for rank, forms in enumerate(by_rank):
            for name, form in forms.items():
                first, of = found.setdefault(name, (form, rank))
                if form != first:
                    raise InvalidArgumentError(
                        f"save of {printable(self._prefix)}: {quoted(name)} is {first} on rank {of}, but {form} on "
                        f"rank {rank}. All ranks must save tensors of the same dtype and shape under the same name"
                    )
        return {name: form for name, (form, _) in found.items()}


def _encoded(part: RankPart, names: RankNames) -> dict[str, Any]:
    of_names = json.dumps([names.tensors, names.others, names.forms]).encode()
    return {
        "path": part.path,
        "index": base64.b64encode(part.index).decode(),
        "values": part.values,
        "names": base64.b64encode(zlib.compress(of_names, 1)).decode(),
    }


def _decoded(rank: int, report: Mapping[str, Any]) -> tuple[RankPart, RankNames]:
    try:
        index = base64.b64decode(report["index"], validate=True)
        tensors, others, forms = json.loads(zlib.decompress(base64.b64decode(report["names"], validate=True)))
        values = {str(name): str(value) for name, value in report["values"].items()}
        of_tensors = {str(name): str(form) for name, form in forms.items()}
        names = RankNames(_paths(tensors), _paths(others), of_tensors)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error, zlib.error) as error:
        raise DataLossError(f"the report of rank {rank} in the store is not valid: {error!r}") from error
    return RankPart(rank, str(report.get("path", "")), index, values), names


def _paths(names: Mapping[str, Any]) -> dict[str, Path]:
    return {str(name): tuple(path) for name, path in names.items()}
