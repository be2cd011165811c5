"""A Saver with the face of tf.train.Checkpoint: a counter of saves, `write`, `save`, `restore`.

What a CheckpointManager saves where it is given named tensors rather than an object-based Checkpoint.

Source: tensorflow/python/checkpoint/checkpoint.py for the manners; spec: SAVER 5 and 7.
"""

import os
import re
from typing import Final

import torch

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.checkpoint_reader import AnyPath, CheckpointReader
from torch_tfckpt.directory.state_file import update_relative_state
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.saveables.named_values import named_values
from torch_tfckpt.saver.saver import Saver
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.storage.protocol import Storage

SAVE_COUNTER: Final = "save_counter"
_NUMBER: Final = re.compile(r"-([0-9]{1,18})$")


class SaverCheckpoint:
    """Saves and restores what a Saver does, and counts its saves.

    Args:
        var_list: As Saver takes it; the counter is saved with it, under "save_counter". Or a Saver, whose checkpoints
            stay as they are: its counter is taken from the number in the path that is restored.
        storage: Where files are stored; None chooses by the path. A Saver brings its own.

    Raises:
        InvalidArgumentError: `var_list` has a "save_counter" of its own, or cannot be saved; or a Saver of version 1.

    Attributes:
        save_counter: An int64 scalar; may be changed in place.

    Threads: one at a time.
    """

    def __init__(self, var_list: object, *, storage: Storage | None = None) -> None:
        self.save_counter = torch.zeros((), dtype=torch.int64)
        self._storage = var_list.storage if isinstance(var_list, Saver) else storage
        if isinstance(var_list, Saver):
            if var_list.saver_def is not None and var_list.saver_def.version == SaverDef.V1:
                raise InvalidArgumentError("a manager keeps version 2 checkpoints; pass a Saver that writes those")
            self._saver = self._without_counter = var_list
            return
        named = named_values(var_list)
        if SAVE_COUNTER in named:
            raise InvalidArgumentError(f'"{SAVE_COUNTER}" is the name of the counter. Save yours under another name')
        counted = {**named, SAVE_COUNTER: self.save_counter}
        self._saver = Saver(counted, max_to_keep=None, storage=storage)
        self._without_counter = Saver(named, max_to_keep=None, allow_empty=True, storage=storage)

    def __repr__(self) -> str:
        return f"SaverCheckpoint({self._saver!r})"

    def write(self, prefix: AnyPath) -> str:
        """Writes a checkpoint under this very prefix: no number, no state file. Errors as Saver.save."""
        return self._saver.save(prefix, write_meta_graph=False, write_state=False)

    def save(self, prefix: AnyPath) -> str:
        """Counts up, writes `prefix-N`, and lets the state file beside it name just that. Errors as Saver.save."""
        self.save_counter += 1
        written = self.write(f"{fspath(prefix)}-{int(self.save_counter)}")
        update_relative_state(os.path.dirname(written), written, [written], storage=self._storage)
        return written

    def read(self, path: AnyPath) -> None:
        """Restores all values in place. Errors as Saver.restore."""
        self.restore(path)

    def restore(self, path: AnyPath) -> None:
        """Restores all values, and the counter, in place. Errors as Saver.restore.

        A checkpoint without a counter, which no SaverCheckpoint wrote, has the number at the end of its path for one.
        """
        wanted = fspath(path)
        with CheckpointReader(wanted, storage=self._storage) as reader:
            counted = SAVE_COUNTER in reader and self._saver is not self._without_counter
        if counted:
            self._saver.restore(wanted)
        else:
            self._without_counter.restore(wanted)
            number = _NUMBER.search(wanted)
            self.save_counter.fill_(int(number[1]) if number is not None else 0)

    def sync(self) -> None:
        """Returns once nothing is being saved any more; raises what a save beside training failed with."""
        self._saver.sync()
