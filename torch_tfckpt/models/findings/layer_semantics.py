"""Findings on layer settings that the weights do not show, such as padding and activations."""

from collections.abc import Sequence
from typing import Any, Final

from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from torch_tfckpt.models.findings.flattened_maps import flattened_inputs
from torch_tfckpt.models.findings.symbolic_run import Run
from torch_tfckpt.models.findings.tensorflow_parts import TensorFlowPart, findings_on, those
from torch_tfckpt.models.layers.layer_names import KERNELS
from torch_tfckpt.models.layers.layouts import DENSE, LSTM_TF1
from torch_tfckpt.saveables.load_report import SemanticFinding

_TORCH_SLOPE: Final = 0.01
_LINEAR_MODES: Final = ("linear", "bilinear", "trilinear")


def layer_findings(parts: Sequence[TensorFlowPart]) -> list[SemanticFinding]:
    """Return the findings on individual layers."""
    return [
        *_padding([part for part in parts if isinstance(part.module, _ConvNd | _MaxPoolNd | _AvgPoolNd)]),
        *findings_on(
            "gelu_form",
            [part for part in parts if _is_exact_gelu(part.module)],
            "GELU in {those} is the exact form, torch's default; GPT-2, and Google's code of BERT and ALBERT, use the "
            'tanh form. If the model uses the tanh form, set approximate="tanh", or "gelu_new" in a configuration of '
            "transformers",
        ),
        *_scaled_logits(parts),
        *findings_on(
            "leaky_relu_slope",
            [part for part in parts if isinstance(part.module, nn.LeakyReLU) and _has_torch_slope(part.module)],
            "negative_slope=0.01, torch's default, in {those}; the default is 0.2 in tf.nn.leaky_relu and 0.3 in "
            "Keras's LeakyReLU. Set the slope that the model was built with",
        ),
        *findings_on(
            "hard_sigmoid_form",
            [part for part in parts if isinstance(part.module, nn.Hardsigmoid)],
            "Hardsigmoid in {those} is relu6(x + 3) / 6, as in Keras 3; in Keras 1 and 2 hard_sigmoid is "
            "clip(0.2 * x + 0.5, 0, 1). If the model uses the second form, replace the module",
        ),
        *findings_on(
            "upsample_alignment",
            [part for part in parts if isinstance(part.module, nn.Upsample) and _has_torch_alignment(part.module)],
            "linear interpolation in {those} takes pixels as areas, as Keras and tf.image.resize do; TensorFlow 1's "
            "resize_bilinear takes them as points. If the model uses "
            "resize_bilinear with align_corners=True, set the same here; "
            'with align_corners=False, replace the module as shown in "upsample_alignment" of '
            "docs/conversion/semantics.md",
        ),
        *_forget_bias(parts),
        *_reset_after(parts),
    ]


def dense_after_flatten(model: nn.Module, parts: Sequence[TensorFlowPart], run: Run) -> list[SemanticFinding]:
    """Return the finding on Linear layers whose inputs are flattened feature maps."""
    # A rule with a different layout, such as "dense_after_flatten", means that the user chose the order.
    linear = (part for part in parts if isinstance(part.module, nn.Linear))
    dense = {id(part.module): part for part in linear if DENSE.name in part.layouts}
    found = [each for each in flattened_inputs(model, run) if id(each.linear) in dense] if dense else []
    multiplies = "multiplies" if all(each.is_certain for each in found) else "may multiply"
    channels = f" of {found[0].channels} channels" if len(found) == 1 and found[0].channels is not None else ""
    return findings_on(
        "dense_after_flatten",
        [dense[id(each.linear)] for each in found],
        f"{{those}} {multiplies} a flattened feature map{channels}, whose order the weight expects: in TensorFlow "
        f"height, width, channels, in torch channels, height, width. Unless TensorFlow's model was channels_first, "
        f"flatten by x.permute(0, 2, 3, 1).flatten(1), or give the rule of the kernel the layout "
        f'"dense_after_flatten"',
    )


