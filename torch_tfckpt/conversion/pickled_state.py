"""Convert values of a .pt file to Python values, and recognise state_dicts of optimizers and modules."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, Final

import torch

from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.foreign_files.pickled_leaves import describe, key_text, name_below
from torch_tfckpt.foreign_files.pickled_values import PickledDict, PickledTensor, dtype_of
from torch_tfckpt.saveables.module_contents import EXTRA_STATE
from torch_tfckpt.text import quoted

# Larger integers are not hashed: they could be chosen to collide.
_MAX_INTEGER_KEY: Final = 2**31
_OF_SCHEDULERS: Final = ("_step_count", "_last_lr")


def item_of(value: Any, key: str) -> Any:
    """Return an item of a pickled dict; None if there is none."""
    pairs = value.pairs if isinstance(value, PickledDict) else []
    return next((item for each, item in reversed(pairs) if type(each) is str and each == key), None)


def has_str_keys(value: PickledDict) -> bool:
    """Return whether all keys are strings."""
    return all(type(key) is str for key, _ in value.pairs)


def is_optimizer(value: Any) -> bool:
    """Return whether `value` has the form of an optimizer's state_dict."""
    groups = item_of(value, "param_groups")
    return (
        isinstance(item_of(value, "state"), PickledDict)
        and isinstance(groups, list)
        and bool(groups)
        and all(isinstance(item_of(group, "params"), list) for group in groups)
    )


def is_module(value: Any) -> bool:
    """Return whether `value` is what a module's state_dict() returns: an OrderedDict with attributes."""
    return (
        isinstance(value, PickledDict) and value.kind == "OrderedDict" and value.has_attributes and has_str_keys(value)
    )


def may_be_module(value: Any) -> bool:
    """Return whether `value` may be the state_dict of a module: a dict of tensors."""
    if is_module(value):
        return True
    if not isinstance(value, PickledDict) or not has_str_keys(value):
        return False
    tensors = [isinstance(item, PickledTensor) or key.endswith(EXTRA_STATE) for key, item in value.pairs]
    return all(tensors) and any(isinstance(item, PickledTensor) for _, item in value.pairs)


def is_scheduler(value: Any) -> bool:
    """Return whether `value` has the form of the state_dict of a torch scheduler."""
    return item_of(value, "last_epoch") is not None and any(item_of(value, key) is not None for key in _OF_SCHEDULERS)


def is_object(value: Any) -> bool:
    """Return whether `value` is the state of an object, and not a plain container."""
    return is_optimizer(value) or is_module(value) or is_scheduler(value)


def items_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield key and item of a container; nothing for other values."""
    if isinstance(value, PickledDict):
        yield from value.pairs
    elif type(value) in (list, tuple):
        yield from enumerate(value)


class PythonValues:
    """Converts pickled values to Python values. The file's reader has limited their number and depth.

    Attributes:
        names: Address of a placeholder's storage, which its views share -> name of the tensor in the file.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._kept: list[torch.Tensor] = []

    def name_of(self, tensor: torch.Tensor) -> str:
        """Return the name in the file of the tensor that a placeholder stands for."""
        return self.names[tensor.untyped_storage().data_ptr()]

    def value(self, pickled: Any, name: str) -> Any:
        """Return a value, with placeholders in place of its tensors.

        Args:
            name: Name of the value in the file.

        Raises:
            UnimplementedError: the value contains something that was not decoded, such as a set.
        """
        if isinstance(pickled, PickledTensor):
            return self._placeholder(name)
        if isinstance(pickled, PickledDict):
            pairs = [
                (_checked_key(key, name), self.value(item, name_below(name, key_text(key))))
                for key, item in pickled.pairs
            ]
            return {"OrderedDict": OrderedDict, "Counter": Counter}.get(pickled.kind, dict)(dict(pairs))
        if type(pickled) in (list, tuple):
            items = [self.value(item, name_below(name, str(number))) for number, item in enumerate(pickled)]
            return items if type(pickled) is list else tuple(items)
        if pickled is None or type(pickled) in (bool, int, float, str, bytes):
            return pickled
        dtype = dtype_of(pickled)
        if dtype is None:
            raise UnimplementedError(f"{quoted(name)} is not a plain value: {describe(pickled)}")
        return dtype

    def _placeholder(self, name: str) -> torch.Tensor:
        made = torch.empty(1, dtype=torch.uint8, device="cpu")
        self._kept.append(made)
        self.names[made.untyped_storage().data_ptr()] = name
        return made


def _checked_key(key: Any, name: str) -> Any:
    if key is None or type(key) in (str, bool) or (type(key) is int and abs(key) < _MAX_INTEGER_KEY):
        return key
    raise UnimplementedError(f"{quoted(name)} has a key that is neither a string nor a small integer: {describe(key)}")
