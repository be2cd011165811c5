"""Checkpoint: save a tree of objects, each under its path in the tree, as tf.train.Checkpoint does.

    checkpoint = Checkpoint(model=model, optimizer=optimizer, step=step, epoch=0)
    path = checkpoint.save("run/ckpt")                        # run/ckpt-1, recorded in run/checkpoint
    checkpoint.restore(path).assert_consumed()                # into the same objects, in place

A TensorFlow Checkpoint whose objects have the same attribute names can restore these files, and vice versa.

Source: tensorflow/python/checkpoint/checkpoint.py.
"""

import copy
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.directory.state_file import update_relative_state
from torch_tfckpt.distributed.calls import calls_of, taking_part
from torch_tfckpt.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.object_graph import ROOT
from torch_tfckpt.objects.accepted import assert_root, assert_trackable
from torch_tfckpt.objects.by_name import restore_by_name
from torch_tfckpt.objects.deferred import child_added
from torch_tfckpt.objects.naming import TORCH, check_naming, named
from torch_tfckpt.objects.options import CheckpointOptions, checked
from torch_tfckpt.objects.restoration import Restoration
from torch_tfckpt.objects.save import begin_to_save, complete, counts_every_save
from torch_tfckpt.objects.status import CheckpointLoadStatus, InitializationOnlyStatus, LoadStatus, NameBasedSaverStatus
from torch_tfckpt.objects.trackables.plain_values import ValueTrackable, must_be_replaced
from torch_tfckpt.objects.trackables.registry import trackable_of
from torch_tfckpt.objects.trackables.tensors import TensorTrackable
from torch_tfckpt.objects.trackables.trackable import ChildrenOf, Trackable
from torch_tfckpt.save_restore.handle import InFlight, SaveHandle
from torch_tfckpt.save_restore.one_call import Call, one_at_a_time
from torch_tfckpt.save_restore.pending_save import PendingSave
from torch_tfckpt.save_restore.rank_save import agreed_restore
from torch_tfckpt.save_restore.restore import Agree
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.local import LocalStorage
from torch_tfckpt.storage.names import AnyPath, fspath, is_url
from torch_tfckpt.text import counted, escaped, listed, printable
from torch_tfckpt.transfer.staging import Staging
from torch_tfckpt.values import outside_modes

_SAVE_COUNTER: Final = "save_counter"
_ROOT: Final = "root"
_SHOWN: Final = 8  # names that a repr lists
# Attributes that are not objects of the checkpoint.
_OWN: Final = frozenset(
    ("_tracked", "_attached", "_save_counter", "_storage", "_staging", "_in_flight", "_calls", "_restoration")
) | {"_naming", "_ranks"}


_log = logging.getLogger(__name__)


