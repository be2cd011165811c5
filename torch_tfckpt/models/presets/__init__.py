"""Rules for the models that people convert most: one map file for each family.

    preset("bert")    the path of bert.toml

A preset maps the names that the original TensorFlow code stored to the module names of transformers, timm or
torchvision. The comments at the top of each file say which checkpoints and which classes it is for. Presets are read
like any map file, so `KeyMapper.to_file` writes a copy that can be edited.
"""

from importlib import resources
from typing import Final

from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.text import did_you_mean, quoted

_SUFFIX: Final = ".toml"


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    files = resources.files("torch_tfckpt.models.presets").iterdir()
    return sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))


def preset_text(name: str) -> str:
    """Return the map file of a preset.

    Raises:
        NotFoundError: there is no preset of this name.
    """
    known = preset_names()
    if name not in known:
        words = [f"there is no preset {quoted(name)}.", did_you_mean(name, known), f"Presets: {', '.join(known)}"]
        raise NotFoundError(" ".join(filter(None, words)))
    return (resources.files("torch_tfckpt.models.presets") / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
