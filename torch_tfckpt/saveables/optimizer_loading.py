"""Load a state_dict into an optimizer without changing its values.

Contract of `load_exactly`: after it,

    values    each tensor of a parameter's state has the given dtype, shape and elements. torch's load_state_dict casts
              them to the dtype of the parameter, which loses fp32 moments and master weights of bf16 parameters
    devices   as torch chooses: the parameter's; "step" stays in host memory unless `capturable` or `fused` is set
    strides   a tensor of the parameter's shape has the parameter's strides, so that fused and foreach kernels stay fast
    code      the optimizer's own load_state_dict, __setstate__ and hooks have run, each on the previous one's result.
              Before and after torch's own code, hooks and an override see the same state as without this module
    wrapped   an optimizer in an attribute, such as the base optimizer of a Lookahead, is treated the same way, and
              still shares its param_groups with the wrapper if it did before
    reported  changes that an optimizer's own code makes nevertheless are returned, one line each

Not guaranteed: dtypes, if an override loads the state_dict without torch's load_state_dict. Changes are reported.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

import torch

from torch_tfckpt.saveables.optimizer_names import has_groups

_HOOKS: Final = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")
_STEP: Final = "step"  # torch does not cast a value under this key
_MAX_DEPTH: Final = 100


def wrapped_optimizers(owner: object) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers among an object's attributes, and in lists, tuples and dicts among them.

    Returns:
        "base" or "inner.0" -> optimizer.
    """
    found: dict[str, torch.optim.Optimizer] = {}
    for name, value in getattr(owner, "__dict__", {}).items():
        parts: Iterable[tuple[str, object]] = [(name, value)]
        if type(value) in (list, tuple):
            parts = [(f"{name}.{number}", each) for number, each in enumerate(value)]
        elif type(value) is dict:
            parts = [(f"{name}.{key}", each) for key, each in value.items()]
        found.update({place: each for place, each in parts if isinstance(each, torch.optim.Optimizer)})
    return {name: each for name, each in found.items() if each is not owner}


def hidden_optimizers(optimizer: torch.optim.Optimizer, state_dict: object) -> dict[str, torch.optim.Optimizer]:
    """Return, by path, the optimizers in an optimizer's attributes whose state is not in `state_dict`."""
    if not wrapped_optimizers(optimizer):
        return {}
    return dict(_hidden(optimizer, optimizer, "", set(_ids_in(state_dict, 0)), {id(optimizer)}))


def _hidden(
    outer: torch.optim.Optimizer, owner: object, prefix: str, packed: set[int], seen: set[int]
) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    for name, each in wrapped_optimizers(owner).items():
        if id(each) in seen or not has_groups(each):
            continue
        seen.add(id(each))
        in_packed = {*map(id, each.state.values())} <= packed
        if in_packed if each.state else each.state is outer.state:
            yield from _hidden(outer, each, f"{prefix}{name}.", packed, seen)
        else:
            yield prefix + name, each


def _ids_in(packed: object, depth: int) -> Iterator[int]:
    """Yield the ids of all dicts in a state_dict."""
    if isinstance(packed, dict | list | tuple) and depth < _MAX_DEPTH:
        if isinstance(packed, dict):
            yield id(packed)
        for item in packed.values() if isinstance(packed, dict) else packed:
            yield from _ids_in(item, depth + 1)


def optimizer_at(owner: object, path: str) -> torch.optim.Optimizer | None:
    """Return the optimizer at an attribute path such as "base.inner.0"; None if no optimizer is there."""
    for name, each in wrapped_optimizers(owner).items():
        if name == path:
            return each
        found = optimizer_at(each, path[len(name) + 1 :]) if path.startswith(f"{name}.") else None
        if found is not None:
            return found
    return None