class Checkpoint:
    """Saves and restores a tree of objects, as tf.train.Checkpoint does.

    Args:
        root: The object to save as the root of the tree; may be a weak reference. None: the Checkpoint itself.
        storage: Where files are stored. None: chosen according to the path. To save an object under the name
            "storage", set it as an attribute: `checkpoint.storage = module`.
        naming: "torch": modules have the names and layouts of their attributes. "keras": those of a Keras model with
            the same layers, as for save_model; such a Checkpoint has no optimizers.
        ranks: The ranks of a program that save and restore together, each its part, with the same lines on all of them.
        objects: More children of the root: tensors, Parameters, Variables, Modules, Optimizers; objects with
            state_dict and load_state_dict (schedulers, RNGState); plain values; dicts and lists of all these; other
            Checkpoints.

    Raises:
        ValueError: an object that cannot be saved; a name that `root` or Checkpoint itself uses for something else.
        InvalidArgumentError: `storage` is not a storage, or an unknown naming.
        UnimplementedError: an optimizer with naming="keras".

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> model = torch.nn.Linear(2, 1)
        >>> checkpoint = tfckpt.Checkpoint(model=model, epoch=3)
        >>> path = checkpoint.save("run/ckpt")
        >>> checkpoint.epoch = 0
        >>> status = checkpoint.restore(path).assert_consumed()
        >>> path, checkpoint.epoch
        ('run/ckpt-1', 3)

    The objects become attributes of the Checkpoint, and attributes that are set later also become part of it. Their
    contents are looked up at every save and restore: the parameters, persistent buffers, submodules and extra state of
    modules; the slot variables and the rest of the state of optimizers. A plain value such as `checkpoint.epoch` is
    replaced by the restored one; dicts and lists get new contents.
    Thread safety: saves and restores from several threads run one after another. A signal handler that starts a save or
    restore while its thread is already saving or restoring gets a FailedPreconditionError.
    """

    def __init__(
        self, root: object = None, *, storage: Any = None, naming: Any = TORCH, ranks: Any = None, **objects: object
    ) -> None:
        check_naming(naming)
        self._naming, self._ranks = naming, calls_of(ranks)
        if storage is not None and not callable(getattr(storage, "sync_directory", None)):
            raise InvalidArgumentError(
                f"storage must be a Storage, got {type(storage).__name__}. To save an object "
                f"under this name, set it as an attribute: checkpoint.storage = ..."
            )
        self._tracked: dict[str, None] = {}  # names of the children, in the order in which they were added
        self._attached = root is not None
        self._save_counter: torch.Tensor | None = None
        self._storage = storage
        self._staging = Staging()
        self._in_flight = InFlight()
        self._calls: list[Call] = []
        self._restoration: Restoration | None = (
            None  # kept, so that missing values are logged when this object is deleted
        )
        given = objects
        if root is not None:
            assert_root(root() if isinstance(root, weakref.ref) else root)
            self.__dict__[_ROOT] = root  # the other objects are checked against its children
            given = {**objects, _ROOT: root}
        for name in sorted(given):
            if name in _OWN:
                raise ValueError(
                    f"Checkpoint.{name} is an attribute of Checkpoint itself. Give the object another name"
                )
            setattr(self, name, given[name])

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return an object; type checkers cannot know the names."""

    @outside_modes
    def __setattr__(self, name: str, value: object) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
            return
        if name in _METHODS:
            raise ValueError(f"Checkpoint.{name} is a method or property. Give the object another name")
        target = value() if isinstance(value, weakref.ref) else value
        assert_trackable(named(target, name, self._naming), name)
        if self._attached and name != _ROOT:
            own = dict(trackable_of(self._root_object, _ROOT).children())
            if name in own and own[name] is not target:
                raise ValueError(
                    f"Cannot create a Checkpoint with keyword argument {name} if root.{name} already exists."
                )
        known, before = name in self._tracked, self.__dict__.get(name)
        object.__setattr__(self, name, value)
        self._tracked[name] = None
        if name == _ROOT:
            return
        try:
            child_added(self._parent, name, self._child(name))
        except BaseException:  # as in a module, if a hook raises, the attribute is not set
            if known:
                self.__dict__[name] = before
            else:
                delattr(self, name)
            raise

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._tracked.pop(name, None)

    def __repr__(self) -> str:
        names = [name for name in self._tracked if name != _SAVE_COUNTER]
        return f"Checkpoint({listed(names, _SHOWN, escaped)})"

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new._become_copy(self, self.__dict__, None if self._save_counter is None else self._save_counter.clone())
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        copied = copy.deepcopy({name: self.__dict__[name] for name in self._tracked if name != _SAVE_COUNTER}, memo)
        new._become_copy(self, copied, copy.deepcopy(self._save_counter, memo))
        return new

    def _become_copy(self, other: Self, objects: Mapping[str, object], save_counter: torch.Tensor | None) -> None:
        """Copy everything except saves in flight, their memory, and pending restores."""
        self.__dict__.update(objects, _tracked=dict(other._tracked), _save_counter=save_counter)
        self.__dict__.update(
            _attached=other._attached, _storage=other._storage, _naming=other._naming, _ranks=other._ranks
        )
        self.__dict__.update(_staging=Staging(), _in_flight=InFlight(), _calls=[], _restoration=None)

    @property
    def save_counter(self) -> torch.Tensor:
        """Number of calls to `save`: an int64 scalar that is itself saved. May be changed in place."""
        if self._save_counter is None:
            counter = _zero()
            child_added(self._parent, _SAVE_COUNTER, counter)  # restores the counter if an earlier `read` found it
            self._begin_to_count(counter)
            return counter
        return self._save_counter

    @one_at_a_time
    def write(self, file_prefix: AnyPath, options: CheckpointOptions | None = None) -> str:
        """Write a checkpoint under exactly this prefix: no number, no state file.

        Args:
            file_prefix: Prefix of its files. Missing directories are created.
            options: See CheckpointOptions.

        Returns:
            The prefix.

        Raises:
            ValueError, TypeError: an object cannot be saved; nothing was written.
            InvalidArgumentError, UnimplementedError: a value cannot be stored in a checkpoint; nothing was written.
            IncompleteSaveError (an OSError): a file operation failed; nothing was published.
            The error of an earlier save in the background, if it was not raised by `result()`.

        The checkpoint is durable when this returns, unless `options.enable_async`. Cost: one write of the bytes; for
        values that are not in host memory, host memory within the limits of StagingOptions.
        """
        return self._write(fspath(file_prefix), checked(options), _no_more)

    @counts_every_save
    @one_at_a_time
    def save(self, file_prefix: AnyPath, options: CheckpointOptions | None = None) -> str:
        """Increment the counter, write `file_prefix-N`, and make it the only entry in the state file.

        Errors and cost as for `write`. No checkpoint is deleted; use a CheckpointManager to delete old ones.
        """
        chosen = checked(options)
        path = self._numbered(file_prefix)
        return self._write(path, chosen, lambda: self._name_newest(path))

    @counts_every_save
    @one_at_a_time
    def save_async(self, file_prefix: AnyPath, options: CheckpointOptions | None = None) -> SaveHandle:
        """`save` in the background: returns as soon as training may change the values.

        Returns:
            A handle with `staged`, `done()` and `result()`, which returns or raises what `save` would.

        An error that is not raised by `result()` is raised by the next call on this object, or at exit.
        Cost: values are copied immediately, up to StagingOptions.async_bytes; the rest is copied as earlier bytes are
        written, which delays the return.
        """
        chosen = checked(options)
        path = self._numbered(file_prefix)
        return self._start(path, chosen, lambda: self._name_newest(path))

    @one_at_a_time
    def read(self, save_path: AnyPath, options: CheckpointOptions | None = None) -> LoadStatus:
        """Restore a checkpoint that `write` wrote. Like `restore`, but does not create a save counter."""
        options = checked(options)
        with (
            agreed_restore(self._ranks, fspath(save_path)) as agree,
            CheckpointReader(save_path, storage=self._storage) as reader,
        ):
            return self._restore(reader, options, agree)

    @one_at_a_time
    def restore(self, save_path: AnyPath | None, options: CheckpointOptions | None = None) -> LoadStatus:
        """Restore all objects in place; objects that are added later are restored when they are added.

        Args:
            save_path: The result of `save`, or any other path that CheckpointReader accepts. None: nothing is restored,
                and the assertions of the status fail.
            options: See CheckpointOptions.

        Returns:
            A status; `assert_consumed()` checks that all values and all objects were matched.

        Raises:
            NotFoundError: there is no such checkpoint, or a data file or tensor of it is missing.
            InvalidArgumentError (a ValueError): dtypes or shapes do not fit.
            DataLossError: a value or the graph is damaged.

        Names, dtypes and shapes of all objects are checked, and all values read and verified, before the first is
        assigned. Parameters stay the same objects on the same devices; lazy ones get the stored shape. A parameter,
        buffer or submodule that is later added to a module, or an attribute that is later set on this object, is
        restored at that time; new items of dicts and lists are restored by the next restore.
        A checkpoint with tensors by name, as written by Saver, is restored by the names that a Saver of the same
        objects would use. Cost, and what changes if a file becomes unreadable meanwhile: as for Saver.restore.
        """
        options = checked(options)
        if save_path is None:
            with agreed_restore(self._ranks, "None"):  # on all ranks, or on none
                return InitializationOnlyStatus()
        with agreed_restore(self._ranks, fspath(save_path)) as agree:
            return self._restore_and_count(save_path, options, agree)

    def _restore_and_count(self, save_path: AnyPath, options: CheckpointOptions, agree: Agree) -> LoadStatus:
        try:
            reader = CheckpointReader(save_path, storage=self._storage)
        except NotFoundError as error:
            raise NotFoundError(
                f"Error when restoring from checkpoint or SavedModel at {printable(fspath(save_path))}: {error}"
            ) from error
        new = self._save_counter is None
        with reader:
            try:
                if new:
                    self._begin_to_count(_zero())
                return self._restore(reader, options, agree)
            except BaseException:
                if new:
                    self._save_counter = None
                    self._tracked.pop(_SAVE_COUNTER, None)
                raise

    def sync(self) -> None:
        """Wait until no save is in flight. Raises the error of a save in the background."""
        self._in_flight.sync()

    # The objects.

    def _trackable_children(self) -> Mapping[str, object]:
        """Return the children of this object, for another Checkpoint that contains it."""
        return {name: self._child(name) for name in self._tracked}

    @property
    def _root_object(self) -> object:
        root = self.__dict__[_ROOT]
        target = root() if isinstance(root, weakref.ref) else root
        if target is None:
            raise FailedPreconditionError(
                "the root object of this Checkpoint was deleted: a Checkpoint has only a weak reference to it. "
                "Keep a reference to the object"
            )
        return target

    @property
    def _parent(self) -> object:
        """The object that has the tracked objects as children."""
        return self._root_object if self._attached else self

    @property
    def _node(self) -> Trackable:
        """The root of the graph."""
        if not self._attached:
            return trackable_of(self, _ROOT)
        own = trackable_of(named(self._root_object, _ROOT, self._naming), _ROOT)
        names = {name for name, _ in own.children()}
        return ChildrenOf(own, [(name, self._child(name)) for name in self._tracked if name not in names])

    def _child(self, name: str) -> object:
        """Return the child with this name; for a plain value, an object that can replace the value."""
        value = self._save_counter if name == _SAVE_COUNTER else self.__dict__[name]
        if isinstance(value, weakref.ref):
            return named(value(), name, self._naming)
        if not must_be_replaced(value):
            return named(value, name, self._naming)
        attributes = self.__dict__
        return ValueTrackable(self, name, lambda: attributes[name], lambda new: attributes.update({name: new}))

    def _begin_to_count(self, counter: torch.Tensor) -> None:
        self._save_counter = counter
        self._tracked[_SAVE_COUNTER] = None

    # Saving.

    def _numbered(self, prefix: AnyPath) -> str:
        counter = self.save_counter
        counter += 1
        return f"{fspath(prefix)}-{int(counter)}"

    def _write(self, path: str, options: CheckpointOptions, then: Callable[[], None]) -> str:
        if options.enable_async:
            self._start(path, options, then)
            return path
        begun = time.monotonic()
        return complete(self._begin(path, options, snapshot=False), options, then, begun)

    def _start(self, path: str, options: CheckpointOptions, then: Callable[[], None]) -> SaveHandle:
        begun = time.monotonic()
        pending = self._begin(path, options, snapshot=True)
        return self._in_flight.start(
            path, pending.staged, lambda: complete(pending, options, then, begun), pending.abandon
        )

    def _begin(self, path: str, options: CheckpointOptions, *, snapshot: bool) -> PendingSave:
        with taking_part(self._ranks, "save"):
            self._in_flight.sync()  # a signal handler may have begun a save
        if options.staging is not None and options.staging != self._staging.options:
            self._staging = Staging(options.staging)
        storage = self._storage or storage_of(path)
        return begin_to_save(self._node, storage, path, options, self._staging, snapshot=snapshot, ranks=self._ranks)

    def _name_newest(self, path: str) -> None:
        """Write the state file of the checkpoint's directory, with this checkpoint as the only entry."""
        update_relative_state(os.path.dirname(path), path, [path], storage=self._storage)

    # Restoring.

    def _restore(self, reader: CheckpointReader, options: CheckpointOptions, agree: Agree) -> LoadStatus:
        graph = reader.object_graph
        if graph is None:
            return self._restore_by_name(reader, agree)
        if not graph.nodes:
            raise DataLossError(f"{reader.path}: the object graph has no nodes, not even a root")
        path = reader.files.prefix
        if isinstance(reader.storage, LocalStorage) and not is_url(path):
            path = os.path.abspath(path)  # the files may be opened again after the working directory has changed
        restoration = Restoration(
            reader.storage,
            path,
            graph,
            skip_slot_variables=options.experimental_skip_slot_variables,
            sharded=self._ranks is not None,
            agree=agree,
        )
        node = self._node
        # List the index once. Looking names up in the order of the objects would decode its blocks many times.
        reader.keys()
        try:
            count = restoration.restore(node, ROOT, reader)
        except BaseException:
            restoration.progress.expect_partial = True  # do not warn about unrestored values as well
            raise
        self._restoration = restoration
        _log.info("Restored %s (%s)", reader.path, counted(count, "tensor"))
        return CheckpointLoadStatus(restoration, node)

    def _restore_by_name(self, reader: CheckpointReader, agree: Agree) -> NameBasedSaverStatus:
        node = self._node
        restored = restore_by_name(node, reader, sharded=self._ranks is not None, agree=agree)
        _log.info("Restored %s (%s, by name)", reader.path, counted(len(restored), "tensor"))
        optional = TensorTrackable(self._save_counter).identity if self._save_counter is not None else None
        return NameBasedSaverStatus(reader.path, node, restored, optional)


_METHODS: Final = frozenset(name for name in vars(Checkpoint) if not name.startswith("__"))


@outside_modes
def _zero() -> torch.Tensor:
    """Return a counter in host memory that can be incremented in any torch mode, such as inference mode."""
    return torch.zeros((), dtype=torch.int64, device="cpu")


def _no_more() -> None:
    """Do nothing after a save without a state file."""
