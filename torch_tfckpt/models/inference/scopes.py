"""Names that variables would have if programs named their layers as Keras does.

    output_weights, output_bias                      output/weight, output/bias
    self/query/kernel (key, value), output/dense     query/kernel, attention_output/kernel

Contract: a name is added only if it is unique. Parts of an attention layer are recognised by the words query, key,
value and output (see `infer_names`), each of which exactly one layer in the scope must have.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from torch_tfckpt.models.inference.names import name_path
from torch_tfckpt.models.layers.layer_names import OF_LAYERS

_FLAT: Final = re.compile(r"(?P<layer>.*[^/._])_(?P<leaf>weights?|kernel|bias(es)?)")
_ROLES: Final = ("query", "key", "value")
_OUTPUT: Final = frozenset({"output", "projection"})
_LEAVES: Final = frozenset({"kernel", "bias"})


def flat_layers(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return name and key for a weight and a bias whose names differ in the last word only.

    Args:
        pairs: Name and key of all variables.
    """
    pairs = list(pairs)
    layers: dict[str, dict[str, str]] = {}
    for name, key in pairs:
        match = _FLAT.fullmatch(name)
        if match is not None and re.split(r"[/.]", name)[-1] not in OF_LAYERS:
            # The names do not show the order of axes: BERT's output_weights are [classes, hidden].
            leaf = "weight" if match["leaf"] == "weights" else match["leaf"]
            layers.setdefault(match["layer"], {})[leaf] = key
    taken = {name[:at] for name, _ in pairs for at, character in enumerate(name) if character in "/."}
    return [
        (f"{layer}/{leaf}", key)
        for layer, leaves in layers.items()
        if layer not in taken and len(leaves) == 2 and sum(leaf.startswith("bias") for leaf in leaves) == 1
        for leaf, key in leaves.items()
    ]


def attention_names(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the names that Keras's MultiHeadAttention gives to the variables of a scope; none if it has no such parts.

    Args:
        variables: Dotted name in the scope -> key.
    """
    layers: dict[str, dict[str, str]] = {}
    for name, key in variables.items():
        layer, _, leaf = name.rpartition(".")
        if layer and leaf in _LEAVES:
            layers.setdefault(layer, {})[leaf] = key
    parts: dict[str, list[str]] = {}
    for layer, leaves in layers.items():
        words = name_path(layer).all_words
        roles = [role for role in _ROLES if role in words]
        if len(roles) == 1:
            parts.setdefault(roles[0], []).append(layer)
        elif not roles and words & _OUTPUT and "kernel" in leaves:
            parts.setdefault("attention_output", []).append(layer)
    if len(parts) != len(_ROLES) + 1 or any(len(found) > 1 for found in parts.values()):
        return {}
    return {f"{part}.{leaf}": key for part, [layer] in parts.items() for leaf, key in layers[layer].items()}
