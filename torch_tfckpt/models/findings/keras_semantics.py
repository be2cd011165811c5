"""Findings on settings that are in the configuration of a Keras model: compared with the module, not suspected.

    compare_settings(findings, model, parts, keras, run)     the findings, without those that the configuration refutes

A part belongs to the layer whose path its stored names begin with. Contract:

    epsilon       of a norm: the finding stays, with both values, only if the values differ, whatever they are
    padding       of a convolution with padding="valid": a finding if the module pads; with padding="same", the finding
                  on strides stays as it is
    strides       and dilation, of a convolution with a kernel larger than 1
    activation    directly after a layer with weights: a finding if both functions are known and differ (see
                  `activations`), or if there certainly is none in one of the two models; of an LSTM, a GRU or an RNN
    flattening    of a map before a Linear: no finding if Keras has torch's order; a finding if it has not, and the
                  input of the Linear is not understood
    other forms   no finding on a LeakyReLU, GELU or Hardsigmoid module if the model has a layer with this function
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from torch_tfckpt.keras_files.layer_graph import LayerGraph
from torch_tfckpt.keras_files.layers import KerasConfig, KerasLayer, LayersByVariable
from torch_tfckpt.keras_files.reader import KerasReader
from torch_tfckpt.models.findings.activations import (
    Activation,
    activation_after_layer,
    activation_named,
    activation_of_layer,
    activations_after,
)
from torch_tfckpt.models.findings.flattened_maps import inputs_of_linear_layers
from torch_tfckpt.models.findings.keras_flattening import FlattenedMap, flattened_map
from torch_tfckpt.models.findings.norm_semantics import EPSILONS, kind_of_norm
from torch_tfckpt.models.findings.symbolic_run import Run
from torch_tfckpt.models.findings.tensorflow_parts import TensorFlowPart, findings_on
from torch_tfckpt.models.layers.layouts import DENSE
from torch_tfckpt.saveables.load_report import SemanticFinding
from torch_tfckpt.text import quoted

_PADDING: Final = ("same_padding_stride", "same_padding_transposed")
# Findings on modules that are activations -> the function of these modules.
_FORMS: Final = {
    "leaky_relu_slope": Activation("leaky_relu", 0.01),
    "gelu_form": Activation("gelu"),
    "hard_sigmoid_form": Activation("hard_sigmoid"),
}
_RESET: Final = "gru_reset_after"
_FLATTENED: Final = "dense_after_flatten"
_WRAPPERS: Final = {"TimeDistributed": "layer", "Bidirectional": "layer", "RNN": "cell"}
_RECURRENT: Final = ("LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "SimpleRNNCell")
_NORMS: Final = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_CLOSE: Final = 1e-6  # relative; the configuration has the numbers of the program, in double precision


def compare_settings(
    findings: Sequence[SemanticFinding],
    model: nn.Module,
    parts: Sequence[TensorFlowPart],
    keras: KerasReader,
    run: Run,
) -> list[SemanticFinding]:
    """Return the findings on a module that is loaded from a file with the configuration of its Keras model."""
    assert keras.config is not None
    known = KerasLayers(keras)
    layers = {part.name: layer for part in parts if (layer := known.of(_keys(part))) is not None}
    norms = {name for name, layer in layers.items() if "epsilon" in layer.settings}
    padded = {name for name, layer in layers.items() if layer.settings.get("padding") == "valid"}
    reset = {name for name, layer in layers.items() if layer.settings.get("reset_after") is True}
    graph = LayerGraph(keras.config.model)
    following = list(_following(parts, layers, graph, run, keras_2=keras.keras_2))
    maps = {name: order for name, layer in layers.items() if (order := flattened_map(layer, graph)) is not None}
    confirmed = _confirmed_forms(keras.config, keras_2=keras.keras_2)
    compared = {part.name for part in parts if any(part.module is each.module for each in following)}
    refuted: Mapping[str, set[str]] = {
        **dict.fromkeys(_PADDING, padded),
        **dict.fromkeys(_FORMS, compared),
        **dict.fromkeys({finding.name for finding in findings if finding.name.endswith("_epsilon")}, norms),
        _RESET: reset,
        _FLATTENED: {name for name, order in maps.items() if order.is_in_torchs_order},
    }
    kept: list[SemanticFinding] = []
    for finding in findings:
        if finding.name in confirmed:
            continue
        names = [name for name in finding.modules if name not in refuted.get(finding.name, ())]
        if len(names) == len(finding.modules):
            kept.append(finding)
        elif names:
            message = f"{finding.message} (of these: {', '.join(names)})"
            kept.append(finding._replace(modules=tuple(names), message=message))
    for part in parts:
        layer = layers.get(part.name)
        if layer is not None:
            kept += _epsilon(part, layer)
            kept += _padding(part, layer)
            kept += _strides(part, layer)
            kept += _recurrent(part, layer, keras_2=keras.keras_2)
    for each in following:
        kept += _activation(each)
    if not any(finding.name == _FLATTENED for finding in kept):
        kept += _flattened(model, parts, maps, run)
    return kept


class KerasLayers:
    """The layers of a Keras model by the names of their variables."""

    def __init__(self, keras: KerasReader) -> None:
        self._names = keras.paths
        self._layers = None if keras.config is None else LayersByVariable(keras.config.model)

    def of(self, keys: Sequence[str]) -> KerasLayer | None:
        """Return the layer that stores all of these variables; None if it is unknown."""
        found = [self._layer(key) for key in keys]
        return found[0] if found and all(each is found[0] for each in found) else None

    def _layer(self, key: str) -> KerasLayer | None:
        for name in (self._names.get(key, key), key):
            layer = None if self._layers is None else self._layers.find(name)
            if layer is not None:
                return _unwrapped(layer)
        return None


def _unwrapped(layer: KerasLayer) -> KerasLayer | None:
    """Return the layer that a wrapper applies; None if there are several."""
    while layer.class_name in _WRAPPERS:
        inner = layer.inner.get(_WRAPPERS[layer.class_name], ())
        if len(inner) != 1:
            return None
        [layer] = inner
    return layer


def _keys(part: TensorFlowPart) -> list[str]:
    return [key for source in part.sources.values() for key in source.keys]


def _confirmed_forms(config: KerasConfig, *, keras_2: bool) -> set[str]:
    """Return the findings on functions that the model has, too."""
    of_model = [activation_of_layer(layer, keras_2=keras_2) for layer in config.model.walk()]
    known = [each for each in of_model if each is not None]
    return {name for name, function in _FORMS.items() if any(function.equals(each) for each in known)}


def _epsilon(part: TensorFlowPart, layer: KerasLayer) -> list[SemanticFinding]:
    kind = kind_of_norm(part)
    name = next((name for name in EPSILONS if hasattr(part.module, name)), None)
    stored = layer.settings.get("epsilon")
    held = getattr(part.module, name) if name is not None else None
    if not kind or name is None or not isinstance(stored, int | float):
        return []
    if isinstance(held, int | float) and abs(held - stored) <= _CLOSE * abs(stored):
        return []
    text = f"{name}={held} in {{those}}, but epsilon={stored:g} in the layer of Keras. Set {name}={stored:g}"
    return findings_on(kind, [part], text)


def _padding(part: TensorFlowPart, layer: KerasLayer) -> list[SemanticFinding]:
    module: Any = part.module
    if layer.settings.get("padding") != "valid" or not isinstance(module, _ConvNd) or not _pads(module):
        return []
    kind = "same_padding_transposed" if "Transpose" in layer.class_name else "same_padding_stride"
    text = f'padding={module.padding!r} in {{those}}, but padding="valid" in the layer of Keras. Set padding=0'
    return findings_on(kind, [part], text)


def _pads(module: Any) -> bool:
    return module.padding == "same" if isinstance(module.padding, str) else any(module.padding)


def _strides(part: TensorFlowPart, layer: KerasLayer) -> Iterator[SemanticFinding]:
    """Yield findings on a convolution. One with a kernel of 1 may be preceded by a choice of every second position."""
    module = part.module
    if not isinstance(module, _ConvNd) or max(module.kernel_size) == 1 or _is_depthwise_of_separable(part, layer):
        return
    for name, setting in (("stride", "strides"), ("dilation", "dilation_rate")):
        stored, held = layer.settings.get(setting), getattr(module, name)
        wanted = tuple(stored) if isinstance(stored, list) else (stored,) * len(held)
        if len(wanted) == len(held) and wanted != tuple(held) and all(isinstance(each, int) for each in wanted):
            text = f"{name}={held} in {{those}}, but {setting}={wanted} in the layer of Keras. Set {name}={wanted}"
            yield from findings_on("strides", [part], text)


def _is_depthwise_of_separable(part: TensorFlowPart, layer: KerasLayer) -> bool:
    return layer.class_name.startswith("Separable") and "pointwise_kernel" not in part.stored_names


def _recurrent(part: TensorFlowPart, layer: KerasLayer, *, keras_2: bool) -> list[SemanticFinding]:
    """Return the finding on an LSTM, GRU or RNN whose functions torch does not compute."""
    module: Any = part.module
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase) or layer.class_name not in _RECURRENT:
        return []
    own = {"activation": str(getattr(module, "nonlinearity", "tanh")), "recurrent_activation": "sigmoid"}
    found: list[SemanticFinding] = []
    for setting, name in own.items():
        stored = layer.settings.get(setting, name)
        function = activation_named(stored, keras_2=keras_2)
        if setting not in layer.objects and function is not None and function.equals(Activation(name)):
            continue
        has_choice = hasattr(module, "nonlinearity") and stored in ("tanh", "relu")
        fix = f'Set nonlinearity="{stored}"' if has_choice else "Write a cell with this function"
        text = f"{setting}={stored} in the layer of Keras, but {{those}} computes {name}. {fix}"
        found += findings_on("activation", [part], text)
    return found


class _Compared(NamedTuple):
    """The functions that are known to come after a layer: in the module, and in the Keras model."""

    part: TensorFlowPart
    layer: KerasLayer
    found: Activation
    wanted: Activation
    module: nn.Module | None  # that computes `found`


def _flattened(
    model: nn.Module, parts: Sequence[TensorFlowPart], maps: Mapping[str, FlattenedMap], run: Run
) -> list[SemanticFinding]:
    """Return the finding on Linear layers whose input is not understood, but is a flattened map in Keras."""
    if not any(isinstance(module, _ConvNd) for module in model.modules()):
        return []
    understood = inputs_of_linear_layers(model, run)
    open_parts = [
        part
        for part in parts
        if part.name in maps and not maps[part.name].is_in_torchs_order and id(part.module) not in understood
    ]
    text = (
        "{those} multiplies a flattened feature map in Keras, with the channels as the last axis, and the forward "
        "method does not show in which order it is flattened here. Flatten by x.permute(0, 2, 3, 1).flatten(1), or "
        'give the rule of the kernel the layout "dense_after_flatten"'
    )
    return findings_on(_FLATTENED, [part for part in open_parts if DENSE.name in part.layouts], text)


def _following(
    parts: Sequence[TensorFlowPart], layers: Mapping[str, KerasLayer], graph: LayerGraph, run: Run, *, keras_2: bool
) -> Iterator[_Compared]:
    """Yield the functions after layers with weights, if they are known on both sides."""
    kinds = (_ConvNd, nn.Linear, *_NORMS)
    candidates = [part for part in parts if part.name in layers and isinstance(part.module, kinds)]
    made = run() if candidates else None
    if made is None:
        return
    after = activations_after(made)
    for part in candidates:
        layer = layers[part.name]
        wanted = activation_after_layer(layer, graph, keras_2=keras_2)
        calls = after.get(id(part.module), [])
        own = {each.activation for each in calls}
        found = next(iter(own)) if len(own) == 1 else None
        if wanted is not None and found is not None and not _is_depthwise_of_separable(part, layer):
            yield _Compared(part, layer, found, wanted, calls[0].module)


def _activation(each: _Compared) -> list[SemanticFinding]:
    if each.found.equals(each.wanted):
        return []
    text = f"{each.found} after {{those}}, but {each.wanted} after the layer {quoted(each.layer.name)} of Keras"
    return findings_on("activation", [each.part], f"{text}. Use the same")
