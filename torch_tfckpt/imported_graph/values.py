"""Dictionary of a graph's variables that writes through to their tensors."""

from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.text import did_you_mean, quoted
from torch_tfckpt.values import Value


class GraphValues(dict[str, Value]):
    """Name -> tensor, or array of `bytes`, for each variable of a graph.

    Assigning an item copies the value into the tensor that savers save. Items cannot be added or removed.

    Args:
        values: The tensors.
        changed: Called with the name of each assigned item.
    """

    def __init__(self, values: Mapping[str, Value], changed: Callable[[str], None] = lambda name: None) -> None:
        super().__init__(values)
        self._changed = changed

    def __setitem__(self, name: str, value: object) -> None:
        """Copy `value` into the variable.

        Raises:
            InvalidArgumentError: there is no such variable, or it has a different shape or dtype.
        """
        if name not in self:
            hint = did_you_mean(name, self)
            raise InvalidArgumentError(
                f"the graph has no variable {quoted(name)}, and none can be added. {hint}".rstrip()
            )
        variable = self[name]
        kind = torch.Tensor if isinstance(variable, torch.Tensor) else np.ndarray
        if not isinstance(value, kind) or value.shape != variable.shape or value.dtype != variable.dtype:
            found = f"{value.dtype} {shape_text(value.shape)}" if isinstance(value, kind) else type(value).__name__
            raise InvalidArgumentError(
                f"variable {quoted(name)} is {variable.dtype} {shape_text(variable.shape)} and cannot be set to {found}"
            )
        if isinstance(variable, torch.Tensor):
            assert isinstance(value, torch.Tensor), "the type was checked above"
            with torch.no_grad():
                variable.copy_(value)
        else:
            variable[...] = value
        self._changed(name)

    def update(self, *others: Mapping[str, object] | Iterable[tuple[str, object]], **named: object) -> None:  # type: ignore[override]
        """Set several variables, one by one."""
        for name, value in dict(*others, **named).items():
            self[name] = value

    def __reduce__(self) -> tuple[type[dict[str, Value]], tuple[dict[str, Value]]]:
        """Turn copies, including pickled ones, into plain dictionaries."""
        return dict, (dict(self),)

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise InvalidArgumentError("variables cannot be added to or removed from a graph. Change a copy: dict(...)")

    __delitem__ = pop = popitem = clear = setdefault = __ior__ = _refuse
