"""Saver: numbered checkpoints of a training loop, as tf.train.Saver makes them.

    saver = Saver({"model": model, "optimizer": optimizer, "step": step}, max_to_keep=3, sharded=True)
    path = saver.save("run/model.ckpt", global_step=1000)       # durable, and the newest of run/checkpoint
    handle = saver.save_async("run/model.ckpt", global_step=1100)   # training goes on while it is written
    saver.restore(latest_checkpoint("run"))                     # into the same tensors, in place

Source: tensorflow/python/training/saver.py; spec: SAVER 4.
"""

import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.checkpoint_reader import AnyPath
from torch_tfckpt.directory.retention import (
    KeepBest,
    Metrics,
    check_keep_best,
    check_keep_hours,
    check_max_to_keep,
)
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.meta_graph.export_options import ExportOptions, ExportsMetaGraph
from torch_tfckpt.meta_graph.graph_collections import registered_variables
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.save_restore.builder import BaseSaverBuilder, BulkSaverBuilder
from torch_tfckpt.save_restore.handle import InFlight, MaybeNone, SaveHandle
from torch_tfckpt.save_restore.restore import restore_path
from torch_tfckpt.save_restore.saver_def import in_scope, naming_nodes, out_of_scope
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.saver.meta_graph import MetaGraphSource, TensorsGraph
from torch_tfckpt.saver.records import SaverRecords
from torch_tfckpt.saver.registered import SaverInGraph
from torch_tfckpt.saver.request import SaveRequest
from torch_tfckpt.saver.save import SaverSave, make_parents, naming_a_missing_parent
from torch_tfckpt.saver.tracking import TracksCheckpoints
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import counted, printable
from torch_tfckpt.transfer.staging import Staging, StagingOptions

_log = logging.getLogger(__name__)


