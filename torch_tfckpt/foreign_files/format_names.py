"""The formats that `convert` writes, and the file name endings that mean them. Imports no torch, for help."""

from collections.abc import Mapping
from typing import Final

FORMATS: Final = ("safetensors", "pt", "npz", "tf")
SUFFIXES: Final[Mapping[str, str]] = {
    ".safetensors": "safetensors",
    ".pt": "pt",
    ".pth": "pt",
    ".bin": "pt",
    ".npz": "npz",
}
