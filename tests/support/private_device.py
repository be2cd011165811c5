"""A device of another package, written in Python: torch's PrivateUse1 under a name of its own.

    register("toy")
    torch.ones(3).to("toy")

It is the current accelerator, but its streams are dummies, and it has no pinned memory. A tensor has its values in a
host tensor that belongs to its storage. Operations that no save and no restore needs are missing. Only `.detach()` and
`[()]` make views: what `view` and `as_strided` return can only be read. One process can register one such device, and
cannot unregister it, so tests do it in a new process.
"""

from collections.abc import Callable, Sequence

import torch

_memory_of: dict[int, torch.Tensor] = {}  # address of a storage -> its values, a flat tensor
_kept: list[torch.Tensor] = []  # so that no address is used twice


def register(name: str) -> bool:
    """Make the device known; return False if this version of torch cannot have devices written in Python."""
    from torch.utils import backend_registration

    set_up = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if set_up is None:
        return False
    set_up(name)
    operations: dict[str, Callable[..., torch.Tensor]] = {
        "empty.memory_format": _empty,
        "empty_strided": _empty_strided,
        "_copy_from": _copy_from,
        "as_strided": _as_strided,
        "view": _view,
        "cat": _cat,
    }
    for operation, function in operations.items():
        torch.library.impl(f"aten::{operation}", "privateuseone")(function)
    return True


def _made(values: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch._C._acc.create_empty_tensor(tuple(values.shape), values.dtype)
    _memory_of[made.untyped_storage()._cdata] = values.contiguous().view(-1)
    _kept.append(made)
    return made


def _values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor on any device, sharing its memory."""
    if tensor.device.type == "cpu":
        return tensor
    memory = _memory_of[tensor.untyped_storage()._cdata]
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _empty(size: Sequence[int], *, dtype: torch.dtype | None = None, **_: object) -> torch.Tensor:
    return _made(torch.empty(size, dtype=dtype))


def _empty_strided(
    size: Sequence[int], stride: Sequence[int], *, dtype: torch.dtype | None = None, **_: object
) -> torch.Tensor:
    return _made(torch.empty(size, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _values(target).copy_(_values(source))
    return target


def _as_strided(
    tensor: torch.Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> torch.Tensor:
    return _made(_values(tensor).as_strided(size, stride, storage_offset))


def _view(tensor: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return _made(_values(tensor).view(size))


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    return _made(torch.cat([_values(tensor) for tensor in tensors], dim))
