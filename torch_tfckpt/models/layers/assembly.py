"""Source: the stored tensors from which a tensor of a module is made, and how it is made.

    kernel of a Dense                 one part, layout "dense"
    q/kernel, k/kernel, v/kernel      three parts, joined along axis 0 in torch's order of axes
    kernel of an LSTMCell             one part, layout "lstm_tf1"; weight_ih is the range 0:in of its axis 1

Contract: every part is transformed by its layout, the parts are joined along `axis`, and the range `bounds` is taken.
Shapes are checked before values are read: whatever does not fit is reported, never reshaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.models.layers.layouts import Layout
from torch_tfckpt.models.layers.tensor_origins import Bounds


@dataclass(frozen=True, slots=True)
class SourcePart:
    """One stored tensor.

    Attributes:
        key: Key of the variable.
        layout: Its transform.
        average: Key of its moving average, if that is read instead.
    """

    key: str
    layout: Layout
    average: str | None = None

    @property
    def read_key(self) -> str:
        """The key to read."""
        return self.average or self.key


@dataclass(frozen=True, slots=True)
class Source:
    """Stored tensors from which a target is loaded.

    Attributes:
        parts: At least one.
        variable_name: Last part of the name of the first variable: "kernel".
        axis: Axis, in torch's order, along which the parts are joined.
        bounds: Range of that axis that makes up the target; None: the whole axis.
        added: Constant that is added at the end.
    """

    parts: tuple[SourcePart, ...]
    variable_name: str
    axis: int = 0
    bounds: Bounds | None = None
    added: float = 0.0

    @classmethod
    def of(cls, key: str, layout: Layout, variable_name: str) -> "Source":
        """Return the source that consists of one whole variable."""
        return cls((SourcePart(key, layout),), variable_name)

    @property
    def key(self) -> str:
        """Key of the first variable."""
        return self.parts[0].key

    @property
    def layout(self) -> Layout:
        """Layout of the first variable; the others have the same."""
        return self.parts[0].layout

    @property
    def keys(self) -> list[str]:
        """The keys of all variables."""
        return [part.key for part in self.parts]

    @property
    def read_keys(self) -> list[str]:
        """The keys to read."""
        return [part.read_key for part in self.parts]

    @property
    def is_averaged(self) -> bool:
        """Whether moving averages are read."""
        return any(part.average is not None for part in self.parts)

    @property
    def is_one_variable(self) -> bool:
        """Whether the target is one whole variable."""
        return len(self.parts) == 1 and self.bounds is None

    @property
    def is_unchanged(self) -> bool:
        """Whether the target is one stored tensor, unchanged."""
        return self.is_one_variable and self.layout.is_same and not self.added

    @property
    def description(self) -> str:
        """The keys that are read, for reports: "q/kernel + k/kernel", or "kernel[:, 0:4]" for a range."""
        joined = " + ".join(self.read_keys)
        if self.bounds is not None:
            place = ":, " * self.axis + f"{self.bounds.start}:{self.bounds.stop}"
            joined = f"{joined}[{place}]"
        return f"{joined} + {self.added:g}" if self.added else joined

    def of_slots(self) -> "Source":
        """Return the source for optimizer slots of the variables: the same, but without added constants."""
        parts = tuple(replace(part, layout=replace(part.layout, added=())) for part in self.parts)
        return replace(self, parts=parts, added=0.0)

    def resolved(self, shapes: Mapping[str, Shape], wanted: Shape | None) -> "Source":
        """Return the source with layouts that turn the stored shapes into `wanted`, if such layouts exist.

        Args:
            shapes: Stored shape by the keys that are read.
            wanted: Shape of the target; None if it takes any shape.
        """
        of_part = wanted
        if wanted is not None and self.axis < len(wanted):
            size = wanted[self.axis] if self.bounds is None else self.bounds.size
            exact = size % len(self.parts) == 0
            changed = (*wanted[: self.axis], size // len(self.parts), *wanted[self.axis + 1 :])
            of_part = changed if exact else None
        parts = (replace(part, layout=part.layout.resolved(shapes[part.read_key], of_part)) for part in self.parts)
        return replace(self, parts=tuple(parts))

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Return the shape of the target. InvalidArgumentError if a stored shape does not fit."""
        made = [part.layout.torch_shape(shapes[part.read_key]) for part in self.parts]
        first = made[0]
        for other in made[1:]:
            if _without(other, self.axis) != _without(first, self.axis):
                raise InvalidArgumentError(
                    f"{' and '.join(map(shape_text, made))} cannot be joined along axis {self.axis}: their other "
                    f"axes differ"
                )
        if self.axis >= len(first):
            return first if len(made) == 1 and self.bounds is None else ()
        size = sum(each[self.axis] for each in made)
        if self.bounds is not None:
            if size != self.bounds.size:
                raise InvalidArgumentError(
                    f"axis {self.axis} of {shape_text(first)} has length {size}, expected {self.bounds.size}"
                )
            size = self.bounds.stop - self.bounds.start
        return (*first[: self.axis], size, *first[self.axis + 1 :])

    def fits(self, shapes: Mapping[str, Shape], wanted: Shape | None) -> bool:
        """Return whether the stored shapes give the shape of the target; None takes any shape for which they fit."""
        try:
            return wanted in (None, self.shape(shapes))
        except InvalidArgumentError:
            return False

    def value(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the value of the target: a view of what was read, where possible.

        Args:
            stored: Stored tensor by the keys that are read.
        """
        return self.assemble([stored[key] for key in self.read_keys])

    def assemble(self, stored: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the value assembled from `stored`, which contains one tensor for each part, in order."""
        made = [part.layout.to_torch(each) for part, each in zip(self.parts, stored, strict=True)]
        joined = made[0] if len(made) == 1 else torch.cat(made, self.axis)
        if self.bounds is not None:
            joined = joined.narrow(self.axis, self.bounds.start, self.bounds.stop - self.bounds.start)
        return joined + self.added if self.added else joined


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])
