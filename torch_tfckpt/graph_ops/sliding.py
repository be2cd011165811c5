"""Sliding windows of convolutions and pools: layouts and paddings.

TensorFlow pads by name. "VALID" pads nothing. "SAME" pads so that there are ceil(size / stride) outputs, with the
larger half after the last element. "EXPLICIT" has numbers of its own. torch only pads both ends equally.

    output size      (size + before + after - window) // stride + 1
    window           dilation * (kernel - 1) + 1
    SAME, total      max((ceil(size / stride) - 1) * stride + window - size, 0)

`channels_first` returns a view: a contiguous NHWC tensor becomes an NCHW tensor in torch's channels_last memory format,
which is what its fast convolutions want, so nothing is copied.

Source: tensorflow/core/framework/kernel_shape_util.cc.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import torch_pads
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.values import Ints, Tensor
from torch_tfckpt.text import quoted


def is_channels_first(data_format: str) -> bool:
    """Return whether channels come before height and width; raise InvalidArgumentError for an unknown format."""
    if data_format in ("NHWC", "NDHWC"):
        return False
    if data_format in ("NCHW", "NCDHW"):
        return True
    raise InvalidArgumentError(f"data_format {quoted(data_format)} is unknown: expected NHWC, NCHW, NDHWC or NCDHW")


def channel_axis(data_format: str, rank: int) -> int:
    return 1 if is_channels_first(data_format) else rank - 1


def axes_without_channels(data_format: str, rank: int) -> list[int]:
    """Return the axes of batch, height and width."""
    channels = channel_axis(data_format, rank)
    return [axis for axis in range(rank) if axis != channels]


def per_channel(vector: Tensor, data_format: str, rank: int) -> Tensor:
    """Return a view of a vector that broadcasts over the channels of a tensor of this rank."""
    return vector.reshape(-1, *[1] * (rank - 2)) if is_channels_first(data_format) else vector


def channels_first(x: Tensor, data_format: str) -> Tensor:
    """Return a view of images as [batch, channels, height, width], also for three dimensions."""
    if x.dim() != len(data_format):
        raise InvalidArgumentError(
            f"expected a tensor of rank {len(data_format)} ({data_format}), found the shape {list(x.shape)}"
        )
    return x if is_channels_first(data_format) else x.movedim(-1, 1)


def as_format(x: Tensor, data_format: str) -> Tensor:
    """Return a view of [batch, channels, height, width] in `data_format`."""
    return x if is_channels_first(data_format) else x.movedim(1, -1)


def spatial(values: Sequence[int], data_format: str, what: str) -> Ints:
    """Return the entries of height and width of a list with one entry per dimension; the others must be 1."""
    if len(values) != len(data_format):
        raise InvalidArgumentError(f"{what} has {len(values)} entries, expected {len(data_format)} ({data_format})")
    first = 2 if is_channels_first(data_format) else 1
    inner = tuple(values[first : first + len(values) - 2])
    batch, channels = values[0], values[channel_axis(data_format, len(values))]
    if (batch, channels) != (1, 1):
        raise InvalidArgumentError(f"{what} is {list(values)}: the entries of batch and channels must be 1")
    if any(value < 1 for value in inner):
        raise InvalidArgumentError(f"{what} is {list(values)}: entries must be positive")
    return inner


def ceil_div(size: int, stride: int) -> int:
    return -(-size // stride)


@dataclass(frozen=True, slots=True)
class Windows:
    """Positions of a window along each spatial dimension of a tensor.

    Attributes:
        sizes: Of the tensor.
        kernel: Elements of the window.
        strides: Steps.
        dilations: Distance of the window's elements.
        before: Padding before the first element.
        after: Padding after the last element.
    """

    sizes: Ints
    kernel: Ints
    strides: Ints
    dilations: Ints
    before: Ints
    after: Ints

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        kernel: Sequence[int],
        strides: Ints,
        padding: str,
        dilations: Ints | None = None,
        explicit: Sequence[int] = (),
        data_format: str = "NHWC",
    ) -> "Windows":
        """Compute the paddings; `explicit` has two entries per dimension of `data_format`, batch and channels too."""
        dilations = dilations or (1,) * len(strides)
        pads: Sequence[tuple[int, int]]
        if padding == "EXPLICIT":
            pads = _explicit(explicit, data_format)
        elif explicit:
            raise InvalidArgumentError(f"explicit_paddings are given, but padding is {quoted(padding)}")
        elif padding == "VALID":
            pads = [(0, 0)] * len(strides)
        elif padding == "SAME":
            pads = list(map(_same, sizes, kernel, strides, dilations))
        else:
            raise InvalidArgumentError(f"padding {quoted(padding)} is unknown: expected SAME, VALID or EXPLICIT")
        before, after = zip(*pads, strict=True)
        return cls(tuple(sizes), tuple(kernel), strides, dilations, before, after)

    @property
    def extents(self) -> Ints:
        """Elements from the window's first to its last, for each dimension."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def counts(self) -> Ints:
        """Positions, which is the size of the output."""
        found = []
        for size, before, after, extent, stride in zip(
            self.sizes, self.before, self.after, self.extents, self.strides, strict=True
        ):
            reach = size + before + after - extent
            if isinstance(reach, int) and reach <= -2 * stride:  # as in TensorFlow, whose division rounds to zero
                raise InvalidArgumentError(
                    f"a window of {list(self.extents)} elements does not fit into {list(self.sizes)} with the paddings "
                    f"{list(self.before)} before and {list(self.after)} after"
                )
            found.append(0 if isinstance(reach, int) and reach < 0 else reach // stride + 1)
        return tuple(found)

    @property
    def padded_sizes(self) -> Ints:
        return tuple(map(sum, zip(self.before, self.sizes, self.after, strict=True)))

    @property
    def is_empty(self) -> bool:
        """Whether there are no positions."""
        return any(isinstance(count, int) and count == 0 for count in self.counts)

    def padded(self, x: Tensor, value: float = 0) -> tuple[Tensor, Ints]:
        """Pad [batch, channels, *sizes] where torch cannot; return it and the padding that is left for torch.

        Symmetric padding is left to torch, which does it without a copy.
        """
        if self.before == self.after:
            self._check_growth(x)
            return x, self.before
        return self.fully_padded(x, value), (0,) * len(self.before)

    def fully_padded(self, x: Tensor, value: float = 0) -> Tensor:
        """Pad [batch, channels, *sizes] with `value`."""
        if not any(self.before) and not any(self.after):
            return x
        self._check_growth(x)
        return F.pad(x, torch_pads(list(zip(self.before, self.after, strict=True))), value=value)

    def _check_growth(self, x: Tensor) -> None:
        """Compare a result with the limit if it is more paddings, which are numbers of the file, than elements."""
        padded = zip(self.padded_sizes, self.sizes, strict=True)
        if any(isinstance(new, int) and new > 2 * size + 64 for new, size in padded):
            check_size((*x.shape[:2], *self.padded_sizes))


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    window = dilation * (kernel - 1) + 1
    # With stride 1 the padding does not depend on the size, so that a size may stay symbolic.
    if stride == 1:
        total = window - 1
    else:
        needed = (ceil_div(size, stride) - 1) * stride + window - size
        total = torch.sym_max(needed, 0)  # type: ignore[no-untyped-call]
    return total // 2, total - total // 2


def _explicit(explicit: Sequence[int], data_format: str) -> list[tuple[int, int]]:
    if len(explicit) != 2 * len(data_format):
        raise InvalidArgumentError(
            f"explicit_paddings has {len(explicit)} entries, expected {2 * len(data_format)}: two for each dimension"
        )
    if any(value < 0 for value in explicit):
        raise InvalidArgumentError(f"explicit_paddings are {list(explicit)}, which must not be negative")
    pairs = list(zip(explicit[::2], explicit[1::2], strict=True))
    outer = [pairs[0], pairs.pop(channel_axis(data_format, len(pairs)))]
    if outer != [(0, 0), (0, 0)]:
        raise InvalidArgumentError(f"explicit_paddings are {list(explicit)}: batch and channels cannot be padded")
    return pairs[1:]
