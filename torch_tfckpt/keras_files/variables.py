"""Names of the variables of Keras's own layers, in the order in which Keras saves them.

Keras numbers the variables of a layer: `vars/0`, `vars/1`. The number alone does not identify a variable, because
settings remove variables: BatchNormalization with center=False and with scale=False both have three. So the names come
from the class, the settings if the configuration is known, and the shapes. If choices remain, there are no names.

Source: keras/src/layers, version 3.15; `save_own_variables` and the order of `add_weight`.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final, NamedTuple

from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape


class KnownVariable(NamedTuple):
    """One variable that layers of a class may have."""

    name: str
    setting: str = ""  # the layer has the variable only with this setting (see `_is_set`); "": always
    trainable: bool = True


class Stored(NamedTuple):
    """The shape and dtype of one variable in the file."""

    shape: Shape
    dtype: DataType


_KERNEL: Final = (KnownVariable("kernel"), KnownVariable("bias", "use_bias"))
_EINSUM: Final = (KnownVariable("kernel"), KnownVariable("bias", "bias_axes"))
_DEPTHWISE: Final = (KnownVariable("depthwise_kernel"), KnownVariable("bias", "use_bias"))  # Keras 2
_SEPARABLE: Final = (
    *(KnownVariable("depthwise_kernel"), KnownVariable("pointwise_kernel"), KnownVariable("bias", "use_bias")),
)
_CELL: Final = (KnownVariable("kernel"), KnownVariable("recurrent_kernel"), KnownVariable("bias", "use_bias"))
_SCALED: Final = (KnownVariable("gamma", "scale"), KnownVariable("beta", "center"))
_MOVING: Final = (
    KnownVariable("moving_mean", trainable=False),
    KnownVariable("moving_variance", trainable=False),
)
_RENORM: Final = tuple(
    KnownVariable(name, "renorm", trainable=False) for name in ("moving_stddev", "renorm_mean", "renorm_stddev")
)
_EMBEDDINGS: Final = (KnownVariable("embeddings"),)
_VARIABLES: Final[Mapping[str, Sequence[KnownVariable]]] = {
    **dict.fromkeys(("dense", "conv1d", "conv2d", "conv3d", "depthwise_conv1d", "depthwise_conv2d"), _KERNEL),
    **dict.fromkeys(("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"), _KERNEL),
    **dict.fromkeys(("locally_connected1d", "locally_connected2d"), _KERNEL),  # Keras 2
    "einsum_dense": _EINSUM,
    **dict.fromkeys(("separable_conv1d", "separable_conv2d"), _SEPARABLE),
    "batch_normalization": (*_SCALED, *_MOVING, *_RENORM),
    "sync_batch_normalization": (*_SCALED, *_MOVING, *_RENORM),  # Keras 2
    **dict.fromkeys(("layer_normalization", "group_normalization"), _SCALED),
    "rms_normalization": (KnownVariable("scale"),),
    "embedding": _EMBEDDINGS,
    "reversible_embedding": (*_EMBEDDINGS, KnownVariable("reverse_embeddings", "tie_weights=False")),
    "attention": (KnownVariable("scale", "use_scale"), KnownVariable("concat_score_weight", "score_mode=concat")),
    "additive_attention": (KnownVariable("scale", "use_scale"),),
    **dict.fromkeys(("lstm_cell", "gru_cell", "simple_rnn_cell", "conv_lstm_cell"), _CELL),
    "p_re_lu": (KnownVariable("alpha"),),
    "normalization": tuple(KnownVariable(name, trainable=False) for name in ("mean", "variance", "count")),
}
# Classes without variables of their own; they may contain objects with variables.
_WITHOUT: Final = frozenset(
    {
        *("lstm", "gru", "simple_rnn", "rnn", "stacked_rnn_cells", "bidirectional", "time_distributed"),
        *("conv_lstm1d", "conv_lstm2d", "conv_lstm3d", "multi_head_attention", "grouped_query_attention"),
        *("functional", "sequential", "model", "flatten", "add", "concatenate", "dropout", "input_layer"),
    }
)
# With int8 weights, the last variable is their scale.
_QUANTIZED: Final[Mapping[str, Sequence[str]]] = {
    "dense": ("kernel", "bias", "kernel_scale"),
    "einsum_dense": ("kernel", "bias", "kernel_scale"),
    "embedding": ("embeddings", "embeddings_scale"),
}
# Inner layers that contain a layer's variables: attribute -> class and name that Keras gives to the inner layer.
_PARTS: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "multi_head_attention": {
        f"{private}{part}_dense": ("einsum_dense", "attention_output" if part == "output" else part)
        for private in ("", "_")
        for part in ("query", "key", "value", "output")
    },
    "lstm": {"cell": ("lstm_cell", "lstm_cell")},
    "gru": {"cell": ("gru_cell", "gru_cell")},
    "simple_rnn": {"cell": ("simple_rnn_cell", "simple_rnn_cell")},
    **{f"conv_lstm{rank}d": {"cell": ("conv_lstm_cell", "conv_lstm_cell")} for rank in (1, 2, 3)},
}
_COUNTER: Final = re.compile(r"(.+?)_\d+")
_NON_WORD: Final = re.compile(r"\W+")
_WORD: Final = re.compile("(.)([A-Z][a-z]+)")
_CAPITAL: Final = re.compile("([a-z])([A-Z])")


def snake_case(class_name: str) -> str:
    """Return the name of a class as Keras writes it in paths: "Conv2D" -> "conv2d"."""
    name = _NON_WORD.sub("", class_name)
    return _CAPITAL.sub(r"\1_\2", _WORD.sub(r"\1_\2", name)).lower()


def class_in(name: str) -> str:
    """Return the class in an automatic name or path: "conv2d_3" -> "conv2d"; "" if it is not a known class."""
    if is_known(name):
        return name
    match = _COUNTER.fullmatch(name)
    return match[1] if match is not None and is_known(match[1]) else ""


def is_known(kind: str) -> bool:
    """Return whether the variables of a class, in snake case, are known."""
    return kind in _VARIABLES or kind in _WITHOUT


def part_of(kind: str, attribute: str) -> tuple[str, str]:
    """Return the class and the name of the layer under an attribute of a Keras layer; ("", "") if unknown."""
    kind = "multi_head_attention" if kind == "grouped_query_attention" else kind
    return _PARTS.get(kind, {}).get(attribute, ("", ""))


def parts_in_order(kind: str) -> list[str]:
    """Return the attributes of a Keras layer that contain layers, in the order in which Keras creates them."""
    kind = "multi_head_attention" if kind == "grouped_query_attention" else kind
    wrapped = {"bidirectional": ["forward_layer", "backward_layer"], "time_distributed": ["layer"], "rnn": ["cell"]}
    return list(_PARTS.get(kind, {})) or wrapped.get(kind, [])


def is_trainable(kind: str, name: str) -> bool:
    """Return whether a variable of a class is trained, unless the layer is frozen."""
    known = {each.name: each.trainable for each in _VARIABLES.get(kind, ())}
    return known.get(name, not name.endswith("_scale"))


def variable_names(
    kind: str, stored: Sequence[Stored], settings: Mapping[str, Any] | None, *, keras_2: bool = False
) -> list[str] | None:
    """Return the names of a layer's variables; None if the file does not determine them.

    Args:
        kind: The class in snake case.
        stored: The variables in the order of their numbers.
        settings: The settings of the layer; None if the configuration is not known.
        keras_2: Whether Keras 2 wrote the file; depthwise kernels then have a different name.
    """
    quantized = _QUANTIZED.get(kind)
    if quantized is not None and stored and stored[0].dtype in (DataType.DT_INT8, DataType.DT_UINT8):
        first, *middle, last = quantized
        names = [first, *(middle if len(stored) == len(quantized) else ()), last]
        return names if len(names) == len(stored) and _fit(names, stored) else None
    if kind not in _VARIABLES:
        return None
    known = _DEPTHWISE if keras_2 and kind.startswith("depthwise") else _VARIABLES[kind]
    if settings is None:
        choices = _choices(known)
    else:
        choices = {tuple(each.name for each in known if _is_set(settings, each.setting))}
    fitting = [names for names in choices if len(names) == len(stored) and _fit(names, stored)]
    return list(fitting[0]) if len(fitting) == 1 else None


def _choices(known: Sequence[KnownVariable]) -> set[tuple[str, ...]]:
    """Return the names of the variables for each combination of settings."""
    settings = sorted({each.setting for each in known if each.setting})
    combinations = (dict(zip(settings, values, strict=True)) for values in product((True, False), repeat=len(settings)))
    return {tuple(each.name for each in known if chosen.get(each.setting, True)) for chosen in combinations}


def _is_set(settings: Mapping[str, Any], setting: str) -> bool:
    """Return whether a setting is on, or has the value in "name=value". The default is on, except for "renorm"."""
    name, _, value = setting.partition("=")
    if value:
        return str(settings.get(name)) == value
    if setting == "bias_axes":
        return settings.get(setting, "") is not None
    if setting in ("scale", "center") and settings.get("rms_scaling"):
        return setting == "scale"
    return not setting or bool(settings.get(setting, setting != "renorm"))


def names_by_shape(stored: Sequence[Stored]) -> list[str] | None:
    """Return the names for a layer of unknown class whose variables can only be a kernel and its bias."""
    if len(stored) != 2:
        return None
    kernel, bias = stored
    is_pair = 2 <= len(kernel.shape) <= 5 and bias.shape == kernel.shape[-1:] and kernel.dtype == bias.dtype
    return ["kernel", "bias"] if is_pair else None


_RANKS: Final = {"kernel": (2, 5), "depthwise_kernel": (3, 5), "pointwise_kernel": (3, 5), "embeddings": (2, 2)}


def _fit(names: Sequence[str], stored: Sequence[Stored]) -> bool:
    """Return whether the shapes are possible for variables of these names."""
    for name, (shape, _) in zip(names, stored, strict=True):
        low, high = _RANKS.get(name, (0, 5))
        if not low <= len(shape) <= high:
            return False
    vectors = {shape for name, (shape, _) in zip(names, stored, strict=True) if name in _SAME}
    return len(vectors) <= 1


_SAME: Final = frozenset(("gamma", "beta", "moving_mean", "moving_variance"))  # all have the same shape
