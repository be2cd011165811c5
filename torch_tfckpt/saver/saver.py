"""Saver: numbered checkpoints of a training loop, as tf.train.Saver makes them.

    saver = Saver({"model": model, "optimizer": optimizer, "step": step}, max_to_keep=3, sharded=True)
    path = saver.save("run/model.ckpt", global_step=1000)       # durable, and recorded in run/checkpoint
    handle = saver.save_async("run/model.ckpt", global_step=1100)   # training continues
    saver.restore(latest_checkpoint("run"))                     # into the same tensors, in place

Source: tensorflow/python/training/saver.py.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.directory.retention import KeepBest, Metrics, check_keep_best, check_keep_hours, check_max_to_keep
from torch_tfckpt.distributed.calls import RankCalls, taking_part
from torch_tfckpt.distributed.ranks import Ranks
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.meta_graph.export_options import ExportOptions, ExportsMetaGraph
from torch_tfckpt.meta_graph.graph_collections import registered_variables
from torch_tfckpt.save_restore.builder import BaseSaverBuilder, BulkSaverBuilder, begin_save
from torch_tfckpt.save_restore.handle import InFlight, MaybeNone, SaveHandle, skipped_save
from torch_tfckpt.save_restore.one_call import Call, takes_turns
from torch_tfckpt.save_restore.rank_save import agreed_restore, begin_rank_save, calls_for
from torch_tfckpt.save_restore.restore import RestoreOptions, path_to_restore, restore_path
from torch_tfckpt.save_restore.saver_def import in_scope
from torch_tfckpt.saveables.load_report import LoadReport
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.saver.message import HasSaverDef
from torch_tfckpt.saver.meta_graph import MetaGraphSource, TensorsGraph
from torch_tfckpt.saver.on_signal import SavesOnSignal
from torch_tfckpt.saver.records import SaverRecords
from torch_tfckpt.saver.request import SaveRequest
from torch_tfckpt.saver.save import SaverSave, naming_a_missing_parent
from torch_tfckpt.saver.tracking import TracksCheckpoints
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import counted, printable
from torch_tfckpt.transfer.staging import Staging, StagingOptions
from torch_tfckpt.values import outside_modes

_log = logging.getLogger(__name__)


class Saver(TracksCheckpoints, SavesOnSignal, HasSaverDef, ExportsMetaGraph):
    """Saves and restores named tensors as numbered checkpoints, and deletes old ones.

    Args:
        var_list: A dict name -> (tensor, Parameter, Variable, SaveableObject, list of slices, or anything with
            state_dict and load_state_dict: Module, Optimizer, LRScheduler); a Module; pairs such as
            model.named_parameters(); a list of Variables and SaveableObjects. None: the values that `add_to_collection`
            added to the collections "variables" and "saveable_objects".
        reshape: Let restored values take the shapes of the tensors they are restored into.
        sharded: Write one data file for each device, all at the same time.
        max_to_keep: Number of newest checkpoints to keep; older ones are deleted. None or 0: all are kept, and the
            state file names only the newest.
        keep_checkpoint_every_n_hours: Of the checkpoints that would be deleted, one per this many hours is kept
            permanently.
        name: Scope of the saver's operations in meta graphs.
        restore_sequentially: Assign each value before the next is read. This needs memory for one tensor instead of
            all, but if a file is damaged, some values have already been assigned.
        saver_def: Settings of another saver; they override those given here.
        builder: Writes and reads the files; None: a BulkSaverBuilder.
        defer_build: Wait for `build()`, so that variables can be registered until then.
        allow_empty: Allow an empty variable list.
        write_version: SaverDef.V2, or V1 for programs that cannot read version 2.
        pad_step_number: Write steps with at least eight digits.
        save_relative_paths: Write paths in the state file relative to its directory. (Moved directories can be read
            either way.)
        filename: The default path in meta graphs.
        keep_best: Also keep the best k checkpoints by a metric that is given to `save`.
        recover: Whether this saver adopts the checkpoints of earlier runs, so that max_to_keep counts them too. None:
            if it has restored a checkpoint from the directory (any checkpoint, any spelling of the path), its next
            save there adopts them. True: its first save adopts them. False: they are never adopted, as in TensorFlow.
            Only checkpoints that the state file lists in its own directory, with names that differ only in their
            numbers, are adopted, so that other programs' checkpoints are never deleted. Checkpoints that no longer
            exist are left out, and the others get the modification times of their files; the schedule of
            `keep_checkpoint_every_n_hours`, pins and metrics carry over.
        ranks: The ranks that save and restore together, each its part, with the same lines on all of them. None: this
            process saves alone.
        staging: How much host memory and how many threads saves may use.
        clock: Returns seconds since the epoch.
        storage: Where files are stored; None chooses by the path.

    Raises:
        InvalidArgumentError (a ValueError), TypeError: something in `var_list` cannot be saved; an argument is invalid.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> step = torch.tensor(0)
        >>> saver = tfckpt.Saver({"model": torch.nn.Linear(2, 1), "step": step}, max_to_keep=3)
        >>> latest = tfckpt.latest_checkpoint("run")
        >>> if latest is not None:
        ...     report = saver.restore(latest)
        >>> for _ in range(5):
        ...     step += 1
        ...     path = saver.save("run/model.ckpt", global_step=step)
        >>> saver.last_checkpoints
        ['run/model.ckpt-3', 'run/model.ckpt-4', 'run/model.ckpt-5']

    Values, including the state of optimizers, are looked up at every save and restore. Changes to `var_list` itself
    after construction have no effect.
    Thread safety: saves and restores from several threads run one after the other. A signal handler that starts a save
    or restore while its thread is already running one gets a FailedPreconditionError; see `save_on_signal`.
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
        ranks: Ranks | None = None,
        staging: StagingOptions | None = None,
        clock: Callable[[], float] = time.time,
        _graph: MetaGraphSource | None = None,  # for savers of imported graphs
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
                "If `var_list` is given the build cannot be deferred: pass defer_build=False, or call build(var_list)"
            )
        self._var_list = var_list
        self._reshape, self._sharded = reshape, sharded
        self._max_to_keep, self._keep_hours = max_to_keep, keep_checkpoint_every_n_hours
        self._name, self._sequentially = name, restore_sequentially
        self._builder, self._allow_empty = builder, allow_empty
        self._write_version, self._pad = write_version, pad_step_number
        self._relative, self._filename = save_relative_paths, filename
        self._keep_best, self._recover, self._clock = keep_best, recover, clock
        self._graph = TensorsGraph() if _graph is None else _graph
        self.storage = storage
        self._staging = Staging(staging)
        self._in_flight = InFlight()
        self._calls: list[Call] = []
        self._variables: VarList | None = None  # None: not built, or nothing to save
        self._records: SaverRecords | None = None
        self._built = False
        self._chose_version = saver_def is None
        self.saver_def: SaverDef | None = None
        if saver_def is not None:
            self.saver_def = in_scope(saver_def, name)
            self._sharded, self._write_version = saver_def.sharded, saver_def.version
        self._ranks = calls_for(ranks, builder, self._write_version)
        if not defer_build:
            self.build()

    @outside_modes
    def build(self, var_list: object = None) -> None:
        """Collect the variables and prepare the saver. Does nothing if it was called before.

        Args:
            var_list: As for the class, if the build was deferred.

        Raises:
            InvalidArgumentError: "No variables to save", unless the saver was created with `allow_empty`.
        """
        if self._built:
            return
        wanted = var_list if self._var_list is None else self._var_list
        variables = VarList(registered_variables() if wanted is None else wanted, sharded=self._ranks is not None)
        if not variables.is_empty:
            self._variables = variables
        elif not self._allow_empty and self.saver_def is None:
            raise InvalidArgumentError(
                "No variables to save. Pass a dict of tensors, a module, or register tensors by add_to_collection"
            )
        if self._builder is None:
            # Old meta graphs declare no version, which means version 1.
            self._builder = BulkSaverBuilder(self._write_version or SaverDef.V1)
        if self.saver_def is None and self._variables is not None:
            saveables = [] if self._variables.is_lazy else self._variables.to_save(to_check=True)
            settings = self._reshape, self._sharded, self._max_to_keep, self._keep_hours
            self.saver_def = self._builder.build(saveables, *settings, self._name, self._sequentially, self._filename)
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
            save_path: Prefix of the checkpoint. Missing directories are created, including parents
                (TensorFlow raises an error).
            global_step: Number to append to `save_path`: an int, or an integral tensor of one element.
            latest_filename: Name of the state file in the same directory; None: "checkpoint".
            meta_graph_suffix: Suffix of the meta graph file.
            write_meta_graph: Whether to write `PREFIX.meta`.
            write_state: Whether to record the checkpoint in the state file and delete older ones.
            strip_default_attrs: Omit attributes with default values from the meta graph.
            save_debug_info: Not supported.
            metrics: Name -> number, for `keep_best`.

        Returns:
            The path to restore from: `save_path` with the step; sharded version 1: a pattern. None, as in TensorFlow,
            only from a saver that has nothing to save (`allow_empty`).

        Raises:
            InvalidArgumentError (a ValueError): the directory cannot be created, e.g. because a file has its name; an
                argument is invalid.
            FailedPreconditionError (a RuntimeError): the saver is not built, or the state file has the same path.
            IncompleteSaveError (an OSError): a file operation failed. Unless the message says that the checkpoint is
                in place, nothing was published and all earlier checkpoints are unchanged.
            The error of an earlier `save_async`, if it was not raised by `result()`.

        The checkpoint is durable when this returns. After a crash before that, the previous checkpoints and their
        state file are intact.
        Cost: one write of the bytes; host memory, up to the limits of `staging`, for copies of values on other devices.
        """
        with taking_part(self._ranks, "save"):
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
        saved = self._save(request)
        return self._at_safe_point(request.target, saved) if self._on_signal else saved

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
        """`save` in the background: returns as soon as training may change the values.

        Args:
            if_busy: If an earlier save is in flight, wait for it or skip the new save (its result is then None).
            block_until_staged: False returns immediately; the saved values must then not change until the handle's
                `staged` is set. Forward and backward passes are allowed.

        Returns:
            A handle with `staged`, `done()` and `result()`, which returns what `save` returns, or raises its error. The
            arguments and the variables are checked before this returns.

        An error that is not raised by `result()` is raised by the next call of this saver, by `close`, or at exit.
        Cost: values are copied immediately, up to `StagingOptions.async_bytes`; the rest is copied as earlier bytes are
        written, so this takes longer to return. For version 1, and for builders with their own `save_op`, everything is
        copied immediately.
        """
        if if_busy not in ("wait", "skip"):
            raise InvalidArgumentError(f'if_busy={if_busy!r}: pass "wait" or "skip"')
        if if_busy == "skip" and self._ranks is not None:
            raise InvalidArgumentError('if_busy="skip": the ranks could decide differently. Omit it')
        if if_busy == "skip" and self._in_flight.busy:
            return skipped_save()
        with taking_part(self._ranks, "save"):
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
        return self._at_safe_point(request.target, self._save_async(request, block_until_staged))

    def restore(self, save_path: AnyPath | None, *, strict: bool = True, verify: bool = True) -> LoadReport:
        """Restore everything in place.

        Args:
            save_path: The result of `save`, or any other path that CheckpointReader accepts.
            strict: Raise an error for what is missing or does not fit. False: restore the rest, and report it.
            verify: Whether to verify checksums.

        Returns:
            A report; `unexpected` lists stored tensors of modules that these modules do not have. They are also logged.

        Raises:
            InvalidArgumentError (a ValueError): there is no such checkpoint; or dtypes or shapes do not fit.
            NotFoundError: a name is not in the checkpoint, or a data file is missing.
            DataLossError: a value is damaged.
            Any error raised by a hook of load_state_dict; modules with such hooks are unchanged.

        In an object-based checkpoint (tf.train.Checkpoint, Keras), names that are not keys are looked up as names of
        variables, with a warning in the log. Names, dtypes and shapes are checked, and all values read and verified,
        before the first is assigned (unless `restore_sequentially`). Only a local file that becomes unreadable or is
        overwritten after that leaves large tensors changed; a note on the error lists them. Parameters stay the same
        objects on the same devices; no gradient is recorded. Modules with loading hooks or overridden loading methods
        are copied first, and then restored by load_state_dict.
        Cost: large tensors are read twice, to verify them and into their memory (once without `verify`). The rest, and
        all tensors of remote, version 1 and Keras files, is read once, into host memory that holds all of it.
        """
        with taking_part(self._ranks, "restore"):
            self._require_built("restore")
            if self._variables is None:
                return LoadReport()
            path = path_to_restore(save_path)
        return self._restore(path, self._variables, strict, verify)

    @takes_turns
    def _restore(self, path: str, variables: VarList, strict: bool, verify: bool) -> LoadReport:
        assert self._builder is not None, "built without a builder"
        how = RestoreOptions(self._reshape, self._sharded, self._sequentially, strict, verify)
        with agreed_restore(self._ranks, path) as agree:
            prefix, report = restore_path(self._builder, path, variables, how, storage=self.storage, agree=agree)
        if prefix is not None and self._records is not None:
            self._records.restored(prefix)
        self._graph.values_restored()
        return report

    def __repr__(self) -> str:
        if not self._built:
            return "Saver(not built)"
        shown = [counted(len(self._variables) if self._variables is not None else 0, "entry")]
        shown += [f"max_to_keep={self.saver_def.max_to_keep if self.saver_def is not None else self._max_to_keep}"]
        shown += ["sharded=True"] if self._sharded else []
        newest = self._records.newest if self._records is not None else []  # without reading a file
        shown += [f"last_checkpoint={printable(path)!r}" for path in newest[-1:]]
        return f"Saver({', '.join(shown)})"

    def _saveables(self) -> list[SaveableObject]:
        return self._variables.to_save() if self._variables is not None else []

    @takes_turns
    def _save(self, request: SaveRequest) -> str | MaybeNone:
        return self._begin(request, snapshot=False).complete()

    @takes_turns
    def _save_async(self, request: SaveRequest, block_until_staged: bool) -> SaveHandle:
        save = self._begin(request, snapshot=True)
        return self._in_flight.start(
            request.target, save.staged, save.complete, save.abandon, block_until_staged=block_until_staged
        )

    def _begin(self, request: SaveRequest, *, snapshot: bool) -> SaverSave:
        """Start writing a checkpoint."""
        records = self._records
        assert records is not None, "a saver that is built has records"
        with taking_part(self._ranks, "save"):
            self._in_flight.sync()  # a signal handler may have begun a save
            if request.write_state:
                records.refuse_conflict(request)
            self._graph.check_values()
        begun, ranks = self._clock(), self._ranks
        if ranks is not None and self._variables is not None:
            return self._begin_together(request, ranks, records, begun, snapshot=snapshot)
        saveables = self._saveables()
        meta_graph = self._graph.described(self._described(saveables)) if request.write_meta_graph else None
        pending = None
        if self._variables is not None:
            assert self._builder is not None, "built without a builder"
            if self._write_version == SaverDef.V1 and self._chose_version:
                _log.warning(
                    "version 1 is for programs that cannot read version 2. Omit write_version to write version 2"
                )
            with naming_a_missing_parent(request):
                pending = begin_save(
                    self._builder,
                    request.storage,
                    request.target,
                    saveables,
                    sharded=self._sharded,
                    snapshot=snapshot,
                    staging=self._staging,
                )
        return SaverSave(request, pending, records, self._clock, meta_graph, begun)

    def _begin_together(
        self, request: SaveRequest, ranks: RankCalls, records: SaverRecords, begun: float, *, snapshot: bool
    ) -> SaverSave:
        """Start writing this rank's part of a checkpoint of all ranks."""
        meta_graph, saveables = None, list[SaveableObject]()

        def to_save() -> list[SaveableObject]:
            nonlocal meta_graph
            saveables[:] = self._saveables()
            if request.write_meta_graph and ranks.rank == 0:
                meta_graph = self._graph.described(self._described(saveables))
            return saveables

        pending = begin_rank_save(
            ranks,
            ranks.begin("save", request.target),
            request.storage,
            request.target,
            to_save,
            sharded=self._sharded,
            snapshot=snapshot,
            staging=self._staging,
            note=request.note(relative=self._relative, timeout=ranks.timeout),
        )
        return SaverSave(request, pending, records, self._clock, meta_graph, begun)
