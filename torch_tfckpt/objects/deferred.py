"""Restore children that are attached to a module or Checkpoint only after `restore` was called.

torch calls global hooks for every parameter, buffer and module that is added to any module of the process. These hooks
are installed only while a child is expected, and look up the module in a table.

Source: _deferred_dependencies in tensorflow/python/trackable/base.py.
"""

from collections.abc import Callable
from typing import Any, Final

from torch import nn
from torch.nn.modules import module as hooks
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

# Parent -> local name -> function that restores the child. Keys are weak: entries of a deleted parent are removed.
_WAITING: Final[Any] = WeakIdKeyDictionary()
_INSTALLED: Final[list[RemovableHandle]] = []


def defer(parent: object, local_name: str, restore: Callable[[object], object]) -> None:
    """Call `restore` with the child of that name when it is added to `parent`.

    Replaces an earlier function for the same child. Parents other than modules must call `child_added` themselves.
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
    """Restore `child`, which is being added to `parent`, if it is expected. Raises like `restore`."""
    waiting = _WAITING.get(parent)
    if waiting is None or local_name not in waiting or child is None:
        return
    # Removed first: if the restore fails, the error is raised once, and the next child of that name is not restored,
    # as in TensorFlow.
    restore = waiting.pop(local_name)
    if not waiting:
        del _WAITING[parent]
    try:
        restore(child)
    finally:
        _uninstall()


def anything_waits() -> bool:
    """Return whether any child is expected."""
    return bool(_WAITING)


def _uninstall() -> None:
    """Remove the hooks if no module expects a child.

    torch may be iterating over its hooks at this moment, so hooks can be removed only from the end of its list. If
    other hooks were installed after these, these remain until the others are removed.
    """
    if not any(isinstance(parent, nn.Module) for parent in _WAITING) and all(map(_is_last, _INSTALLED)):
        while _INSTALLED:
            _INSTALLED.pop().remove()


def _is_last(handle: RemovableHandle) -> bool:
    return next(reversed(handle.hooks_dict_ref() or {}), None) == handle.id


def _on_registration(module: nn.Module, name: str, child: object) -> None:
    if name not in module._non_persistent_buffers_set:  # not stored in checkpoints
        child_added(module, name, child)
    _uninstall()  # the modules that expected children may have been deleted
