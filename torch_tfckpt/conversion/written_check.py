"""Check that a module loads a file strictly, before the file is published.

Names, shapes and dtypes are read back from what was written. The module is on the meta device, so no values are read.
"""

import copy
from collections.abc import Mapping
from contextlib import closing

import torch
from torch import nn

from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.foreign_files.npz import NpzSource
from torch_tfckpt.foreign_files.protocols import TensorSink, TensorSource
from torch_tfckpt.foreign_files.pt import PtSink, PtSource
from torch_tfckpt.foreign_files.safetensors import SafetensorsSource
from torch_tfckpt.text import printable


def planned_state(source: TensorSource, dtype: torch.dtype | None, part: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a source that belong to the module, on the meta device.

    Args:
        dtype: The dtype that floating-point tensors will get; None: their own.
        part: Prefix of the names of the module's tensors.
    """
    infos = {name: source.info(name).cast(dtype) for name in source.names() if name.startswith(part)}
    return {
        name.removeprefix(part): torch.empty(info.shape, dtype=info.type.dtype, device="meta")
        for name, info in infos.items()
        if info.type.dtype is not None
    }


def written_state(sink: TensorSink, files: Mapping[str, str], part: str) -> dict[str, torch.Tensor]:
    """Return the module's tensors in files that are not published yet, on the meta device.

    Args:
        files: Final path -> temporary path.
        part: As for `planned_state`.
    """
    state: dict[str, torch.Tensor] = {}
    for path, temporary in files.items():
        source: TensorSource
        if isinstance(sink, PtSink) and path == sink.path:
            source = PtSource(temporary)
        elif path.endswith(".npz"):
            source = NpzSource(temporary)
        elif path.endswith(".safetensors"):
            source = SafetensorsSource.of_file(temporary)
        else:  # an index or a sidecar
            continue
        with closing(source):
            state |= planned_state(source, None, part)
    return state


def check_fit(model: nn.Module, state: Mapping[str, torch.Tensor], place: str, factory: str) -> None:
    """Raise FailedPreconditionError unless `load_state_dict(strict=True)` accepts a state_dict.

    Args:
        place: The file, for error messages.
        factory: The module, for error messages.
    """
    tensors = (*model.parameters(), *model.buffers())
    empty = model if all(tensor.is_meta for tensor in tensors) else copy.deepcopy(model).to("meta")
    try:
        empty.load_state_dict(dict(state), strict=True)
    except Exception as error:  # hooks and overrides may raise anything
        raise FailedPreconditionError(
            f"{printable(place)}: {factory} does not load it: {error}\nNothing was published"
        ) from error
