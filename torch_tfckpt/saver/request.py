"""The arguments of one `Saver.save`, checked."""

import operator
import os
from dataclasses import dataclass
from typing import Self

import torch

from torch_tfckpt.directory.names import STATE_FILE
from torch_tfckpt.directory.retention import Metrics
from torch_tfckpt.directory.retention_file import check_metrics
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_bundle import parse_data_filename
from torch_tfckpt.meta_graph.export_options import ExportOptions
from torch_tfckpt.saveables.variables import Variable
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import counted, printable, quoted
from torch_tfckpt.values import outside_modes


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """The arguments of one save; see Saver.save.

    Attributes:
        storage: Where all files of the save are stored.
        directory: Directory of the checkpoint and its state file; "" is the current one.
        save_path: The path as it was given, for error messages.
        target: `save_path` with the step.
    """

    storage: Storage
    directory: str
    save_path: str
    target: str
    latest_filename: str
    meta_graph_suffix: str
    write_meta_graph: bool
    write_state: bool
    export: ExportOptions
    metrics: Metrics

    @classmethod
    def of(
        cls,
        save_path: AnyPath,
        global_step: object,
        *,
        latest_filename: str | None,
        meta_graph_suffix: str,
        write_meta_graph: bool,
        write_state: bool,
        export: ExportOptions,
        metrics: object,
        storage: Storage | None,
        pad: bool,
        sharded: bool,
    ) -> Self:
        """Check the arguments of a save.

        Raises:
            InvalidArgumentError, UnimplementedError: an argument is invalid or not supported.
        """
        state = state_filename(latest_filename)
        if write_meta_graph:
            _check_suffix(meta_graph_suffix)
        path = fspath(save_path)
        directory, name = os.path.split(path)
        if global_step is None and not sharded and name == state:
            raise InvalidArgumentError(
                f"'latest_filename' collides with 'save_path': {quoted(printable(path))} is the state file's name. "
                f"Save under another name, or give a global_step"
            )
        return cls(
            storage=storage or storage_of(path),
            directory=directory,
            save_path=path,
            target=checkpoint_filename(path, global_step, pad=pad),
            latest_filename=state,
            meta_graph_suffix=meta_graph_suffix,
            write_meta_graph=write_meta_graph,
            write_state=write_state,
            export=export,
            metrics=check_metrics(metrics),
        )

    def note(self, *, relative: bool, timeout: float) -> dict[str, object]:
        """Return what is stored with the parts of all ranks, for whoever publishes them after a crash."""
        return {
            "state_file": self.latest_filename if self.write_state else None,
            "relative": relative,
            "timeout": timeout,
            "metrics": dict(self.metrics),
        }


def _check_suffix(suffix: str) -> None:
    """Raise InvalidArgumentError if the suffix names a checkpoint file or contains a directory."""
    if suffix == "index" or parse_data_filename(f"x.{suffix}") is not None or os.path.dirname(suffix):
        raise InvalidArgumentError(
            f"meta_graph_suffix {quoted(suffix)} would overwrite a file of the checkpoint, or write to "
            "another directory. "
            f'Omit it: readers look for "meta"'
        )


_item = outside_modes(torch.Tensor.item)


def step_number(global_step: object) -> int:
    """Convert a step to an int.

    Args:
        global_step: An int, a bool, an integral tensor of one element, or a Variable that holds such a tensor.

    Raises:
        InvalidArgumentError: anything else.
    """
    step = global_step.tensor if isinstance(global_step, Variable) else global_step
    if isinstance(step, torch.Tensor):
        if step.numel() == 1 and not step.is_floating_point() and not step.is_complex():
            return int(_item(step))
        found = f"{step.dtype} tensor with {counted(step.numel(), 'element')}"
        raise InvalidArgumentError(f"global_step is a {found}; pass one integer")
    try:
        return operator.index(step)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidArgumentError(f"global_step is of type {type(global_step).__name__}; pass an integer") from error


def checkpoint_filename(save_path: str, global_step: object, *, pad: bool) -> str:
    """Return `save_path` followed by "-" and the step; with `pad`, the step has at least eight digits."""
    if global_step is None:
        return save_path
    step = step_number(global_step)
    return f"{save_path}-{step:08d}" if pad else f"{save_path}-{step}"


def state_filename(latest_filename: str | None) -> str:
    """Return the name of the state file; InvalidArgumentError if it contains a directory."""
    name = STATE_FILE if latest_filename is None else latest_filename
    if os.path.dirname(name) or not name:
        raise InvalidArgumentError(
            f"'latest_filename' must not contain path components: {quoted(name)}. It is stored with the checkpoints"
        )
    return name
