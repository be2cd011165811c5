"""The parts of a module whose values TensorFlow stored, and what it called them.

    [part.name for part in tensorflow_parts(model, loads)]     # ["conv1", "bn1", "act1"]

A tensor is TensorFlow's if its stored name is not the torch name of the attribute, or if its axes were moved: "kernel"
of a Linear, "moving_mean". "bias" alone is not enough, since both use it. A module is TensorFlow's if one of its own
tensors is. For a module without tensors, the nearest enclosing module with tensors in other parts decides: the
module is TensorFlow's if one of these tensors is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.layers.layouts import SAME
from torch_tfckpt.models.targets import Target
from torch_tfckpt.saveables.load_report import SemanticFinding
from torch_tfckpt.saveables.module_tensors import ModuleTensor, own_tensors
from torch_tfckpt.saveables.wrappers import ModuleNames
from torch_tfckpt.text import listed, quoted

_PARAMETRIZATIONS: Final = "parametrizations."
_SHOWN: Final = 3  # names of modules in one message


@dataclass(frozen=True, slots=True)
class TensorFlowPart:
    """A module whose values TensorFlow stored.

    Attributes:
        name: Its name in the model, without the parts that wrappers add; "" for the model itself.
        sources: Attribute -> source, for its own tensors that were loaded.
    """

    name: str
    module: nn.Module
    sources: Mapping[str, Source] = field(default_factory=dict)

    @property
    def stored_names(self) -> set[str]:
        """The last parts of the names of its stored tensors: {"gamma", "beta"}."""
        return {source.variable_name for source in self.sources.values()}

    @property
    def layouts(self) -> set[str]:
        """The names of the layouts of its stored tensors."""
        return {source.layout.name for source in self.sources.values()}


def tensorflow_parts(model: nn.Module, loads: Sequence[tuple[Target, Source]]) -> list[TensorFlowPart]:
    """Return the parts of a module whose values TensorFlow stored, in the order of registration."""
    owners = ModuleNames(model).owners()
    prefixes: dict[int, str] = {}
    for prefix, module in owners.items():
        prefixes.setdefault(id(module), prefix)
    sources: dict[str, dict[str, Source]] = {}
    is_tensorflows: dict[str, bool] = {}  # prefix of a module -> whether a loaded tensor is TensorFlow's
    around: dict[str, bool] = {}  # the same for the modules around modules with tensors
    for target, source in loads:
        for place in target.places:
            prefix = _owner(prefixes.get(id(place.module), place.parent), place)
            sources.setdefault(prefix, {})[place.attribute] = source
            found = _is_tensorflows(place, source)
            is_tensorflows[prefix] = found or is_tensorflows.get(prefix, False)
            for each in _around(prefix):
                around[each] = found or around.get(each, False)
    with_tensors = {prefix for prefix, module in owners.items() if any(True for _ in own_tensors(module))}
    for prefix in with_tensors:
        for each in _around(prefix):
            around.setdefault(each, False)
    parts = []
    for prefix, module in owners.items():
        found = is_tensorflows.get(prefix, False)
        if not found and prefix not in with_tensors:
            found = next((around[each] for each in (prefix, *_around(prefix)) if each in around), False)
        if found and prefixes[id(module)] == prefix:
            parts.append(TensorFlowPart(prefix[:-1], module, sources.get(prefix, {})))
    return parts


def findings_on(name: str, parts: Sequence[TensorFlowPart], text: str) -> list[SemanticFinding]:
    """Return a list with the finding; empty without parts. {those} in `text` becomes the parts' names."""
    names = tuple(part.name for part in parts)
    return [SemanticFinding(name, names, text.replace("{those}", those(names)))] if names else []


def those(names: Sequence[str]) -> str:
    """Return the names of modules for a message: '"bn"', '12 modules ("bn1", "bn2", "bn3" and 9 more)'."""
    shown = listed(names, _SHOWN, lambda name: quoted(name) if name else "the model")
    return shown if len(names) == 1 else f"{len(names):,} modules ({shown})"


def _is_tensorflows(place: ModuleTensor, source: Source) -> bool:
    # "fc_weight", which flat files have for "fc.weight", is torch's, too. A hook may rename entries of the state_dict.
    torchs = (place.attribute, place.name.rpartition(".")[2])
    return source.layout.name != SAME.name or not source.variable_name.endswith(torchs)


def _owner(prefix: str, place: ModuleTensor) -> str:
    """Return the prefix of the layer that a tensor belongs to, also if the tensor is parametrized."""
    if isinstance(place.module, ParametrizationList) and _PARAMETRIZATIONS in prefix:
        return prefix[: prefix.rindex(_PARAMETRIZATIONS)]
    return prefix


def _around(prefix: str) -> list[str]:
    """Return the prefixes of the enclosing modules, innermost first: "a.b.c." -> ["a.b.", "a.", ""]."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:end]) for end in range(len(parts) - 1, -1, -1)]
