"""Findings on settings that the configuration of a Keras model tells: compared with the module, not suspected.

    compare_settings(findings, parts, config)     the findings, without those that the configuration refutes

A part belongs to the layer whose path its stored names begin with. Contract:

    epsilon       of a norm: the finding stays, with both values, only if the values differ, whatever they are
    padding       of a convolution with padding="valid": a finding if the module pads; with padding="same", the finding
                  on strides stays as it is
    slope         of LeakyReLU, which has no variables: no finding if the model has all slopes of the module
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import nn
from torch.nn.modules.conv import _ConvNd

from torch_tfckpt.keras_files.layers import KerasConfig, KerasLayer
from torch_tfckpt.models.findings.norm_semantics import EPSILONS, kind_of_norm
from torch_tfckpt.models.findings.tensorflow_parts import TensorFlowPart, findings_on
from torch_tfckpt.saveables.load_report import SemanticFinding

_PADDING: Final = ("same_padding_stride", "same_padding_transposed")
_SLOPE: Final = "leaky_relu_slope"
_CLOSE: Final = 1e-6  # relative; the configuration has the numbers of the program, in double precision


def compare_settings(
    findings: Sequence[SemanticFinding], parts: Sequence[TensorFlowPart], config: KerasConfig
) -> list[SemanticFinding]:
    """Return the findings on a module that is loaded from a file with the configuration of its Keras model."""
    paths = {layer.path: layer for layer in config.model.walk()}
    layers = {part.name: layer for part in parts if (layer := _layer_of(part, paths, config.model.name)) is not None}
    norms = {part.name for part in parts if part.name in layers and "epsilon" in layers[part.name].settings}
    padded = {
        part.name for part in parts if part.name in layers and layers[part.name].settings.get("padding") == "valid"
    }
    slopes = {_slope(layer) for layer in config.model.walk() if layer.class_name == "LeakyReLU"}
    own = {part.module.negative_slope for part in parts if isinstance(part.module, nn.LeakyReLU)}
    kept: list[SemanticFinding] = []
    for finding in findings:
        known = norms if finding.name.endswith("_epsilon") else padded if finding.name in _PADDING else set()
        names = [name for name in finding.modules if name not in known]
        if finding.name == _SLOPE and own <= slopes:
            continue
        if len(names) == len(finding.modules):
            kept.append(finding)
        elif names:
            message = finding.message
            kept.append(finding._replace(modules=tuple(names), message=f"{message} (of these: {', '.join(names)})"))
    for part in parts:
        if part.name in norms:
            kept += _epsilon(part, layers[part.name])
        elif part.name in padded:
            kept += _padding(part, layers[part.name])
    return kept


def _layer_of(part: TensorFlowPart, paths: Mapping[str, KerasLayer], model: str) -> KerasLayer | None:
    """Return the layer that stores the values of a part; None if it is unknown."""
    for source in part.sources.values():
        scope = source.key.rpartition("/")[0]
        while scope:
            found = paths.get(scope) or paths.get(scope.removeprefix(f"{model}/"))
            if found is not None:
                return found
            scope = scope.rpartition("/")[0]
    return None


def _epsilon(part: TensorFlowPart, layer: KerasLayer) -> list[SemanticFinding]:
    kind = kind_of_norm(part)
    name = next((name for name in EPSILONS if hasattr(part.module, name)), None)
    stored = layer.settings["epsilon"]
    held = getattr(part.module, name) if name is not None else None
    if not kind or name is None or not isinstance(stored, int | float):
        return []
    if isinstance(held, int | float) and abs(held - stored) <= _CLOSE * abs(stored):
        return []
    text = f"{name}={held} in {{those}}, but epsilon={stored:g} in the layer of Keras. Set {name}={stored:g}"
    return findings_on(kind, [part], text)


def _padding(part: TensorFlowPart, layer: KerasLayer) -> list[SemanticFinding]:
    module: Any = part.module
    if not isinstance(module, _ConvNd) or not _pads(module):
        return []
    kind = "same_padding_transposed" if "Transpose" in layer.class_name else "same_padding_stride"
    text = f'padding={module.padding!r} in {{those}}, but padding="valid" in the layer of Keras. Set padding=0'
    return findings_on(kind, [part], text)


def _pads(module: Any) -> bool:
    return module.padding == "same" if isinstance(module.padding, str) else any(module.padding)


def _slope(layer: KerasLayer) -> object:
    return layer.settings.get("negative_slope", layer.settings.get("alpha"))
