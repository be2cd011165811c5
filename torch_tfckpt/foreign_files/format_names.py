"""The formats that `convert` writes, by file name and by kind of file.

Does not import torch, so that `tfckpt --help` is fast.
"""

from collections.abc import Mapping
from typing import Final

from torch_tfckpt.format.file_kind import FileKind, promised_kind

FORMATS: Final = ("safetensors", "pt", "npz", "tf")
_OF_KIND: Final[Mapping[FileKind, str]] = {
    FileKind.SAFETENSORS: "safetensors",
    FileKind.SAFETENSORS_INDEX: "safetensors",
    FileKind.TORCH: "pt",
    FileKind.NPZ: "npz",
}
# Kinds of files accepted under the extension of a format: damaged files and files of earlier versions may look like
# these.
_MAY_BE: Final[Mapping[str, tuple[FileKind, ...]]] = {
    "pt": (FileKind.ZIP, FileKind.OLD_TORCH, FileKind.PICKLE, FileKind.NPZ),
    "npz": (FileKind.ZIP,),
}


def format_named(path: str) -> str | None:
    """Return the format of a name's extension; None if it is not one of FORMATS."""
    kind = promised_kind(path)
    return None if kind is None else _OF_KIND.get(kind)


def format_of_kind(kind: FileKind, named: str) -> str:
    """Return the format of a file of this kind; `named` is the format of its extension."""
    if kind in _MAY_BE.get(named, ()):
        return named
    return _OF_KIND.get(kind, "tf" if kind.is_foreign else named)
