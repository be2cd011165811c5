"""Restore children that are attached to a module or Checkpoint only after `restore` was called.

torch calls a hook for every parameter, buffer and module that any module of the process is given. It is installed while
something waits, and looks its module up in a table.

Source: _deferred_dependencies in tensorflow/python/trackable/base.py.
"""

from collections.abc import Callable
from typing import Any, Final

from torch import nn
from torch.nn.modules import module as hooks
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

# Parent -> local name -> what to do. Parents are held weakly, so a module that is forgotten takes its entries along.
_WAITING: Final[Any] = WeakIdKeyDictionary()
_INSTALLED: Final[list[RemovableHandle]] = []


def defer(parent: object, local_name: str, restore: Callable[[object], object]) -> None:
    """Lets `restore` be called with the child of that name when `parent` gets it, instead of what waited before.

    Of parents other than modules somebody has to say so, by `child_added`.
    """
    _WAITING.setdefault(parent, {})[local_name] = restore
    if isinstance(parent, nn.Module) and not _INSTALLED:
        _INSTALLED.extend(
            [
                hooks.register_module_parameter_registration_hook(_on_registration),
                hooks.register_module_buffer_registration_hook(_on_registration),
                hooks.register_module_module_registration_hook(_on_registration),
            ]
        )


def child_added(parent: object, local_name: str, child: object) -> None:
    """Restores `child`, which is about to become a child of `parent`, if it is waited for. Errors as its restore."""
    waiting = _WAITING.get(parent)
    if waiting is None or local_name not in waiting or child is None:
        return
    # First: what cannot be restored is told once, and the next child of that name is left alone, as in TensorFlow.
    restore = waiting.pop(local_name)
    if not waiting:
        del _WAITING[parent]
    try:
        restore(child)
    finally:
        _uninstall()


def anything_waits() -> bool:
    """Whether some child of something has yet to come."""
    return bool(_WAITING)


def _uninstall() -> None:
    """Removes the hooks where no module waits.

    torch is walking over its hooks when it calls one. Only the last may go then; where somebody else's stand behind
    ours, ours stay until those are gone.
    """
    if not any(isinstance(parent, nn.Module) for parent in _WAITING) and all(map(_is_last, _INSTALLED)):
        while _INSTALLED:
            _INSTALLED.pop().remove()


def _is_last(handle: RemovableHandle) -> bool:
    return next(reversed(handle.hooks_dict_ref() or {}), None) == handle.id


def _on_registration(module: nn.Module, name: str, child: object) -> None:
    if name not in module._non_persistent_buffers_set:  # which no checkpoint is about
        child_added(module, name, child)
    _uninstall()  # whatever waited may have died
