"""One save of a tree of objects, from the objects to the published checkpoint.

Tensors are written to one data file for each host, as TensorFlow's Checkpoint does, or on request for each device.

Source: tensorflow/python/checkpoint/{checkpoint,functional_saver}.py.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

from torch_tfckpt.devices import HOST
from torch_tfckpt.distributed.calls import RankCalls
from torch_tfckpt.distributed.rank_save import RankSave
from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.objects.graph_view import to_save
from torch_tfckpt.objects.options import CheckpointOptions, run_callbacks
from torch_tfckpt.objects.trackables.trackable import Trackable
from torch_tfckpt.save_restore.builder import BulkSaverBuilder, begin_save
from torch_tfckpt.save_restore.pending_save import PendingSave, log_saved, published
from torch_tfckpt.save_restore.rank_save import begin_rank_save
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, specs_of
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.transfer.staging import Staging


class Counts(Protocol):
    """An object with a save counter, which ranks may save together."""

    _ranks: RankCalls | None

    @property
    def save_counter(self) -> torch.Tensor: ...


Self = TypeVar("Self", bound=Counts)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def begin_to_save(
    root: Trackable,
    storage: Storage,
    path: str,
    options: CheckpointOptions,
    staging: Staging,
    *,
    snapshot: bool,
    ranks: RankCalls | None = None,
) -> PendingSave:
    """Begin to write a checkpoint of `root` and all objects below it.

    Args:
        path: Its prefix. Missing directories are created.
        snapshot: Whether the values may change once the save is staged.
        ranks: The ranks that save together.

    Raises:
        ValueError, TypeError, InvalidArgumentError, UnimplementedError: as `graph_view.to_save`; nothing was written.
        IncompleteSaveError: a directory or file cannot be created.
    """
    skip = options.experimental_skip_slot_variables
    if ranks is not None:
        return begin_rank_save(
            ranks,
            ranks.begin("save", path),
            storage,
            path,
            lambda: to_save(root, skip_slot_variables=skip),
            sharded=options.sharded,
            snapshot=snapshot,
            staging=staging,
            note={"state_file": None, "timeout": ranks.timeout},
        )
    saveables = to_save(root, skip_slot_variables=skip)
    several_hosts = len({_host_of(spec) for spec in specs_of(saveables)}) > 1
    if several_hosts and not options.sharded:
        saveables = list(map(_of_host, saveables))
    _place_graph(saveables)
    sharded = options.sharded or several_hosts
    return begin_save(BulkSaverBuilder(), storage, path, saveables, sharded=sharded, snapshot=snapshot, staging=staging)


def complete(pending: PendingSave, options: CheckpointOptions, then: Callable[[], None], begun: float) -> str:
    """Wait until a save is published, run the callbacks, and return its path.

    Args:
        begun: `time.monotonic()` when the save began.
    """

    def record(path: str) -> dict[str, object]:
        log_saved(path, pending, time.monotonic() - begun)
        with published(path, "the state file may not name it"):
            then()
        return {"path": path}

    if isinstance(pending, RankSave):
        path = str(pending.finish_with(record)["path"])
    else:
        path = pending.finish()
        record(path)
    run_callbacks(options, path)
    return path


def counts_every_save(
    method: Callable[Concatenate[Self, Arguments], Result],
) -> Callable[Concatenate[Self, Arguments], Result]:
    """With ranks, increment the save counter although the decorated method has failed before it could do so.

    Otherwise the numbers of the ranks would differ from then on, and all later saves would fail.
    """

    @functools.wraps(method)
    def counted(self: Self, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if self._ranks is None:
            return method(self, *args, **kwargs)
        with self._ranks.taking_part("save"):
            before = int(self.save_counter)
            try:
                return method(self, *args, **kwargs)
            except FailedPreconditionError:
                raise  # as for `taking_part`
            except BaseException:
                if int(self.save_counter) == before:
                    self.save_counter.add_(1)
                raise

    return counted


def _host_of(spec: SaveSpec) -> str:
    """Return the job and task of the device; "" for this host."""
    return spec.device.partition("/device:")[0]


def _of_host(saveable: SaveableObject) -> SaveableObject:
    """Return the saveable with its host as device, so that each host writes one data file."""
    specs = [SaveSpec(spec.tensor, spec.slice_spec, spec.name, spec.dtype, _host_of(spec)) for spec in saveable.specs]
    return SaveableObject(saveable.op, specs, saveable.name)


def _place_graph(saveables: Sequence[SaveableObject]) -> None:
    """Assign the graph (the last saveable) to this host's data file, or else to the first data file."""
    *values, graph = saveables
    groups = {saveable.device for saveable in values}
    graph.specs[0].device = next((here for here in (HOST, "") if here in groups), min(groups, default=""))