def load_exactly(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> list[str]:
    """Call `load_state_dict`, by the contract above. Return a line for each difference that remains.

    Raises: any error of the optimizer's load_state_dict and its hooks.
    """
    with keeping_dtypes(optimizer):
        optimizer.load_state_dict(state_dict)
    return list(_differences(state_dict, _present(optimizer), "", 0))


@contextmanager
def keeping_dtypes(owner: object) -> Iterator[None]:
    """Within this context, `owner` and the optimizers in its attributes load as `load_exactly` does.

    Thread safety: one thread at a time for one optimizer.
    """
    everything = list(_with_wrapped(owner, set()))
    optimizers = [each for each in everything if isinstance(each, torch.optim.Optimizer)]
    shared = [_Shared(owner, each) for each in optimizers if each is not owner]
    handles = []
    try:
        for each in optimizers:
            if all(hasattr(each, hooks) for hooks in _HOOKS):  # absent if Optimizer.__init__ was never called
                kept = _Kept()
                # These two run last before torch's code and first after it, so that other hooks see the usual state.
                handles.append(each.register_load_state_dict_pre_hook(kept.take))
                handles.append(each.register_load_state_dict_post_hook(kept.put_back, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
    for pair in shared:
        pair.join()


def _with_wrapped(owner: object, seen: set[int]) -> Iterator[object]:
    if id(owner) not in seen:
        seen.add(id(owner))
        yield owner
        for each in wrapped_optimizers(owner).values():
            yield from _with_wrapped(each, seen)


class _Shared:
    """The list of groups that a wrapper and its inner optimizer share. load_state_dict makes a new list."""

    def __init__(self, wrapper: Any, wrapped: torch.optim.Optimizer) -> None:
        self._wrapper, self._wrapped = wrapper, wrapped
        self._groups = getattr(wrapper, "param_groups", None)
        self._is_shared = self._groups is not None and getattr(wrapped, "param_groups", None) is self._groups

    def join(self) -> None:
        """Make both share one list: the wrapper's, unless only the wrapped optimizer has a new list."""
        if not self._is_shared or self._wrapper.param_groups is self._wrapped.param_groups:
            return
        if self._wrapper.param_groups is self._groups:
            self._wrapper.param_groups = self._wrapped.param_groups
        else:
            self._wrapped.param_groups = self._wrapper.param_groups


class _Untouched:
    """A value hidden from torch, which rebuilds every iterable, even a str, as type(value)(elements)."""

    def __init__(self, value: object) -> None:
        self.value = value


class _Kept:
    """The state of an optimizer's parameters, as torch's own load_state_dict receives it."""

    def __init__(self) -> None:
        self._states: list[tuple[torch.Tensor, Mapping[Any, Any]]] = []

    def take(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Pre-hook: keep the values, and pass stand-ins for the values that torch would change."""
        self._states = []
        pairs = zip(state_dict["param_groups"], optimizer.param_groups, strict=False)
        of_position = {
            position: parameter
            for stored, own in pairs
            for position, parameter in zip(stored["params"], own["params"], strict=False)
        }
        given: dict[Any, Any] = {}
        for position, state in state_dict["state"].items():
            parameter = of_position.get(position) if isinstance(position, int | str) else None
            if parameter is None or not isinstance(state, dict):
                given[position] = state
                continue
            self._states.append((parameter, state))
            given[position] = _stand_in(state, parameter.dtype if parameter.is_floating_point() else None)
        return {**state_dict, "state": given}

    def put_back(self, optimizer: torch.optim.Optimizer) -> None:
        """Post-hook: replace the stand-ins with the values."""
        for parameter, state in self._states:
            present = optimizer.state.get(parameter)
            if isinstance(present, dict):
                for key, value in present.items():
                    present[key] = _restored(value, state.get(key), parameter, key)
        self._states = []


def _stand_in(value: object, dtype: torch.dtype | None, key: object = None) -> object:
    """Return `value` with stand-ins for what torch would change.

    The stand-in for a tensor takes no memory and needs no cast.
    """
    if isinstance(value, torch.Tensor):
        if dtype in (None, value.dtype) or key == _STEP:
            return value
        return torch.zeros((), dtype=dtype).expand(value.shape)
    if type(value) is dict:
        return {name: _stand_in(item, dtype, name) for name, item in value.items()}
    if type(value) in (list, tuple):
        items = [_stand_in(item, dtype) for item in cast("list[object]", value)]
        return items if type(value) is list else tuple(items)
    return _Untouched(value) if isinstance(value, Iterable) else value


def _restored(present: object, given: object, parameter: torch.Tensor, key: object = None) -> object:
    """Return the value to use instead of `present`: the given value, or the optimizer's conversion of it."""
    if isinstance(present, _Untouched):
        return present.value
    if isinstance(present, torch.Tensor) and isinstance(given, torch.Tensor):
        if key != _STEP and present.dtype != given.dtype:
            present = given.to(present.device)
        return with_strides_of(parameter, present)
    if isinstance(present, dict) and isinstance(given, dict):
        return {name: _restored(item, given.get(name), parameter, name) for name, item in present.items()}
    if isinstance(present, list | tuple) and isinstance(given, list | tuple) and len(given) == len(present):
        items = [_restored(item, other, parameter) for item, other in zip(present, given, strict=True)]
        return items if type(present) is list else tuple(items) if type(present) is tuple else present
    return present


def with_strides_of(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return `value` with `parameter`'s strides if the shapes are equal; files store row-major tensors."""
    if value.shape != parameter.shape or value.stride() == parameter.stride() or not value.is_contiguous():
        return value
    laid_out = torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False)
    return value if laid_out.stride() == value.stride() else laid_out.copy_(value)


def _present(optimizer: torch.optim.Optimizer) -> object:
    try:
        return optimizer.state_dict()
    except RuntimeError:  # for example a ZeroRedundancyOptimizer, whose state is gathered only on request
        return None


def _differences(given: object, present: object, path: str, depth: int) -> Iterator[str]:
    """Yield a line for each tensor of `given` that `present` lacks or has with a different dtype or shape."""
    if present is None or depth > _MAX_DEPTH:
        return
    if isinstance(given, torch.Tensor):
        if not isinstance(present, torch.Tensor):
            return  # the optimizer keeps the value as a number
        if (present.dtype, present.shape) != (given.dtype, given.shape):
            stored, here = (f"{each.dtype} {list(each.shape)}" for each in (given, present))
            yield f"{path} was {stored} and is {here}"
    elif isinstance(given, dict) and isinstance(present, dict):
        for key, item in given.items():
            where = f"{path}/{key}" if path else str(key)
            if key in present:
                yield from _differences(item, present[key], where, depth + 1)
            elif isinstance(item, torch.Tensor) or item:
                yield f"{where} is missing"
    elif isinstance(given, list | tuple) and isinstance(present, list | tuple) and len(given) == len(present):
        for number, (item, other) in enumerate(zip(given, present, strict=True)):
            yield from _differences(item, other, f"{path}/{number}", depth + 1)
