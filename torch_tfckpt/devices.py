"""How a device is spelt: torch's "cuda:1" and TensorFlow's "/gpu:1" are one "/device:GPU:1".

Saveables are grouped by this text; an empty one stands for no device in particular and sorts first.

Source: tensorflow/python/framework/device_spec.py; spec: SAVER 2.
"""

import functools
import re
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import quoted

HOST: Final = "/device:CPU:0"
_ORDER: Final = ("job", "replica", "task", "device")
_MAX_DIGITS: Final = 18  # of numbers; a text may have any
_NAME: Final = re.compile(r"[A-Za-z0-9_]+")
# Types that stand without "device:" before them: TensorFlow's, and torch's that have no name of TensorFlow's.
_SHORT: Final = {"CPU", "GPU", "TPU", "XLA_CPU", "XLA_GPU", "CUDA", "MPS", "XPU", "HPU", "META"}


def canonical_device(device: torch.device | str | None) -> str:
    """TensorFlow's spelling of `device`.

    Args:
        device: A torch device, its text ("cpu", "cuda:1"), TensorFlow's text ("/gpu:1", "/job:ps/task:1/cpu:0"), or ""
            or None for none in particular.

    Returns:
        "/job:ps/replica:0/task:1/device:CPU:0": what is given, in this order. "cuda" without a number is the current
        device, or number 0 where CUDA is not initialised; every other torch device without a number is number 0.

    Raises:
        InvalidArgumentError: the text is of neither kind.

    Cost: none; CUDA is not initialised by it.
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


@functools.lru_cache(maxsize=256)  # asked for once a variable
def _of_tensorflow(text: str) -> str:
    """From "/job:ps/gpu:1" and the like; a later part of the same kind replaces an earlier one, but for devices."""
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
    """("task", "1") of "task:1", ("device", "GPU:1") of "gpu:1" and of "device:GPU:1"."""
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


@functools.lru_cache(maxsize=64)  # asked for once a tensor
def _type_name(kind: str) -> str:
    return "GPU" if kind.upper() == "CUDA" else kind.upper()
