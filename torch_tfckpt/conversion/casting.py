"""Convert floating-point tensors to a different dtype, and report the values beyond its range.

The caller asked for fewer digits, but not for changes to numbers beyond the range: float16 would turn 65,520 into
infinity, and a float8 type into NaN or into its largest number, depending on the type. Such numbers are an error that
lists all tensors with them, unless the caller asks for the nearest number. Numbers so small that they become zero are
counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch

from torch_tfckpt.conversion.selected_source import RenamedSource
from torch_tfckpt.conversion.tensor_statistics import has_numbers
from torch_tfckpt.dtypes import RangeLoss, check_convertible
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.foreign_files.values import FileValue, TensorInfo, batches, cast_floating, dtype_named
from torch_tfckpt.text import and_more, counted, printable, quoted

_NAMED: Final = 8  # number of tensors listed in a report or an error message


class Casting:
    """Conversion of tensors to `dtype`; None: nothing is converted.

    Args:
        clamp: Replace values beyond the range of `dtype` by the nearest number in it, instead of raising.

    Attributes:
        dtype: The wanted type; None: nothing is converted.
        clamped: Name in the source -> number of values replaced because of `clamp`.
        zeroed: Name in the source -> number of values other than zero that became zero.

    Raises:
        InvalidArgumentError: `dtype` is not a floating-point type, or torch cannot convert to it; `clamp` without
            `dtype`.
    """

    def __init__(self, dtype: torch.dtype | str | None, *, clamp: bool = False) -> None:
        self.dtype = dtype_named(dtype) if isinstance(dtype, str) else dtype
        if self.dtype is not None:
            check_convertible(self.dtype)
        elif clamp:
            raise InvalidArgumentError("clamp=True has no effect without dtype. Pass a dtype, or omit clamp")
        self._clamp = clamp
        self._losses: dict[str, RangeLoss] = {}  # name in the source -> loss, of every tensor converted so far
        self.clamped: dict[str, int] = {}
        self.zeroed: dict[str, int] = {}

    def info(self, source: RenamedSource, name: str) -> TensorInfo:
        """Return the properties of a tensor after the conversion.

        Raises:
            UnimplementedError: torch cannot convert its elements, for example because they are pairs of numbers.
        """
        info = source.info(name)
        cast = info.cast(self.dtype)
        if cast is not info and info.type.dtype is not None and not has_numbers(info.type.dtype):
            raise UnimplementedError(
                f"tensor {quoted(source.old_name(name))}: torch cannot convert {info.type.name} to another dtype. "
                f"Omit dtype, or exclude the tensor"
            )
        return cast

    def read(self, source: RenamedSource, names: Sequence[str], place: str) -> dict[str, FileValue]:
        """Return the values of `names`, converted.

        Args:
            place: The source, for error messages.

        Raises:
            InvalidArgumentError: values are beyond the range, without `clamp`. The message lists all tensors of
                `source` with such values: the rest of `source` is read for this.
        """
        values = self._converted(source, names)
        if not self._clamp and any(loss.beyond for loss in self._losses.values()):
            rest = {name: source.info(name).nbytes for name in source.names() if self._converts(source, name)}
            for batch in batches(rest):
                self._converted(source, batch)
            raise self._refusal(place)
        return values

    def _converts(self, source: RenamedSource, name: str) -> bool:
        """Return whether a tensor is to be converted, but has not been converted yet."""
        kind = source.info(name).type.dtype
        return kind is not None and kind.is_floating_point and source.old_name(name) not in self._losses

    def _converted(self, source: RenamedSource, names: Sequence[str]) -> dict[str, FileValue]:
        values = source.read(names)
        for name in names:
            value = values[name]
            if self.dtype is not None and isinstance(value, torch.Tensor) and value.is_floating_point():
                values[name], loss = _cast(value, self.dtype, clamp=self._clamp)
                del value
                self._record(source.old_name(name), loss)
        return values

    def _record(self, name: str, loss: RangeLoss) -> None:
        self._losses[name] = loss
        if loss.to_zero:
            self.zeroed[name] = loss.to_zero
        if loss.beyond and self._clamp:
            self.clamped[name] = loss.beyond

    def _refusal(self, place: str) -> InvalidArgumentError:
        assert self.dtype is not None, "nothing was converted"
        lost = {name: loss for name, loss in self._losses.items() if loss.beyond}
        shown = (
            f"{quoted(name)} ({counted(loss.beyond, 'value')}, largest {loss.largest:.9g})"
            for name, loss in list(lost.items())[:_NAMED]
        )
        limit = torch.finfo(self.dtype).max
        wider = "" if limit > 1e38 else "Use dtype=bfloat16, which has the range of float32. Or "
        omit = f"{'omit' if wider else 'Omit'} these tensors with `exclude`"
        return InvalidArgumentError(
            f"{printable(place)}: {counted(len(lost), 'tensor')} with values beyond the range of "
            f"{type_name(self.dtype)}, whose largest number is {limit:.9g}: {', '.join(shown)}"
            f"{and_more(len(lost), _NAMED)}. {wider}{omit}, or "
            f"pass clamp=True, which stores the nearest number instead"
        )


def _cast(value: torch.Tensor, dtype: torch.dtype, *, clamp: bool) -> tuple[torch.Tensor, RangeLoss]:
    """Convert a tensor of any strides, without a contiguous copy if its axes were only permuted."""
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda axis: -strides[axis])
    dense = value.permute(order)
    if not dense.is_contiguous():
        return cast_floating(value.contiguous(), dtype, clamp=clamp)
    cast, loss = cast_floating(dense, dtype, clamp=clamp)
    return cast.permute([order.index(axis) for axis in range(value.dim())]), loss


def type_name(dtype: torch.dtype) -> str:
    """Return "float16" for torch.float16."""
    return str(dtype).removeprefix("torch.")


def casting_lines(clamped: Mapping[str, int], zeroed: Mapping[str, int]) -> Iterable[str]:
    """Yield the lines of a report on values that the range of the new dtype changed."""
    if clamped:
        yield f"beyond the range of the dtype, and replaced by the nearest number: {_counts(clamped)}"
    if zeroed:
        yield f"too small for the dtype, and now zero: {_counts(zeroed)}"


def _counts(values: Mapping[str, int]) -> str:
    shown = ", ".join(f"{quoted(name)} ({count:,})" for name, count in list(values.items())[:_NAMED])
    total = counted(sum(values.values()), "value")
    return f"{total} in {counted(len(values), 'tensor')}: {shown}{and_more(len(values), _NAMED)}"
