"""Layouts: how TensorFlow and torch store a weight, and the invertible transform between the two.

    same                  unchanged
    dense                 kernel [in, out], also with heads ([in, heads, size], [heads, size, out]) or as a 1x1
                          convolution ([1, 1, in, out])             <-> Linear.weight [out, in]
    dense_to_heads        kernel [in, heads, size] or [in, out]     <-> Linear.weight [out, in]
    dense_from_heads      kernel [heads, size, out] or [in, out]    <-> Linear.weight [out, in]
    dense_after_flatten   kernel [height x width x channels, out]   <-> Linear.weight after a flattened NCHW map
    conv1d, conv2d, conv3d              kernel [..., in, out]       <-> Conv2d.weight [out, in, ...]
    conv_transpose1d, 2d, 3d            kernel [..., out, in]       <-> ConvTranspose2d.weight [in, out, ...]
    conv_to_dense         kernel [height, width, in, out] of a convolution over the whole map <-> Linear.weight
    depthwise             kernel [height, width, in, multiplier]    <-> weight of a Conv2d with groups=in
    vector                [1, 1, channels], [1, channels, 1, 1]     <-> [channels], as of a PReLU; also a number
    squeeze               [1, in, out]                              <-> [in, out]
    heads                 bias [heads, size]                        <-> [heads x size]
    lstm_tf1              kernel [in, 4 x size], gates i, j, f, o   <-> [4 x size, in], gates i, f, g, o
    gru                   kernel [in, 3 x size], gates z, r, h      <-> [3 x size, in], gates r, z, n
    gru_bias              bias [2, 3 x size], gates z, r, h         <-> [2 x 3 x size], gates r, z, n
    weight_norm           g [out]                                   <-> [out, 1, ...]

A layout may have parameters: the lengths of axes that are combined into one axis, in the checkpoint or in torch, and
the `forget_bias` of "lstm_tf1", which TensorFlow adds at run time and torch includes in its bias. Nothing is reshaped
in any other way: a shape that does not fit is an error, because reshaping it would hide a wrong axis order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.layers.axis_patterns import AxisPattern, misfit, pattern
from torch_tfckpt.text import did_you_mean, quoted

Transform = Callable[[torch.Tensor], torch.Tensor]
LayoutLike = str | Sequence[int] | Mapping[str, str | int | float] | tuple[Transform, Transform]
"""What a rule gives as a layout: see `layout_of_rule`."""

_FORGET_BIAS: Final = "forget_bias"


@dataclass(frozen=True, slots=True)
class Layout:
    """A transform of one tensor.

    Attributes:
        name: Its name in rules and reports.
        patterns: The axes; the first pattern that fits a shape is used. Empty: any axes, unchanged.
        known: Lengths of axes that a shape does not determine.
        gates: For each block of the last stored axis, in torch's order, its number in TensorFlow's order.
        added: Amount added to each gate of a bias, in torch's order.
        functions: The transforms in both directions, used instead of patterns, gates and amounts.
        otherwise: Layout to use if this one does not give the wanted shape.
    """

    name: str
    patterns: tuple[AxisPattern, ...] = ()
    known: tuple[tuple[str, int], ...] = ()
    gates: tuple[int, ...] = ()
    added: tuple[float, ...] = ()
    functions: tuple[Transform, Transform] | None = None
    otherwise: "Layout | None" = None

    def fits(self, stored: Shape) -> bool:
        """Return whether tensors of this stored shape can have this layout."""
        return self._is_any or self.fitting(stored) is not None

    def fitting(self, stored: Shape) -> tuple[AxisPattern, dict[str, int]] | None:
        """Return the pattern that fits a stored shape, and the lengths of its axes; None if there is none."""
        if not self._divides(stored):
            return None
        for each in self.patterns:
            lengths = each.lengths(tuple(stored), dict(self.known))
            if lengths is not None:
                return each, lengths
        return None

    def torch_shape(self, stored: Shape) -> Shape:
        """Convert a stored shape to the shape in torch. InvalidArgumentError if it does not fit."""
        if self.functions is not None:
            return tuple(self.functions[0](torch.empty(stored, device="meta")).shape)
        if self._is_any:
            return tuple(stored)
        axes, lengths = self._axes(tuple(stored))
        return axes.shape(lengths)

    def stored_shape(self, held: Shape) -> Shape:
        """Convert a shape in torch to the stored shape. Raises like `torch_shape`."""
        if self.functions is not None:
            return tuple(self.functions[1](torch.empty(held, device="meta")).shape)
        return self._inverse.torch_shape(held)

    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        """Return a stored tensor as torch has it: a view if axes only move. Raises like `torch_shape`."""
        if self.functions is not None:
            return self.functions[0](stored)
        if self._is_any:
            return stored
        axes, lengths = self._axes(tuple(stored.shape))
        if self.gates:
            blocks = stored.chunk(len(self.gates), -1)
            stored = torch.cat([blocks[gate] for gate in self.gates], -1)
        if self.added and stored.dim() == 1:
            stored = stored + self._amounts(stored)
        return axes.apply(stored, lengths)

    def to_stored(self, held: torch.Tensor) -> torch.Tensor:
        """Return a tensor as TensorFlow stores it; the inverse of `to_torch`. Raises like `torch_shape`."""
        if self.functions is not None:
            return self.functions[1](held)
        if self._is_any:
            return held
        axes, lengths = self._inverse._axes(tuple(held.shape))
        stored = axes.apply(held, lengths)
        if self.added and stored.dim() == 1:
            stored = stored - self._amounts(stored)
        if self.gates:
            blocks = stored.chunk(len(self.gates), -1)
            stored = torch.cat([blocks[self.gates.index(gate)] for gate in range(len(self.gates))], -1)
        return stored

    def resolved(self, stored: Shape, wanted: Shape | None) -> "Layout":
        """Return this layout with the one pattern, and the lengths, that turn `stored` into `wanted`.

        The result can be inverted. If no pattern does so, `otherwise` is resolved; without it, this layout is returned.

        Args:
            wanted: Shape in the module; None if it takes any shape.
        """
        for each in self.patterns:
            lengths = each.lengths(tuple(stored), dict(self.known))
            if lengths is not None and self._divides(stored) and wanted in (None, each.shape(lengths)):
                joined = {part for axis in each.held for part in axis if len(axis) > 1}
                known = dict(self.known) | {part: lengths[part] for part in lengths if part in joined}
                if each.stored == each.held and not self.gates and not self.added:
                    return SAME
                return replace(self, patterns=(each,), known=tuple(known.items()))
        return self if self.otherwise is None else self.otherwise.resolved(stored, wanted)

    def with_lengths(self, **known: int) -> "Layout":
        """Return this layout with the given axis lengths. Axes that it does not have are ignored."""
        names = {name for each in self.patterns for name in each.names}
        own = {name: length for name, length in known.items() if name in names}
        return replace(self, known=tuple((dict(self.known) | own).items())) if own else self

    def with_axis(self, name: str) -> "Layout":
        """Return this layout without the patterns that do not have a certain axis."""
        return replace(self, patterns=tuple(each for each in self.patterns if name in each.names))

    @property
    def is_same(self) -> bool:
        """Whether the layout changes nothing."""
        return self.name == SAME.name

    @property
    def changes_values(self) -> bool:
        """Whether the layout reorders the stored elements or changes their values."""
        orders = (
            [[part for axis in side for part in axis] for side in (each.stored, each.held)] for each in self.patterns
        )
        return bool(self.gates or self.added or self.functions) or any(stored != held for stored, held in orders)

    @property
    def _is_any(self) -> bool:
        return not self.patterns

    @property
    def _inverse(self) -> "Layout":
        """Return the layout with the sides of its patterns swapped, for shapes and axes only."""
        return replace(self, patterns=tuple(each.inverse() for each in self.patterns), gates=(), added=())

    def _divides(self, stored: Shape) -> bool:
        return not self.gates or bool(stored and stored[-1] % len(self.gates) == 0)

    def _axes(self, shape: Shape) -> tuple[AxisPattern, dict[str, int]]:
        found = self.fitting(shape)
        if found is None:
            raise misfit(self.name, self.patterns, shape, dict(self.known))
        return found

    def _amounts(self, bias: torch.Tensor) -> torch.Tensor:
        amounts = torch.tensor(self.added, dtype=bias.dtype, device=bias.device)
        return amounts.repeat_interleave(bias.shape[0] // len(self.added))


def _layout(name: str, *patterns: str, gates: tuple[int, ...] = (), added: tuple[float, ...] = ()) -> Layout:
    return Layout(name, tuple(map(pattern, patterns)), gates=gates, added=added)


SAME: Final = Layout("same")
DENSE: Final = _layout(
    "dense",
    "in out -> out in",
    "1 in out -> out in",
    "1 1 in out -> out in",
    "in heads size -> (heads size) in",
    "heads size out -> out (heads size)",
)
# Without a module, a shape of three axes does not show on which side the heads are.
DENSE_TO_HEADS: Final = _layout("dense_to_heads", "in out -> out in", "in heads size -> (heads size) in")
DENSE_FROM_HEADS: Final = _layout("dense_from_heads", "in out -> out in", "heads size out -> out (heads size)")
DENSE_AFTER_FLATTEN: Final = _layout(
    "dense_after_flatten", "(height width channels) out -> out (channels height width)"
)
CONV1D: Final = _layout("conv1d", "width in out -> out in width")
CONV2D: Final = _layout("conv2d", "height width in out -> out in height width")
CONV3D: Final = _layout("conv3d", "depth height width in out -> out in depth height width")
CONV_TRANSPOSE1D: Final = _layout("conv_transpose1d", "width out in -> in out width")
CONV_TRANSPOSE2D: Final = _layout("conv_transpose2d", "height width out in -> in out height width")
CONV_TRANSPOSE3D: Final = _layout("conv_transpose3d", "depth height width out in -> in out depth height width")
CONV_TO_DENSE: Final = _layout("conv_to_dense", "height width in out -> out (in height width)")
DEPTHWISE: Final = _layout(
    "depthwise",
    "height width in multiplier -> (in multiplier) 1 height width",
    "width in multiplier -> (in multiplier) 1 width",
)
VECTOR: Final = _layout(
    "vector",
    "->",
    "channels -> channels",
    "1 channels -> channels",
    "1 1 channels -> channels",
    "1 1 1 channels -> channels",
    "1 channels 1 1 -> channels",
    "1 1 1 1 channels -> channels",
)
SQUEEZE: Final = _layout("squeeze", "1 a -> a", "1 a b -> a b", "1 1 a b -> a b", "1 a b c -> a b c")
HEADS: Final = _layout("heads", "->", "size -> size", "heads size -> (heads size)")
OF_HEADS: Final = frozenset((DENSE_TO_HEADS.name, DENSE_FROM_HEADS.name, HEADS.name))
# Gates of tf.nn.rnn_cell.LSTMCell and BasicLSTMCell; TensorFlow adds forget_bias to f when the cell runs.
LSTM_TF1: Final = _layout("lstm_tf1", "in out -> out in", "out -> out", gates=(0, 2, 1, 3), added=(0.0, 1.0, 0.0, 0.0))
GRU: Final = _layout("gru", "in out -> out in", "out -> out", gates=(1, 0, 2))
# Bias of a Keras GRU with reset_after=True: a row for the input, a row for the state.
GRU_BIAS: Final = _layout("gru_bias", "rows out -> (rows out)", gates=(1, 0, 2)).with_lengths(rows=2)
WEIGHT_NORM: Final = _layout(
    "weight_norm", "out -> out", "out -> out 1", "out -> out 1 1", "out -> out 1 1 1", "out -> out 1 1 1 1"
)

# By the names that rules and reports use.
LAYOUTS: Final[Mapping[str, Layout]] = {
    layout.name: layout
    for layout in (
        SAME, DENSE, DENSE_TO_HEADS, DENSE_FROM_HEADS, DENSE_AFTER_FLATTEN, CONV1D, CONV2D, CONV3D, CONV_TRANSPOSE1D,
        CONV_TRANSPOSE2D, CONV_TRANSPOSE3D, CONV_TO_DENSE, DEPTHWISE, VECTOR, SQUEEZE, HEADS, LSTM_TF1, GRU, GRU_BIAS,
        WEIGHT_NORM,
    )
}  # fmt: skip


def layout_of_rule(given: LayoutLike | Layout) -> Layout:
    """Return the layout that a rule gives.

    Args:
        given: A name; a pattern, such as "in out -> out in"; a permutation of the stored axes, such as (1, 0); a
            mapping with the name or pattern as "kind" and the parameters; a pair of functions, to torch and back; or a
            Layout.

    Raises:
        InvalidArgumentError: `given` is none of these; an unknown name or parameter.
    """
    if isinstance(given, Layout):
        return given
    if isinstance(given, str):
        return Layout(given, (pattern(given),)) if "->" in given else layout_named(given)
    if isinstance(given, Mapping):
        return _with_parameters(given)
    if isinstance(given, Sequence) and given:
        if len(given) == 2 and all(map(callable, given)):
            return Layout("custom", functions=cast("tuple[Transform, Transform]", tuple(given)))
        if all(isinstance(axis, int) for axis in given):
            return Layout(str(tuple(given)), (AxisPattern.of_permutation(cast("Sequence[int]", given)),))
    raise InvalidArgumentError(
        f"{given!r} is not a layout. Give a name, a permutation of axes such as (1, 0), a pattern such as "
        f'"in out -> out in", or a pair of functions. Layouts: {", ".join(LAYOUTS)}'
    )


def layout_named(name: str) -> Layout:
    """Return the layout with this name; InvalidArgumentError, listing all layouts, if there is none."""
    layout = LAYOUTS.get(name) if isinstance(name, str) else None
    if layout is None:
        hint = did_you_mean(name, LAYOUTS) if isinstance(name, str) else ""
        shown = quoted(name) if isinstance(name, str) else repr(name)
        raise InvalidArgumentError(f"unknown layout {shown}. {hint} Layouts: {', '.join(LAYOUTS)}".replace("  ", " "))
    return layout


def _with_parameters(given: Mapping[Any, Any]) -> Layout:
    kind = given.get("kind", "")
    layout = layout_of_rule(kind) if isinstance(kind, str) and "->" in kind else layout_named(kind)
    axes = {name for each in layout.patterns for name in each.names}
    if layout.added:
        axes.add(_FORGET_BIAS)
    for name, value in given.items():
        if name == "kind":
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name not in axes or not number or (name != _FORGET_BIAS and (not isinstance(value, int) or value < 1)):
            raise InvalidArgumentError(
                f'layout "{layout.name}": invalid parameter {name!r}={value!r}. Parameters, all numbers: '
                f"{', '.join(sorted(axes)) or 'none'}"
            )
    lengths = {name: value for name, value in given.items() if name not in ("kind", _FORGET_BIAS)}
    layout = layout.with_lengths(**lengths)
    if _FORGET_BIAS in given:
        layout = replace(layout, added=(0.0, float(given[_FORGET_BIAS]), 0.0, 0.0))
    return layout
