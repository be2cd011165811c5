"""Values that readers return and writers accept: torch tensors, and numpy arrays of bytes for strings."""

import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.parameter import is_lazy

from torch_tfckpt.dtypes import ELEMENTS, data_type, torch_dtype
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, UnimplementedError, error_context, located
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.indexing import Index, indexed_part
from torch_tfckpt.format.string_tensor import decode_strings
from torch_tfckpt.format.tensor_bundle import BundleEntry
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, element_count, shape_text
from torch_tfckpt.format.variant_tensor import decode_variants
from torch_tfckpt.text import quoted

Strings = npt.NDArray[np.object_]  # elements are bytes
Value = torch.Tensor | Strings
# The declared return type of public readers. Almost every value is a tensor, and only the file determines which values
# are strings; with `Value` every use would need a cast. `X | Any` is typeshed's convention for this case: a value is
# accepted as a tensor without a cast, and type checkers know the attributes of tensors. `get_strings` has the exact
# type.
LoadedValue = torch.Tensor | Any

PLAIN_CLASSES: Final = frozenset((torch.Tensor, torch.nn.Parameter))
_PARTS: Final = {
    torch.sparse_coo: "tensor.indices() and tensor.values()",
    torch.sparse_csr: "tensor.crow_indices(), tensor.col_indices() and tensor.values()",
    torch.sparse_bsr: "tensor.crow_indices(), tensor.col_indices() and tensor.values()",
    torch.sparse_csc: "tensor.ccol_indices(), tensor.row_indices() and tensor.values()",
    torch.sparse_bsc: "tensor.ccol_indices(), tensor.row_indices() and tensor.values()",
}
# What to do with torch's own subclasses, by the name of the class: importing them would import torch.distributed.
_SUBCLASSES: Final = {
    "DTensor": "It is spread over several ranks: pass ranks=tfckpt.Ranks(), and save or restore on every one of them",
    "MaskedTensor": "Save tensor.get_data() and tensor.get_mask()",
    "NestedTensor": "Save tensor.values() and tensor.offsets()",
    "FakeTensor": "It has no values: save outside of the FakeTensorMode",
    "FunctionalTensor": "Save outside of the transformed function",
}
_is_transformed: Final = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", lambda tensor: False)
_keys_of: Final = torch._C._dispatch_keys
_ORDINARY: Final[set[int]] = set()  # dispatch keys of ordinary tensors; there are a few for each kind of device
_mode: Final = torch._C._get_dispatch_mode
_FAKE: Final = torch._C._TorchDispatchModeKey.FAKE

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def outside_modes(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Call the decorated function outside of the FakeTensorMode and InferenceMode of the calling thread.

    - In FakeTensorMode, new tensors have no values and operations on real tensors are refused, so no file could be read
      or written. Outside of the mode, real tensors are returned as usual; `check_plain` refuses fake ones.
    - Tensors created in InferenceMode cannot be trained, but a model or optimizer state that is restored in this mode
      may be trained later.

    Other modes of torch need no handling: new tensors are created with an explicit device and dtype, and results do not
    depend on autograd, autocast, or modes that observe operations (tests/test_torch_modes.py).

    Cost: a fraction of a microsecond.
    """

    @functools.wraps(function)
    def outside(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        fake, inference = _mode(_FAKE) is not None, torch.is_inference_mode_enabled()
        if not fake and not inference:
            return function(*args, **kwargs)
        with ExitStack() as left:
            if fake:  # the mode is active, so its module has been imported
                left.enter_context(sys.modules["torch._subclasses.fake_tensor"].unset_fake_temporarily())
            if inference:
                left.enter_context(torch.inference_mode(False))
            return function(*args, **kwargs)

    return outside


class StoredTensor:
    """Tensor in a checkpoint that is read when it is indexed.

    The index may contain integers, slices with positive steps, and one ellipsis.

    Attributes:
        shape: The full shape.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"table": torch.arange(6).reshape(3, 2)}, "model.ckpt")
        >>> with tfckpt.load_checkpoint(path) as reader:
        ...     stored = reader.get_slice("table")
        ...     stored.get_shape(), stored[1:]
        ([3, 2], tensor([[2, 3],
                [4, 5]]))
    """

    def __init__(self, name: str, shape: Shape, dtype: DataType, read: Callable[[TensorSlice], Value]) -> None:
        self.shape = shape
        self._name, self._dtype, self._read = name, dtype, read

    def __repr__(self) -> str:
        return f"<StoredTensor {quoted(self._name)} {self._dtype.name} {shape_text(self.shape)}>"

    def get_shape(self) -> list[int]:
        """Return the full shape."""
        return list(self.shape)

    def get_dtype(self) -> DataType:
        """Return TensorFlow's element type."""
        return self._dtype

    @outside_modes
    def __getitem__(self, index: Index) -> LoadedValue:
        """Return the elements at `index`, with the same shape as when indexing a tensor.

        Raises:
            InvalidArgumentError: an index is out of range or of an unsupported kind, or there are too many indices.

        Cost: the bytes from the first to the last element. The first time, the rest of the stored tensor is read too,
        to verify its checksum, and is not kept.
        """
        with error_context(f"tensor {quoted(self._name)} of shape {shape_text(self.shape)}"):
            part, within = indexed_part(index, self.shape)
        value = self._read(part)
        return value[within] if within else value


