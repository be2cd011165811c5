"""Tensors -> a .npz file that numpy.load reads.

Types that numpy lacks (bfloat16, float8) are written as unsigned integers of the same bits; the sidecar says what they
are, and reading them back through this package gives the type again.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from torch_tfckpt.device.host_bytes import byte_view
from torch_tfckpt.exchange.npz_source import TYPES
from torch_tfckpt.exchange.publication import Publication
from torch_tfckpt.exchange.stored_zip import StoredZip, can_name_member
from torch_tfckpt.exchange.values import TensorInfo, Value
from torch_tfckpt.storage.protocol import Buffer

_DESCRS: Final[dict[torch.dtype, Any]] = {
    torch_dtype: np.lib.format.dtype_to_descr(dtype) for dtype, torch_dtype in TYPES.items()
}


class NpzSink:
    """Writes `path`. Memory: none beyond the values given."""

    format = "npz"

    def __init__(self, path: str) -> None:
        self.path = path
        self._infos: Mapping[str, TensorInfo] = {}
        self._zip: StoredZip | None = None
        self._temporary = ""

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        if info.type.is_string:
            return "numpy's strings drop trailing null bytes"
        if info.type.dtype is None:
            return f"numpy has no type {info.type.name}"
        return None if can_name_member(f"{name}.npy") else "its name cannot name a member of a zip archive"

    def noted_type(self, info: TensorInfo) -> bool:
        return not info.type.is_plain or info.type.dtype not in _DESCRS

    def plan(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        self._infos = tensors
        return list(tensors)

    def files(self) -> list[str]:
        return [self.path]

    def open(self, publication: Publication) -> None:
        self._temporary = publication.place(self.path)
        self._zip = StoredZip(self._temporary)

    def write(self, values: Mapping[str, Value]) -> None:
        assert self._zip is not None, "not open"
        for name, value in values.items():
            assert isinstance(value, torch.Tensor), "refused before"
            self._zip.add(f"{name}.npy", _encode(value))

    def finish(self) -> int:
        self.close()
        return Path(self._temporary).stat().st_size

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()


def _encode(tensor: torch.Tensor) -> Iterator[Buffer]:
    """The pieces of a .npy file."""
    descr = _DESCRS.get(tensor.dtype) or np.lib.format.dtype_to_descr(np.dtype(f"u{tensor.dtype.itemsize}"))
    header: dict[str, Any] = {"descr": descr, "fortran_order": False, "shape": tuple(tensor.shape)}
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, header)  # 254 dimensions at most: far from its 65,535 bytes
    yield head.getvalue()
    yield byte_view(tensor)
