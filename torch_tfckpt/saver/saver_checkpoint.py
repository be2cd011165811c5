"""A Saver with the interface of tf.train.Checkpoint: a counter of saves, `write`, `save`, `restore`.

A CheckpointManager uses this class if it is given named tensors instead of an object-based Checkpoint.

Source: tensorflow/python/checkpoint/checkpoint.py for the interface.
"""

import os
import re
from typing import Final

import torch

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.directory.state_file import update_relative_state
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.saveables.named_values import named_values
from torch_tfckpt.saver.saver import Saver
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.values import outside_modes

SAVE_COUNTER: Final = "save_counter"
_NUMBER: Final = re.compile(r"-([0-9]{1,18})$")


class SaverCheckpoint:
    """Saves and restores named tensors as a Saver does, and counts the saves.

    Args:
        var_list: As for Saver; the counter is saved with it, under "save_counter". Or a Saver, which saves no counter:
            the counter is then taken from the number in the path that is restored.
        storage: Where files are stored; None chooses by the path. Not used with a Saver, which has its own.

    Raises:
        InvalidArgumentError: `var_list` contains the name "save_counter", or cannot be saved; or the Saver writes
            version 1.

    Attributes:
        save_counter: An int64 scalar; may be changed in place.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> w = torch.ones(2)
        >>> checkpoint = tfckpt.SaverCheckpoint({"w": w})
        >>> checkpoint.save("run/ckpt")
        'run/ckpt-1'
        >>> w.zero_()
        tensor([0., 0.])
        >>> checkpoint.restore("run/ckpt-1")
        >>> w, checkpoint.save_counter
        (tensor([1., 1.]), tensor(1))

    Thread safety: one thread at a time.
    """

    @outside_modes
    def __init__(self, var_list: object, *, storage: Storage | None = None) -> None:
        self.save_counter = torch.zeros((), dtype=torch.int64, device="cpu")
        self._storage = var_list.storage if isinstance(var_list, Saver) else storage
        if isinstance(var_list, Saver):
            if var_list.saver_def is not None and var_list.saver_def.version == SaverDef.V1:
                raise InvalidArgumentError(
                    "a manager supports only version 2 checkpoints. Pass a Saver without write_version"
                )
            self._saver = self._without_counter = var_list
            return
        named = named_values(var_list)
        if SAVE_COUNTER in named:
            raise InvalidArgumentError(
                f'"{SAVE_COUNTER}" is reserved for the save counter. Save your value under another name'
            )
        counted = {**named, SAVE_COUNTER: self.save_counter}
        self._saver = Saver(counted, max_to_keep=None, storage=storage)
        self._without_counter = Saver(named, max_to_keep=None, allow_empty=True, storage=storage)

    def __repr__(self) -> str:
        return f"SaverCheckpoint({self._saver!r})"

    def write(self, prefix: AnyPath) -> str:
        """Write a checkpoint under exactly this prefix: no number, no state file. Raises like Saver.save."""
        return self._saver.save(prefix, write_meta_graph=False, write_state=False)

    def save(self, prefix: AnyPath) -> str:
        """Increment the counter, write `prefix-N`, and make it the only checkpoint in the state file.

        Raises like Saver.save.
        """
        self.save_counter += 1
        written = self.write(f"{fspath(prefix)}-{int(self.save_counter)}")
        update_relative_state(os.path.dirname(written), written, [written], storage=self._storage)
        return written

    def read(self, path: AnyPath) -> None:
        """Restore all values in place. Raises like Saver.restore."""
        self.restore(path)

    def restore(self, path: AnyPath) -> None:
        """Restore all values and the counter in place. Raises like Saver.restore.

        If the checkpoint has no counter because another program wrote it, the number at the end of its path is used.
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
        """Wait until no save is in flight. Raises the error of a save in the background."""
        self._saver.sync()