def value_dtype(name: str, dtype: DataType) -> torch.dtype:
    """Return the torch dtype for stored tensor `name`; raise UnimplementedError if torch has none."""
    try:
        return torch_dtype(dtype)
    except UnimplementedError as error:
        raise located(
            error, f"tensor {quoted(name)}", "Read the other tensors, or the bytes of this one with get_stored_bytes."
        ) from None


def new_tensor(name: str, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised contiguous CPU tensor. REQUIRES: the file is known to contain its bytes."""
    try:
        return torch.empty(shape, dtype=dtype, device="cpu")
    except RuntimeError as error:
        raise _cannot_hold("torch", name, shape, error) from error


def new_strings(name: str, shape: Shape) -> Strings:
    """Return an uninitialised array of `shape` for strings. REQUIRES: the file is known to contain them."""
    try:
        return np.empty(shape, dtype=object)
    except ValueError as error:
        raise _cannot_hold("numpy", name, shape, error) from error


def strings_from(name: str, shape: Shape, elements: list[bytes]) -> Strings:
    """Return `elements`, which are in row-major order, as an array of `shape`."""
    flat = np.empty(len(elements), dtype=object)
    flat[:] = elements
    try:
        return flat.reshape(shape)
    except ValueError as error:
        raise _cannot_hold("numpy", name, shape, error) from error


def _cannot_hold(library: str, name: str, shape: Shape, error: Exception) -> UnimplementedError:
    return UnimplementedError(
        f"tensor {quoted(name)}: {library} cannot hold shape {shape_text(shape)}: {error}. "
        f"Read its bytes with get_stored_bytes"
    )


def fixed_size(entry: BundleEntry) -> int | None:
    """Return the size in bytes implied by dtype and shape; None for strings, variants and unknown types."""
    element = ELEMENTS.get(entry.dtype)
    return element.size * element_count(entry.shape) if element is not None and element.size else None


def check_out(name: str, out: torch.Tensor, shape: Shape, dtype: torch.dtype) -> None:
    """Raise InvalidArgumentError, before any byte is copied, if `out` cannot receive the tensor."""
    if tuple(out.shape) != shape or out.dtype != dtype:
        raise InvalidArgumentError(
            f"tensor {quoted(name)}: `out` is {out.dtype} {shape_text(out.shape)}, but the stored tensor is {dtype} "
            f"{shape_text(shape)}. Pass a tensor of the stored dtype and shape, or omit `out`"
        )
    check_plain(name, out, meta=True)
    if out.device.type == "meta":
        raise InvalidArgumentError(
            f"tensor {quoted(name)}: `out` is on the meta device and has no memory to fill. Pass a tensor on "
            "another device"
        )
    if any(stride == 0 and size > 1 for stride, size in zip(out.stride(), out.shape, strict=True)):
        raise InvalidArgumentError(
            f"tensor {quoted(name)}: `out` is expanded: several of its elements share memory. Pass out.contiguous()"
        )


WritableValue = torch.Tensor | npt.NDArray[np.generic] | Strings | str | bytes


def writable(
    name: str, value: WritableValue, dtype: DataType | None
) -> tuple[torch.Tensor | list[bytes], DataType, Shape]:
    """Return the content (tensor or elements of a string tensor), type and shape to store for `value`.

    Args:
        dtype: The type to store it as, which must have the same torch dtype (for example DT_QINT8 for an int8 tensor).
            None: the default type for the tensor's dtype.

    Raises:
        InvalidArgumentError: a value that a checkpoint cannot store (meta, sparse or quantized tensors, arrays of
            objects other than strings), or a `dtype` that does not match.
        UnimplementedError: TensorFlow has no such dtype.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OSUT":
        value = _from_numpy(name, value)
    if isinstance(value, torch.Tensor):
        check_plain(name, value)
        stored = data_type(value.dtype, name) if dtype is None else dtype
        element = ELEMENTS.get(stored)
        if element is None or element.torch != value.dtype:
            raise InvalidArgumentError(f"tensor {quoted(name)}: {value.dtype} cannot be stored as {stored.name}")
        return value, stored, tuple(value.shape)
    if dtype not in (None, DataType.DT_STRING):
        raise InvalidArgumentError(f"tensor {quoted(name)}: strings cannot be stored as {dtype.name}")
    array = np.asarray(value, dtype=object)
    return [_string_element(name, item) for item in array.reshape(-1)], DataType.DT_STRING, array.shape


def check_plain(name: str, tensor: torch.Tensor, *, meta: bool = False) -> None:
    """Raise InvalidArgumentError unless a tensor is one block of elements in memory that torch can read.

    Ordinary tensors, parameters, buffers, views with any strides, and subclasses that only add methods are accepted.

    Args:
        meta: Accept tensors on the meta device, and lazy (uninitialised) ones.

    Cost: half a microsecond.
    """
    kind = type(tensor)
    if kind not in PLAIN_CLASSES and is_lazy(tensor):
        if meta:
            return
        raise InvalidArgumentError(
            f"tensor {quoted(name)} is not initialised yet: its shape is not known. Run the module once first"
        )
    if kind not in PLAIN_CLASSES and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        what, hint = _of_subclass(tensor)
    elif tensor.is_nested:
        what, hint = "is a nested tensor", "Save the tensors in it: tensor.unbind()"
    elif tensor.layout is not torch.strided:
        what = f"is a {tensor.layout} tensor"
        hint = "Save tensor.to_dense(), or its indices and values: " + _PARTS.get(tensor.layout, "tensor.to_dense()")
    elif tensor.is_quantized:
        what = "is a quantized tensor"
        hint = "Save tensor.dequantize(), or tensor.int_repr() with its scales and zero points"
    elif tensor.is_meta and not meta:
        what, hint = "is a meta tensor", "Materialize its module first, for instance by module.to_empty(device=...)"
    elif torch._is_functional_tensor(tensor) or _is_transformed(tensor):
        what = "belongs to a transform such as torch.func.grad or vmap, or to an export"
        hint = "Save outside of the transformed function"
    else:
        return
    raise InvalidArgumentError(f"tensor {quoted(name)} {what}, which a checkpoint cannot store directly. {hint}")


def is_ordinary(tensor: torch.Tensor) -> bool:
    """Return whether `check_plain` accepts `tensor`, and its memory needs no lazy conjugation or negation.

    REQUIRES: its class is one of PLAIN_CLASSES.

    A tensor's dispatch keys select the implementation of torch's operations. They are different for sparse, quantized,
    meta, transformed and other special tensors. Cost: less than half a microsecond.
    """
    keys = _keys_of(tensor).raw_repr()
    return keys in _ORDINARY or _learn(tensor, keys)


def _learn(tensor: torch.Tensor, keys: int) -> bool:
    if tensor.is_conj() or tensor.is_neg() or not is_plain_tensor(tensor):
        return False
    _ORDINARY.add(keys)
    return True


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Return whether `check_plain` accepts a tensor."""
    try:
        check_plain("", tensor)
    except InvalidArgumentError:
        return False
    return True


def _of_subclass(tensor: torch.Tensor) -> tuple[str, str]:
    """Describe a tensor subclass that stores its values in its own way, and what to save instead."""
    kind = type(tensor)
    hint = _SUBCLASSES.get(kind.__name__, "")
    if not hint:
        parts = getattr(tensor, "__tensor_flatten__", lambda: ((), None))()[0]
        names = ", ".join(f"tensor.{part}" for part in parts)
        hint = f"Save the tensors in it{f': {names}' if names else ''}, or convert it to a plain tensor"
    return f"is a {kind.__module__}.{kind.__qualname__}", hint


def _from_numpy(name: str, array: npt.NDArray[np.generic]) -> torch.Tensor:
    try:
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
    except (TypeError, ValueError) as error:
        raise UnimplementedError(f"tensor {quoted(name)}: numpy dtype {array.dtype} has no torch dtype") from error


def _string_element(name: str, item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode("utf-8", "surrogateescape")
    hint = "Store a torch tensor"
    if isinstance(item, dict | list | tuple):
        hint = "Pass one flat dict of tensors, such as model.state_dict(); a Saver saves objects and nested dicts"
    raise InvalidArgumentError(
        f"tensor {quoted(name)}: {type(item).__name__} is neither a tensor nor bytes nor str. {hint}"
    )


def check_stored_bytes(entry: BundleEntry, stored: bytes, *, big_endian: bool) -> None:
    """Raise DataLossError if `stored` does not match the entry's checksum.

    Strings and variants are decoded to check them. Raise UnimplementedError for variants from a big-endian writer:
    their checksum covers sizes in big-endian order.
    """
    count = element_count(entry.shape)
    if entry.dtype == DataType.DT_STRING:
        # Old writers stored no bytes at all for an empty string tensor, not even the checksum of its lengths.
        if count or stored:
            decode_strings(stored, count, entry.checksum, big_endian=big_endian)
    elif entry.dtype == DataType.DT_VARIANT:
        if big_endian:
            raise UnimplementedError("variants from a big-endian writer cannot be verified")
        decode_variants(stored, count, entry.checksum)
    elif crc32c.mask(crc32c.value(stored)) != entry.checksum:
        raise DataLossError(
            f"Checksum does not match: stored {entry.checksum:#010x}, computed "
            f"{crc32c.mask(crc32c.value(stored)):#010x}"
        )
