"""Device names: torch's "cuda:1" and TensorFlow's "/gpu:1" both become "/device:GPU:1".

Saveables are grouped by this name. An empty name means no particular device and sorts first.

Source: tensorflow/python/framework/device_spec.py.
"""

import functools
import re
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import quoted

HOST: Final = "/device:CPU:0"
_ORDER: Final = ("job", "replica", "task", "device")
_MAX_DIGITS: Final = 18  # of numbers; a device string may contain longer ones
_NAME: Final = re.compile(r"[A-Za-z0-9_]+")
# Types that may appear without "device:": TensorFlow's own, and the torch types that TensorFlow has no name for.
_SHORT: Final = {"CPU", "GPU", "TPU", "XLA_CPU", "XLA_GPU", "CUDA", "MPS", "XPU", "HPU", "META"}


def canonical_device(device: torch.device | str | None) -> str:
    """Return TensorFlow's name for `device`.

    Args:
        device: A torch device, a torch device string ("cpu", "cuda:1"), a TensorFlow device string ("/gpu:1",
            "/job:ps/task:1/cpu:0"), or "" or None for no particular device.

    Returns:
        The given parts in this order: "/job:ps/replica:0/task:1/device:CPU:0". "cuda" without an index is the current
        device, or index 0 if CUDA is not initialised; any other torch device without an index gets index 0.

    Raises:
        InvalidArgumentError: the string is neither a torch nor a TensorFlow device.

    Cost: negligible; CUDA is never initialised.
    """
    if device is None or device == "":
        return ""
    if isinstance(device, torch.device):
        return _of_torch(device)
    if device.startswith("/"):
        return _of_tensorflow(device)
    try:
        return _of_torch(torch.device(device))
    except RuntimeError:
        return _of_tensorflow(device)


def _of_torch(device: torch.device) -> str:
    kind, _, index = str(device).partition(":")
    if not index:
        current = kind == "cuda" and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        index = str(torch.cuda.current_device()) if current else "0"
    return f"/device:{_type_name(kind)}:{index}"


@functools.lru_cache(maxsize=256)  # called once per variable
def _of_tensorflow(text: str) -> str:
    """Parse "/job:ps/gpu:1" and the like; a later job, replica or task replaces an earlier one."""
    parts: dict[str, str] = {}
    for item in text.split("/"):
        if not item:
            continue
        kind, value = _part(item, text)
        if kind == "device" and kind in parts:
            raise InvalidArgumentError(f"Multiple device types are not allowed while parsing the device spec: {text}")
        parts[kind] = value
    return "".join(f"/{kind}:{parts[kind]}" for kind in _ORDER if kind in parts)


def _part(item: str, text: str) -> tuple[str, str]:
    """Return ("task", "1") for "task:1", and ("device", "GPU:1") for "gpu:1" or "device:GPU:1"."""
    kind, *values = item.split(":")
    if kind == "job" and len(values) == 1 and _NAME.fullmatch(values[0]):
        return kind, values[0]
    if kind in ("replica", "task") and len(values) == 1 and _is_number(values[0]):
        return kind, str(int(values[0]))
    if kind == "device" and len(values) == 2 and _NAME.fullmatch(values[0]) and _is_index(values[1]):
        return "device", f"{_type_name(values[0])}:{_index(values[1])}"
    if kind.upper() in _SHORT and len(values) <= 1 and all(_is_index(value) for value in values):
        return "device", f"{_type_name(kind)}:{_index(values[0]) if values else '*'}"
    raise InvalidArgumentError(
        f"Unknown attribute {quoted(item)} is encountered while parsing the device spec: {quoted(text)}. "
        f'Write "cuda:1", "/gpu:1" or "/job:ps/replica:0/task:1/cpu:0"'
    )


def _is_index(value: str) -> bool:
    return value == "*" or _is_number(value)


def _is_number(value: str) -> bool:
    return value.isdecimal() and value.isascii() and len(value) <= _MAX_DIGITS


def _index(value: str) -> str:
    return value if value == "*" else str(int(value))


@functools.lru_cache(maxsize=64)  # called once per tensor
def _type_name(kind: str) -> str:
    return "GPU" if kind.upper() == "CUDA" else kind.upper()