def _padding(parts: Sequence[TensorFlowPart]) -> list[SemanticFinding]:
    shifted = [part for part in parts if _is_shifted(part.module)]
    convolutions = [part for part in shifted if part.sources and _is_convolution(part.module)]
    example = ""
    if convolutions:
        pads = ", ".join(f"{before}, {after}" for before, after in reversed(_same_padding(convolutions[0].module)))
        example = f", for instance by nn.functional.pad(x, ({pads})) before {those([convolutions[0].name])}"
    return [
        *findings_on(
            "same_padding_stride",
            convolutions,
            'padding with a stride in {those} is the same on both sides; TensorFlow\'s padding="SAME" pads the end '
            f"more. If the model has it, set padding=0 and pad the input{example} if its sizes are multiples of the "
            f"stride",
        ),
        *findings_on(
            "same_padding_pool",
            [part for part in shifted if not isinstance(part.module, _ConvNd)],
            'padding with a stride in {those} is the same on both sides; TensorFlow\'s padding="SAME" pads the end '
            "more. If the model has it, set padding=0 and ceil_mode=True, which is equal for kernel_size=stride + 1 "
            "and sizes that are multiples of the stride",
        ),
        *findings_on(
            "same_padding_transposed",
            [part for part in shifted if part.sources and isinstance(part.module, _ConvTransposeNd)],
            'padding with a stride in {those} crops both sides; TensorFlow\'s padding="SAME" crops the end more. If '
            "the model has it, set padding=0 and output_padding=0, and crop (kernel_size - stride) // 2 at the "
            "beginning and the rest at the end",
        ),
        *findings_on(
            "average_pool_padding",
            [part for part in parts if _averages_padding(part.module)],
            "the zeros of the padding are averaged in {those}, torch's default; TensorFlow's padding=\"SAME\" leaves "
            "them out. If the model has it, set count_include_pad=False",
        ),
    ]


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)


def _is_shifted(module: nn.Module) -> bool:
    """Return whether a padded layer with stride reads different positions than with SAME padding.

    This assumes inputs whose sizes are multiples of the stride.
    """
    pairs = zip(_axes(module), _same_padding(module), strict=True)
    padded = [(padding, same) for (_, stride, padding), same in pairs if stride > 1 and padding > 0]
    if isinstance(module, _ConvTransposeNd):  # the end can be cropped afterwards
        return any(padding != before for padding, (before, _) in padded)
    return any((padding, padding) != same for padding, same in padded)


