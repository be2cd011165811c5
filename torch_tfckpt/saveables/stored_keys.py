"""Find the stored key of a module's tensor, even if it is an alias or has parts that a wrapper added."""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.saveables.load_report import LoadReport
from torch_tfckpt.saveables.stateful import read_text
from torch_tfckpt.saveables.wrappers import may_be_wrapped, without_wrappers
from torch_tfckpt.text import quoted

SHARED: Final = ".shared"

_log = logging.getLogger(__name__)


class StoredKeys:
    """The keys of a checkpoint, for the modules of one var_list.

    Args:
        prefixes: Prefix of the keys of each module: "model/", or "".
    """

    def __init__(self, reader: CheckpointReader, prefixes: Sequence[str]) -> None:
        self._reader, self._prefixes = reader, prefixes

    def key_for(self, keys: Sequence[str], report: LoadReport) -> str:
        """Return the key to read for a tensor with these keys; if none of them is stored, the first.

        If several are stored with different values, the first is returned, and the others are reported.
        """
        present = [key for key in keys if key in self._reader]
        if len(present) > 1:
            self._report_lost(present, report)
        if present:
            return present[0]
        for names in (self._shared, self.wrapped):
            for key in keys:
                if key in names:
                    return names[key]
        return keys[0]

    def _report_lost(self, present: Sequence[str], report: LoadReport) -> None:
        lost = [key for key in present[1:] if not same_stored(self._reader, present[0], key)]
        if not lost:
            return
        names = ", ".join(map(quoted, (present[0], *lost)))
        text = f"the checkpoint stores different values for one shared tensor: {names}. The first is restored"
        _log.warning("%s: %s", self._reader.path, text)
        report.unexpected.extend(lost)
        report.remarks.append(text)

    @cached_property
    def _shared(self) -> dict[str, str]:
        """Alias -> stored key, of all modules in the checkpoint. Read only when a name is missing."""
        return shared_names(self._reader)

    @cached_property
    def wrapped(self) -> dict[str, str]:
        """Key without parts that wrappers add -> the stored key with them. Computed only when a name is missing."""
        found: dict[str, str] = {}
        if not may_be_wrapped(self._reader.keys()):
            return found
        shared = self._shared
        for prefix in self._prefixes:
            names = [key[len(prefix) :] for key in (*self._reader.keys(), *shared) if key.startswith(prefix)]
            for bare, name in without_wrappers(names).items():
                found[prefix + bare] = shared.get(prefix + name, prefix + name)
        return found


def same_stored(reader: CheckpointReader, one: str, other: str) -> bool:
    """Return whether two keys have equal values. Cost: reads both, if their types and shapes are equal."""
    if reader.dtype(one) != reader.dtype(other) or reader.shape(one) != reader.shape(other):
        return False
    first, second = reader.get_tensor(one), reader.get_tensor(other)
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second) or torch.equal(_bits(first), _bits(second))
    return bool((first == second).all()) if not isinstance(first, torch.Tensor) else False


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, so that NaNs can be compared."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def shared_names(reader: CheckpointReader) -> dict[str, str]:
    """Return alias -> stored key, of all modules in the checkpoint.

    Raises:
        DataLossError: a ".shared" entry is damaged.

    Cost: visits all keys, and reads the ".shared" entries.
    """
    found: dict[str, str] = {}
    for key in reader.keys():
        if key.rpartition("/")[2] == SHARED and reader.dtype(key) == DataType.DT_STRING:
            names = stored_object(reader, key)
            if not all(isinstance(name, str) for name in names.values()):
                raise DataLossError(f"{reader.path}: {quoted(key)} is not a JSON object of names")
            found.update(names)
    return found


def stored_object(reader: CheckpointReader, key: str) -> dict[str, Any]:
    """Return the JSON object that is stored under `key`; DataLossError if it is damaged."""
    text = read_text(reader, key)
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"{reader.path}: {quoted(key)} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataLossError(f"{reader.path}: {quoted(key)} is not a JSON object of names")
    return value