class Saver(TracksCheckpoints, ExportsMetaGraph):
    """Saves and restores named tensors, and keeps track of the checkpoints.

    Args:
        var_list: A dict name -> (tensor, Parameter, Variable, SaveableObject, list of slices, or anything with
            state_dict and load_state_dict: Module, Optimizer, LRScheduler); a Module; pairs such as
            model.named_parameters(); a list of Variables and SaveableObjects. None: what `add_to_collection` put into
            the collections "variables" and "saveable_objects".
        reshape: Let restored values take the shapes of the tensors they are restored into.
        sharded: One data file for each device, written side by side.
        max_to_keep: Checkpoints that stay; older ones are deleted. None or 0: all stay, and the state file names only
            the newest.
        keep_checkpoint_every_n_hours: Of those that would be deleted, one every so many hours stays for good.
        name: Scope of the saver's operations in meta graphs.
        restore_sequentially: Assign each value before the next is read: the memory of one tensor instead of all, but a
            damaged file is noticed half way.
        saver_def: Settings of another saver, which go before those given here.
        builder: Writes and reads the files; None: a BulkSaverBuilder.
        defer_build: Wait for `build()`, so that variables can be registered until then.
        allow_empty: Be content with nothing to save.
        write_version: SaverDef.V2, or V1 for programs that read nothing newer.
        pad_step_number: Steps of eight digits at least.
        save_relative_paths: Name checkpoints in the state file relative to it. (Moved directories work on reading
            either way.)
        filename: The default path in meta graphs.
        keep_best: Also keep the best k by a metric given to `save`.
        recover: Whether max_to_keep counts the checkpoints of earlier runs, too, which the state file lists. None: yes
            once this saver has restored a checkpoint from the directory (whichever, by any spelling of its path), from
            its first save there on; counted are the checkpoints that have the name of the one being saved but for the
            numbers in it, so that a checkpoint of another origin is never deleted. True: all that are listed, from
            the first save on, restored or not. False: never, as in TensorFlow. Those that no longer exist are
            left out. They are as old as their files; the schedule of `keep_checkpoint_every_n_hours`
            continues where the earlier run was, and so do metrics and pins.
        staging: How much host memory saves may take, and how many threads.
        clock: Seconds since the epoch.
        graph: Where meta graphs come from; None: they have a variable for each tensor.
        storage: Where files are stored; None chooses by the path.

    Raises:
        InvalidArgumentError (a ValueError), TypeError: what cannot be saved, or not like that.

    Values, the state of optimizers included, are looked up anew at every save and restore. What changes in `var_list`
    itself after construction is not seen.
    Threads: one at a time.
    """

    def __init__(
        self,
        var_list: object = None,
        reshape: bool = False,
        sharded: bool = False,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float = 10000.0,
        name: str | None = None,
        restore_sequentially: bool = False,
        saver_def: SaverDef | None = None,
        builder: BaseSaverBuilder | None = None,
        defer_build: bool = False,
        allow_empty: bool = False,
        write_version: int = SaverDef.V2,
        pad_step_number: bool = False,
        save_relative_paths: bool = False,
        filename: str | None = None,
        *,
        keep_best: KeepBest | None = None,
        recover: bool | None = None,
        staging: StagingOptions | None = None,
        clock: Callable[[], float] = time.time,
        graph: MetaGraphSource | None = None,
        storage: Storage | None = None,
    ) -> None:
        empty = var_list is None or (isinstance(var_list, list | tuple | set | dict) and not var_list)
        check_max_to_keep(max_to_keep, zero_keeps_all=True)
        check_keep_hours(keep_checkpoint_every_n_hours)
        check_keep_best(keep_best)
        if recover not in (None, True, False):
            raise InvalidArgumentError(f"recover={recover!r}: pass True, False or None")
        if defer_build and not empty:
            raise InvalidArgumentError(
                "If `var_list` is given the build cannot be deferred: pass defer_build=False, or give it to build()"
            )
        self._var_list = var_list
        self._reshape, self._sharded = reshape, sharded
        self._max_to_keep, self._keep_hours = max_to_keep, keep_checkpoint_every_n_hours
        self._name, self._sequentially = name, restore_sequentially
        self._builder, self._allow_empty = builder, allow_empty
        self._write_version, self._pad = write_version, pad_step_number
        self._relative, self._filename = save_relative_paths, filename
        self._keep_best, self._recover, self._clock = keep_best, recover, clock
        self._graph = TensorsGraph() if graph is None else graph
        self.storage = storage
        self._staging = Staging(staging)
        self._in_flight = InFlight()
        self._variables: VarList | None = None  # None: not built, or of nothing
        self._records: SaverRecords | None = None
        self._built = False
        self._chose_version = saver_def is None
        self.saver_def: SaverDef | None = None
        if saver_def is not None:
            self.saver_def = in_scope(saver_def, name)
            self._sharded, self._write_version = saver_def.sharded, saver_def.version
        if not defer_build:
            self.build()

    def build(self, var_list: object = None) -> None:
        """Looks at the variables, and makes the saver ready. Nothing happens the second time.

        Args:
            var_list: As of the class, for a saver whose build was deferred.

        Raises:
            InvalidArgumentError: "No variables to save", unless the saver was made with `allow_empty`.
        """
        if self._built:
            return
        wanted = var_list if self._var_list is None else self._var_list
        variables = VarList(registered_variables() if wanted is None else wanted)
        if not variables.is_empty:
            self._variables = variables
        elif not self._allow_empty and self.saver_def is None:
            raise InvalidArgumentError(
                "No variables to save. Pass a dict of tensors, a module, or register tensors by add_to_collection"
            )
        if self._builder is None:
            # Old meta graphs name no version; what they meant is version 1.
            self._builder = BulkSaverBuilder(self._write_version or SaverDef.V1)
        if self.saver_def is None and self._variables is not None:
            self.saver_def = self._builder.build(
                self._variables.to_save(),
                self._reshape,
                self._sharded,
                self._max_to_keep,
                self._keep_hours,
                self._name,
                self._sequentially,
                self._filename,
            )
        if self.saver_def is not None:
            self._write_version = self.saver_def.version
        self._records = SaverRecords(
            self.saver_def or SaverDef(),
            self._clock(),
            relative=self._relative,
            keep_best=self._keep_best,
            recover=self._recover,
            storage=self.storage,
        )
        self._built = True

    def save(
        self,
        save_path: AnyPath,
        global_step: object = None,
        latest_filename: str | None = None,
        meta_graph_suffix: str = "meta",
        write_meta_graph: bool = True,
        write_state: bool = True,
        strip_default_attrs: bool = False,
        save_debug_info: bool = False,
        *,
        metrics: Metrics | None = None,
    ) -> str | MaybeNone:
        """Save everything as one checkpoint.

        Args:
            save_path: Prefix of the checkpoint. Directories that do not exist are made, also those above its own
                (TensorFlow refuses then).
            global_step: Number to put behind it: an int, or an integral tensor of one element.
            latest_filename: Name of the state file beside the checkpoint; None: "checkpoint".
            meta_graph_suffix: Of the meta graph file.
            write_meta_graph: Whether to write `PREFIX.meta`.
            write_state: Whether the state file is to name the checkpoint, and older ones to be deleted.
            strip_default_attrs: Leave attributes out of the meta graph that are as operations have them by themselves.
            save_debug_info: Not supported.
            metrics: Name -> number, for `keep_best`.

        Returns:
            The path to restore from: `save_path` with the step; sharded version 1: a pattern. None from a saver of
            nothing.

        Raises:
            InvalidArgumentError (a ValueError): the directory cannot be made, as where a file is in the way; or an
                argument is invalid.
            FailedPreconditionError (a RuntimeError): the saver is not built, or the path is that of the state file.
            IncompleteSaveError (an OSError): the system refused a step. Unless the text says that the checkpoint is in
                place, nothing was published and all earlier ones are as they were.
            What an earlier `save_async` failed with, if nobody has asked for it.

        Durable when it returns. At every moment before, a crash leaves the earlier checkpoints and the state file that
        names them. Cost: one write of the bytes; host memory as `staging` says, for values that are not in host memory.
        """
        self._require_built("save")
        request = SaveRequest.of(
            save_path,
            global_step,
            latest_filename=latest_filename,
            meta_graph_suffix=meta_graph_suffix,
            write_meta_graph=write_meta_graph,
            write_state=write_state,
            export=ExportOptions(strip_default_attrs=strip_default_attrs, save_debug_info=save_debug_info),
            metrics=metrics,
            storage=self.storage,
            pad=self._pad,
            sharded=self._sharded,
        )
        return self._begin(request, snapshot=False).complete()

    def save_async(
        self,
        save_path: AnyPath,
        global_step: object = None,
        latest_filename: str | None = None,
        meta_graph_suffix: str = "meta",
        write_meta_graph: bool = True,
        write_state: bool = True,
        strip_default_attrs: bool = False,
        save_debug_info: bool = False,
        *,
        metrics: Metrics | None = None,
        if_busy: Literal["wait", "skip"] = "wait",
        block_until_staged: bool = True,
    ) -> SaveHandle:
        """`save`, beside training: returns once the values are safe from what training does next.

        Args:
            if_busy: Where an earlier save is in flight: wait for it, or skip this one (its result is None).
            block_until_staged: With False it returns at once, and nothing that is saved may change before the handle's
                `staged` is set: time for a forward and backward pass.

        Returns:
            A handle: `staged`, `done()`, and `result()`, which is what `save` returns or raises. The arguments and the
            variables are checked before this returns.

        An error that nobody asks for by `result()` is raised by the next call of this saver, by `close`, or at exit.
        Cost: values are copied within `StagingOptions.async_bytes`; what does not fit is copied when earlier bytes are
        written, and this returns later. Version 1, and builders with a `save_op` of their own, copy everything.
        """
        if if_busy not in ("wait", "skip"):
            raise InvalidArgumentError(f'if_busy={if_busy!r}: say "wait" or "skip"')
        if if_busy == "skip" and self._in_flight.busy:
            return SaveHandle.skipped()
        self._require_built("save")
        request = SaveRequest.of(
            save_path,
            global_step,
            latest_filename=latest_filename,
            meta_graph_suffix=meta_graph_suffix,
            write_meta_graph=write_meta_graph,
            write_state=write_state,
            export=ExportOptions(strip_default_attrs=strip_default_attrs, save_debug_info=save_debug_info),
            metrics=metrics,
            storage=self.storage,
            pad=self._pad,
            sharded=self._sharded,
        )
        save = self._begin(request, snapshot=True)
        return self._in_flight.start(
            request.target, save.staged, save.complete, save.abandon, block_until_staged=block_until_staged
        )

    def restore(self, save_path: AnyPath | None) -> None:
        """Restore everything, in place.

        Args:
            save_path: What `save` returned, or any spelling of a checkpoint that CheckpointReader takes.

        Raises:
            InvalidArgumentError (a ValueError): there is no such checkpoint; or dtypes or shapes do not fit.
            NotFoundError: a name is not in the checkpoint, or a data file is missing.
            DataLossError: a value is damaged.

        Names that the checkpoint lacks are looked for among those that its variables had, if it is an object-based one
        (tf.train.Checkpoint, Keras); the log then has a warning. Names, dtypes and shapes are checked, and all values
        read and verified, before the first is assigned (unless `restore_sequentially`). Parameters stay the objects
        they are, on their devices; no gradient is recorded.
        Cost: one read of the values; host memory of all of them, or of the largest with `restore_sequentially`.
        """
        self._require_built("restore")
        if self._variables is None:
            return
        if save_path is None:
            raise InvalidArgumentError("Can't load save_path when it is None. latest_checkpoint found none")
        assert self._builder is not None, "built without a builder"
        prefix = restore_path(
            self._builder,
            fspath(save_path),
            self._variables,
            storage=self.storage,
            reshape=self._reshape,
            sharded=self._sharded,
            restore_sequentially=self._sequentially,
        )
        if prefix is not None and self._records is not None:
            self._records.restored(prefix)
        self._graph.values_restored()

    # The saver as a message.

    def as_saver_def(self) -> SaverDef | None:
        """The saver's settings; None of a saver of nothing."""
        return self.saver_def

    def to_proto(self, export_scope: str | None = None) -> SaverDef | None:
        """The saver's settings without the scope in their names; None where they are not in that scope."""
        if export_scope is None or self.saver_def is None:
            return self.saver_def
        return out_of_scope(self.saver_def, export_scope)

    @classmethod
    def from_proto(cls, saver_def: SaverDef, import_scope: str | None = None, *, var_list: object = None) -> Self:
        """A saver with these settings. A message has no tensors: they come from `var_list`, or the collections."""
        return cls(var_list, saver_def=saver_def, name=import_scope)

    def _exported(self) -> RawMetaGraph:
        return self._graph.described(self.in_graph())()

    def in_graph(self) -> SaverInGraph | None:
        """What meta graphs of other savers say of this one; None of a saver of nothing."""
        return self._in_graph(self._saveables())

    # The end.

    def sync(self) -> None:
        """Returns once no save is in flight; raises what an earlier one failed with, if nobody has asked for it."""
        self._in_flight.sync()

    def close(self) -> None:
        """`sync`, and gives host memory back. The saver can be used afterwards."""
        try:
            self.sync()
            if self._records is not None:
                self._records.warn_if_metric_is_missing()
        finally:
            self._staging.release()

    def __repr__(self) -> str:
        if not self._built:
            return "Saver(not built)"
        shown = [counted(len(self._variables) if self._variables is not None else 0, "entry")]
        shown += [f"max_to_keep={self.saver_def.max_to_keep if self.saver_def is not None else self._max_to_keep}"]
        shown += ["sharded=True"] if self._sharded else []
        shown += [f"last_checkpoint={printable(path)!r}" for path in self.last_checkpoints[-1:]]
        return f"Saver({', '.join(shown)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _saveables(self) -> list[SaveableObject]:
        return self._variables.to_save() if self._variables is not None else []

    def _in_graph(self, saveables: Sequence[SaveableObject]) -> SaverInGraph | None:
        if self.saver_def is None:
            return None
        saver_def, filename = naming_nodes(self.saver_def, self._filename)
        return SaverInGraph(saver_def, saveables, self, self._sharded, self._reshape, filename)

    def _begin(self, request: SaveRequest, *, snapshot: bool) -> SaverSave:
        """Start to write what was asked for."""
        records = self._records
        assert records is not None, "a saver that is built has records"
        if request.write_state:
            records.refuse_conflict(request)
        self._graph.check_values()
        begun = self._clock()
        saveables = self._saveables()
        meta_graph = self._graph.described(self._in_graph(saveables)) if request.write_meta_graph else None
        pending = None
        make_parents(request)
        if self._variables is not None:
            assert self._builder is not None, "built without a builder"
            if self._write_version == SaverDef.V1 and self._chose_version:
                _log.warning("version 1 is for readers that know nothing newer; leave write_version out otherwise")
            with naming_a_missing_parent(request):
                remove_leftovers(request.storage, request.directory)
                pending = self._builder.begin_save(
                    request.storage,
                    request.target,
                    saveables,
                    sharded=self._sharded,
                    snapshot=snapshot,
                    staging=self._staging,
                )
        return SaverSave(request, pending, records, self._clock, meta_graph, begun)

    def _require_built(self, what: str) -> None:
        """Return once no save is in flight; raises if the saver is not built, or what an earlier save failed with."""
        self._in_flight.sync()
        if not self._built:
            raise FailedPreconditionError(f"`build()` should be called before {what} if defer_build==True")