def _same_padding(module: nn.Module) -> list[tuple[int, int]]:
    """Return how much SAME padding adds, or crops in a transposed convolution, at both ends of each axis."""
    totals = [max(extent - stride, 0) for extent, stride, _ in _axes(module)]
    return [(total // 2, total - total // 2) for total in totals]


def _axes(module: Any) -> list[tuple[int, int, int]]:
    """Return (kernel extent, stride, padding) for each axis; one tuple if all settings are numbers."""
    padding = 0 if isinstance(module.padding, str) else module.padding  # "same" is only for stride 1
    given = (module.kernel_size, module.stride, padding, getattr(module, "dilation", 1))
    values = [tuple(value) if isinstance(value, tuple | list) else (value,) for value in given]
    rank = max(map(len, values))
    kernels, strides, paddings, dilations = (value if len(value) == rank else value * rank for value in values)
    extents = [(kernel - 1) * dilation + 1 for kernel, dilation in zip(kernels, dilations, strict=True)]
    return list(zip(extents, strides, paddings, strict=True))


def _averages_padding(module: Any) -> bool:
    return bool(getattr(module, "count_include_pad", False)) and any(padding > 0 for _, _, padding in _axes(module))


def _is_exact_gelu(module: nn.Module) -> bool:
    if isinstance(module, nn.GELU):
        return module.approximate == "none"
    # Also layers that keep the function as an attribute, such as TransformerEncoderLayer, and other libraries' GELU.
    return any(value is functional.gelu for value in vars(module).values()) or type(module).__name__ == "GELU"


def _scaled_logits(parts: Sequence[TensorFlowPart]) -> list[SemanticFinding]:
    """Return the findings on T5 of transformers, where a setting decides whether the input of lm_head is scaled."""
    ties: dict[bool, list[TensorFlowPart]] = {True: [], False: []}
    for part in parts:
        head, shared = getattr(part.module, "lm_head", None), getattr(part.module, "shared", None)
        scales = getattr(getattr(part.module, "config", None), "scale_decoder_outputs", None)
        if isinstance(head, nn.Linear) and isinstance(shared, nn.Embedding) and isinstance(scales, bool):
            is_tied = head.weight is shared.weight
            if is_tied != scales:
                ties[is_tied].append(part)
    return [
        *findings_on(
            "scaled_logits",
            ties[True],
            "the logits of {those} share the matrix of the embeddings, as in T5, but their input is not scaled by "
            "d_model ** -0.5, as in T5 1.1. If the checkpoint is T5's, omit tie_word_embeddings=False in the "
            "configuration; if it is T5 1.1's, give lm_head a weight of its own",
        ),
        *findings_on(
            "scaled_logits",
            ties[False],
            "the input of the logits of {those} is scaled by d_model ** -0.5, as in T5, but they have a matrix of "
            "their own, as in T5 1.1, which does not scale it. If the checkpoint is T5 1.1's, set "
            "tie_word_embeddings=False in the configuration",
        ),
    ]


def _has_torch_slope(module: nn.LeakyReLU) -> bool:
    return module.negative_slope == _TORCH_SLOPE


def _has_torch_alignment(module: nn.Upsample) -> bool:
    return module.mode in _LINEAR_MODES and not module.align_corners


def _forget_bias(parts: Sequence[TensorFlowPart]) -> list[SemanticFinding]:
    """Return the finding on LSTMs from cells of TensorFlow 1, which have one kernel for input and state."""
    cells = [part for part in parts if _is_lstm(part.module) and _is_first_cell(part)]
    unknown = [part for part in cells if not _added(part)]
    default = [part for part in cells if _added(part) == {LSTM_TF1.added}]
    start = "cells of TensorFlow 1 add forget_bias to the forget gate when they run, and do not store it. "
    return [
        *findings_on(
            "forget_bias",
            unknown,
            f"{start}Check that the second quarter of bias_ih in {{those}} includes the value that the model was built "
            f"with: 1.0 by default, 0.0 in CudnnLSTM",
        ),
        *findings_on(
            "forget_bias",
            default,
            f"{start}Its default, 1.0, was added to the second quarter of bias_ih in {{those}}. If the model was built "
            f"with a different value, such as 0.0 in CudnnLSTM, give the rule of the bias the layout "
            f'{{"kind": "lstm_tf1", "forget_bias": 0.0}}',
        ),
    ]


def _reset_after(parts: Sequence[TensorFlowPart]) -> list[SemanticFinding]:
    """Return the finding on GRUs without a bias: only its shape would show how the reset gate is applied."""
    layers = [part for part in parts if isinstance(part.module, nn.GRU | nn.GRUCell)]
    return findings_on(
        "gru_reset_after",
        [part for part in layers if part.sources and not any(name.startswith("bias") for name in part.sources)],
        "no bias is stored for {those}, so it is unknown whether the reset gate is applied after the recurrent kernel "
        "(reset_after=True, the default of Keras 3 and of TensorFlow 2, and torch's formula) or before it "
        "(reset_after=False), which torch cannot compute. Check how the model was built",
    )


def _added(part: TensorFlowPart) -> set[tuple[float, ...]]:
    """Return the amounts that layouts add to the biases of a cell."""
    added = {source.layout.added for name, source in part.sources.items() if name.startswith("bias_ih")}
    return added - {()}


def _is_lstm(module: nn.Module) -> bool:
    return isinstance(module, nn.LSTMCell | nn.LSTM)


def _is_first_cell(part: TensorFlowPart) -> bool:
    names = {name for name in part.stored_names if "bias" not in name}
    return bool(names) and names <= set(KERNELS)
