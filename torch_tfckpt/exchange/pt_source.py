"""A .pt, .pth or .bin file, read with torch.load(weights_only=True, mmap=True): nothing in it is executed.

Dictionaries and lists in it are walked, and the names on the way joined with ".": {"model": {"fc.weight": w}} gives
"model.fc.weight". What is found there and is no plain tensor (numbers, strings, sparse or quantized tensors) is named
as skipped. Tensors that share memory come out as tensors of their own.
"""

import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch

from torch_tfckpt.errors import DataLossError, InvalidArgumentError, UnimplementedError, printable, quoted
from torch_tfckpt.exchange.values import ElementType, TensorInfo, Value
from torch_tfckpt.format.tensor_slice import element_count
from torch_tfckpt.storage.local import LOCAL

# Pages of the mapped file count as memory of this process while they are mapped. After so many bytes the file is mapped
# anew, so that reading a large one stays small.
_MAPPED_BYTES: Final = 32 * 1024 * 1024
_MET: Final = ("WeightsUnpickler error: ", "Trying to load unsupported ")
_MAX_DEPTH: Final = 64


class PtSource:
    """The tensors of a .pt file.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: it is damaged, or is something else.
        UnimplementedError: it holds objects beyond tensors, or was written before torch 1.6.
        InvalidArgumentError: two tensors would have the same name.

    Threads: one at a time.
    """

    format = "pt"

    def __init__(self, path: str) -> None:
        self.path = path
        self.skipped: dict[str, str] = {}
        self._file = LOCAL.open(path)
        self._touched = 0
        self._tensors: dict[str, torch.Tensor] = {}
        try:
            self._map()
        except BaseException:
            self.close()
            raise

    def _map(self) -> None:
        self._tensors, self.skipped = {}, {}
        # By its descriptor: the same file each time, whoever replaces it meanwhile, and a path in any encoding, where
        # torch takes UTF-8 only.
        for name, leaf in _leaves("", _load(f"/dev/fd/{self._file.fileno()}", self.path), 0):
            reason = _no_tensor(leaf)
            if reason is not None:
                self.skipped[name] = reason
            elif name in self._tensors:
                raise InvalidArgumentError(
                    f"{printable(self.path)}: two tensors in nested dictionaries are both called {quoted(name)}"
                )
            else:
                self._tensors[name] = leaf
        self._touched = 0

    def names(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        shape = tuple(tensor.shape)
        return TensorInfo(ElementType.of_torch(tensor.dtype), shape, element_count(shape) * tensor.dtype.itemsize)

    def read(self, names: Iterable[str]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for name in names:
            nbytes = self.info(name).nbytes
            if nbytes > self._file.size:
                # Legal, for an expanded tensor; but a few bytes could ask for all memory that way.
                raise UnimplementedError(
                    f"{printable(self.path)}: tensor {quoted(name)} stands for {nbytes} bytes in a file of "
                    f"{self._file.size}. Save it again after .contiguous()"
                )
            if self._touched and self._touched + nbytes > _MAPPED_BYTES:
                self._map()
            self._touched += nbytes
            tensor = self._tensors[name].detach()
            values[name] = tensor.clone(memory_format=torch.contiguous_format)
        return values

    def files(self) -> list[str]:
        return [self.path]

    def data_bytes(self) -> int:
        return self._file.size

    def close(self) -> None:
        self._tensors = {}
        self._file.close()


def _load(mapped: str, path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the ways in which old files were written; none matters to values
            return torch.load(mapped, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UnimplementedError(
            f"{printable(path)}: holds Python objects beyond tensors, numbers and dictionaries of them, and loading "
            f"such could run any program: {_reason(error)}. Save its state_dict() alone"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # A damaged pickle makes torch's reader fail at whatever it stumbles over, assertions and struct.error included.
        if "mmap can only be used" in str(error):
            raise UnimplementedError(
                f"{printable(path)}: no zip archive: damaged, or written by torch before 1.6. Load it with torch.load "
                f"and save it again"
            ) from error
        raise DataLossError(f"{printable(path)}: torch.load: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The restricted loader says how to get around it first, and what it met last.
    met = [line.removeprefix("WeightsUnpickler error: ") for line in lines if line.startswith(_MET)]
    return (met or lines or [type(error).__name__])[0][:300].partition(" Please use")[0].rstrip(".")


def _leaves(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Everything that is no container, under the names that lead to it."""
    if depth > _MAX_DEPTH:
        yield name, value
    elif isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), item, depth + 1)
    elif isinstance(value, list | tuple) and value:
        for number, item in enumerate(value):
            yield from _leaves(f"{name}.{number}" if name else str(number), item, depth + 1)
    else:
        yield name, value


def _no_tensor(leaf: Any) -> str | None:
    """What a leaf is instead of a tensor in memory with strides."""
    if not isinstance(leaf, torch.Tensor):
        return f"{type(leaf).__name__} {repr(leaf)[:60]}"
    if leaf.is_quantized:
        return "quantized tensor"
    if leaf.layout != torch.strided:
        return f"{str(leaf.layout).removeprefix('torch.')} tensor"
    return f"tensor on {leaf.device.type}" if leaf.device.type != "cpu" else None
