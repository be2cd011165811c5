"""Tensors that take no memory yet: their values are read and computed when they are written.

    weight = DeferredTensor.stored("fc/kernel", (3, 2), torch.float32).permute(1, 0)
    weight.shape                                     # (2, 3): known now
    weight.names                                     # ["fc/kernel"]: what has to be read
    weight.compute({"fc/kernel": kernel})            # when it is written

Contract:

    shapes      operations are run on the meta device, so shapes, dtypes and errors are those of torch
    values      every operation is recorded, and run again on what was read. Nothing is kept from one computation to
                the next
    needed now  an operation that needs values immediately, such as bool(tensor.any()), reads them with the function
                given to `stored`, and does not keep them
    steps       `steps` names the operations that are applied to the stored tensors, for reports
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_map

from torch_tfckpt.format.tensor_slice import Shape

Read = Callable[[Sequence[str]], Mapping[str, torch.Tensor]]

_VALUE: Final = torch.ops.aten._local_scalar_dense.default  # a tensor as a Python number
_COPIES: Final = (torch.ops.aten.clone.default,)
_WORDS: Final = {
    "permute": "permute", "transpose": "permute", "t": "permute", "cat": "join", "split": "part",
    "split_with_sizes": "part", "slice": "part", "narrow": "part", "select": "part", "add": "add", "sub": "add",
    "view": "reshape", "_unsafe_view": "reshape", "reshape": "reshape", "_reshape_alias": "reshape",
    "unsqueeze": "reshape", "squeeze": "reshape", "div": "scale", "mul": "scale", "_to_copy": "dtype",
}  # fmt: skip


class _Step(NamedTuple):
    """One operation, and the index of one of its results."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    number: int | None  # None: the result is one tensor


class DeferredTensor(torch.Tensor):
    """A tensor in a file, or one that is computed from such tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    meta: torch.Tensor
    origin: "str | _Step"
    read: Read

    @classmethod
    def stored(cls, name: str, shape: Shape, dtype: torch.dtype, read: Read) -> "DeferredTensor":
        """Return the tensor that is stored under `name`.

        Args:
            read: Returns stored tensors by their names.
        """
        return cls._of(torch.empty(shape, dtype=dtype, device="meta"), name, read)

    @classmethod
    def _of(cls, meta: torch.Tensor, origin: "str | _Step", read: Read) -> "DeferredTensor":
        made: DeferredTensor = torch.Tensor._make_wrapper_subclass(
            cls, meta.shape, strides=meta.stride(), dtype=meta.dtype, device=torch.device("cpu")
        )
        made.meta, made.origin, made.read = meta, origin, read
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"<DeferredTensor of {self.names}>"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        read = next(leaf.read for leaf in tree_flatten((args, options))[0] if isinstance(leaf, DeferredTensor))
        if func is _VALUE:
            return args[0].compute(read(args[0].names)).item()
        result = func(*tree_map(_meta_of, args), **tree_map(_meta_of, options))
        if isinstance(result, torch.Tensor):
            return cls._of(result, _Step(func, args, options, None), read)
        return [cls._of(each, _Step(func, args, options, number), read) for number, each in enumerate(result)]

    @property
    def names(self) -> list[str]:
        """The stored tensors that are needed, each once."""
        return list(dict.fromkeys(each.origin for each in self._walk() if isinstance(each.origin, str)))

    @property
    def steps(self) -> list[str]:
        """What is done to the stored tensors, each kind of step once: ["permute", "join"]."""
        found = [word for each in self._walk() if (word := _word_of(each)) is not None]
        return list(dict.fromkeys(reversed(found)))

    def compute(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the value, which may be a view of a stored tensor and have any strides.

        Args:
            stored: At least the tensors in `names`.
        """
        origin = self.origin
        while isinstance(origin, _Step) and origin.function in _COPIES:  # the order in memory does not matter
            [copied] = origin.arguments
            origin = copied.origin
        return stored[origin] if isinstance(origin, str) else _run(origin, stored, {})

    def _walk(self) -> "Iterator[DeferredTensor]":
        """Yield this tensor and all those that it is computed from, each once."""
        waiting: list[DeferredTensor] = [self]
        seen: set[int] = set()
        while waiting:
            here = waiting.pop()
            if id(here) in seen:
                continue
            seen.add(id(here))
            yield here
            if isinstance(here.origin, _Step):
                leaves = tree_flatten((here.origin.arguments, here.origin.options))[0]
                waiting += [leaf for leaf in reversed(leaves) if isinstance(leaf, DeferredTensor)]


def _word_of(result: DeferredTensor) -> str | None:
    """Return the kind of the operation that gives a tensor; None if it is stored, or if no report mentions it.

    Operations that leave all axes as they were are not mentioned, such as a permutation of one axis.
    """
    if isinstance(result.origin, str):
        return None
    name = result.origin.function.overloadpacket.__name__
    if name not in _WORDS:
        return None
    word, before = _WORDS[name], result.origin.arguments[0]
    if isinstance(before, DeferredTensor) and before.shape == result.shape:
        changes_nothing = word == "reshape" or (name == "permute" and before.stride() == result.stride())
        return None if changes_nothing else word
    return word


def _meta_of(value: Any) -> Any:
    if isinstance(value, DeferredTensor):
        return value.meta
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    # Operations that take a device, such as new_zeros, also run on the meta device, to allocate no memory.
    return torch.device("meta") if isinstance(value, torch.device) else value


def _run(step: _Step, stored: Mapping[str, torch.Tensor], known: dict[int, Any]) -> torch.Tensor:
    def value_of(leaf: Any) -> Any:
        if not isinstance(leaf, DeferredTensor):
            return leaf
        if isinstance(leaf.origin, str):
            return stored[leaf.origin]
        return _run(leaf.origin, stored, known)

    key = id(step.arguments)  # shared by all results of an operation
    if key not in known:
        result = step.function(*tree_map(value_of, step.arguments), **tree_map(value_of, step.options))
        if step.number is None:
            return result  # type: ignore[no-any-return]
        known[key] = result
    return known[key][step.number]  # type: ignore[no-any-return]
