"""Canonical device names: torch's "cuda:1" and TensorFlow's "/gpu:1" are both "/device:GPU:1".

Saveables are grouped by this string; the empty string means no particular device and sorts first.
"""

from typing import Final

import torch

from torch_tfckpt.format.device_spec import canonical_device_spec, device_type

HOST: Final = "/device:CPU:0"


def canonical_device(device: torch.device | str | None) -> str:
    """Return TensorFlow's name for `device`.

    Args:
        device: A torch device or its name ("cpu", "cuda:1"), a TensorFlow device string ("/gpu:1",
            "/job:ps/task:1/cpu:0"), or "" or None for no particular device.

    Returns:
        A string such as "/job:ps/replica:0/task:1/device:CPU:0", with only the parts that are given, in this order.
        An accelerator without an index, such as "cuda", is the current device, or device 0 if it is not initialised;
        other torch devices without an index get index 0.

    Raises:
        InvalidArgumentError: the string is neither a torch nor a TensorFlow device name.

    Does not initialise the accelerator.
    """
    if device is None or device == "":
        return ""
    if isinstance(device, torch.device):
        return _of_torch(device)
    if device.startswith("/"):
        return canonical_device_spec(device)
    try:
        return _of_torch(torch.device(device))
    except RuntimeError:
        return canonical_device_spec(device)


def _of_torch(device: torch.device) -> str:
    kind, _, index = str(device).partition(":")
    if not index:
        index = str(torch.accelerator.current_device_index()) if _is_initialized(kind) else "0"
    return f"/device:{device_type(kind)}:{index}"


def _is_initialized(kind: str) -> bool:
    """Return whether `kind` is the accelerator of this process, and has been used."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type != kind:
        return False
    is_initialized = getattr(torch.get_device_module(kind), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())
