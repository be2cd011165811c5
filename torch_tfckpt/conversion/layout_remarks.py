"""Remark that a converted file still has TensorFlow's names and layouts, and how to convert them, too.

The remark is for files that torch reads. A name such as "fc.weight" normally shows that torch stored the tensor, in
torch's layout. If tensors in TensorFlow's layout were renamed like this, the sidecar lists them, so that `load_model`
does not assume torch's layout.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from torch_tfckpt.conversion.convert_report import KEPT_LAYOUT, SidecarTensor
from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.foreign_files.sidecar_source import tensorflow_layouts
from torch_tfckpt.foreign_files.tensorflow import CheckpointSource
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.models.leaf_names import known_leaves
from torch_tfckpt.models.stored_names import variable_name_of
from torch_tfckpt.text import counted, quoted

_HOW: Final = "To turn them into torch's, convert the checkpoint with to_torch=True and `preset`, `map` or `infer`"
_OF_TORCH: Final = "weight"


def layout_remarks(source: TensorSource, names: Iterable[str], kept: Sequence[SidecarTensor]) -> list[str]:
    """Return the remark on a conversion into a file of another format, or nothing.

    Args:
        names: Names in the source.
        kept: The result of `kept_layouts`.
    """
    if not isinstance(source, CheckpointSource):
        return []
    if kept:
        first = kept[0]
        return [
            f"{counted(len(kept), 'tensor')} renamed to torch's names, but the layouts are still TensorFlow's: "
            f"{quoted(first.new_name)} was {quoted(first.name)} {shape_text(first.shape)}. A square kernel would be "
            f"loaded without an error, and be wrong. {_HOW}"
        ]
    if any(_is_turned(source, name) for name in names):
        return [f"names and layouts are still TensorFlow's: a kernel is [in, out] or [height, width, in, out]. {_HOW}"]
    return []


def kept_layouts(source: TensorSource, new_names: Mapping[str, str]) -> list[SidecarTensor]:
    """Return the tensors that get torch's names, but keep TensorFlow's order of axes.

    Args:
        new_names: Name in the source -> name in the target.
    """
    kept = tensorflow_layouts(source)
    if isinstance(source, CheckpointSource):
        kept = {name for name, new in new_names.items() if _is_renamed(name, new) and _is_turned(source, name)}
    found = [(name, new_names[name], source.info(name)) for name in new_names if name in kept]
    return [SidecarTensor(name, new, info.type.name, info.shape, KEPT_LAYOUT, False) for name, new, info in found]


def _is_renamed(name: str, new_name: str) -> bool:
    return _looks_like_torch(new_name) and not _looks_like_torch(name)


def _is_turned(source: TensorSource, name: str) -> bool:
    """Return whether TensorFlow may store a tensor with its axes in a different order than torch."""
    info = source.info(name)
    is_float = info.type.dtype is not None and info.type.dtype.is_floating_point
    leaf = known_leaves().get(variable_name_of(name))
    return is_float and len(info.shape) > 1 and not _is_of_torch(name) and (leaf is None or leaf.is_turned)


def _is_of_torch(name: str) -> bool:
    """Return whether a name contains a state_dict key, as a Saver stores it: "model/fc.weight"."""
    parts: Sequence[str] = short_key(name).split("/")
    return parts[-1] == _OF_TORCH or any("." in part.strip(".") for part in parts)


def _looks_like_torch(name: str) -> bool:
    return name.replace("/", ".").rpartition(".")[2] == _OF_TORCH
