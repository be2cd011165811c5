"""TensorFlow's device strings: "/job:ps/task:1/gpu:0" and their canonical form.

    "/gpu:1", "/device:GPU:1" and "gpu:1"    ->  "/device:GPU:1"
    "/task:1/job:ps/cpu:0"                   ->  "/job:ps/task:1/device:CPU:0"

Source: tensorflow/python/framework/device_spec.py.
"""

import functools
import re
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import quoted

_ORDER: Final = ("job", "replica", "task", "device")
_MAX_DIGITS: Final = 18  # limit for a number, because the string may come from a file
_NAME: Final = re.compile(r"[A-Za-z0-9_]+")
# Types that may be written without "device:": TensorFlow's types, and torch's types that TensorFlow has no name for.
_SHORT: Final = {"CPU", "GPU", "TPU", "XLA_CPU", "XLA_GPU", "CUDA", "MPS", "XPU", "HPU", "META"}


@functools.lru_cache(maxsize=256)  # called for every variable
def canonical_device_spec(text: str) -> str:
    """Return the canonical form of a TensorFlow device string.

    A repeated job, replica or task replaces the earlier one, as in TensorFlow. "*" means any device of a type.

    Raises:
        InvalidArgumentError: `text` is not a device string, or it names two devices.
    """
    parts: dict[str, str] = {}
    for item in text.split("/"):
        if not item:
            continue
        kind, value = _part(item, text)
        if kind == "device" and kind in parts:
            raise InvalidArgumentError(f"Multiple device types are not allowed while parsing the device spec: {text}")
        parts[kind] = value
    return "".join(f"/{kind}:{parts[kind]}" for kind in _ORDER if kind in parts)


@functools.lru_cache(maxsize=64)  # called for every tensor
def device_type(kind: str) -> str:
    """Return TensorFlow's name for a device type: GPU for "cuda"."""
    return "GPU" if kind.upper() == "CUDA" else kind.upper()


def _part(item: str, text: str) -> tuple[str, str]:
    """Split a part: ("task", "1") for "task:1", ("device", "GPU:1") for "gpu:1" and "device:GPU:1"."""
    kind, *values = item.split(":")
    if kind == "job" and len(values) == 1 and _NAME.fullmatch(values[0]):
        return kind, values[0]
    if kind in ("replica", "task") and len(values) == 1 and _is_number(values[0]):
        return kind, str(int(values[0]))
    if kind == "device" and len(values) == 2 and _NAME.fullmatch(values[0]) and _is_index(values[1]):
        return "device", f"{device_type(values[0])}:{_index(values[1])}"
    if kind.upper() in _SHORT and len(values) <= 1 and all(_is_index(value) for value in values):
        return "device", f"{device_type(kind)}:{_index(values[0]) if values else '*'}"
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
