"""What weights do not show: settings and axis orders that probably differ from TensorFlow's model.

    find_semantics(model, loads, ...)     a finding of each kind, with the modules concerned and what to do

Contract:

    whose values      only modules whose values TensorFlow stored are checked (see `tensorflow_parts`). There are no
                      findings for values that torch stored
    which settings    settings with torch's default, where TensorFlow's default differs. A setting that was changed is
                      taken to be intended. Exceptions: a momentum that is a decay is always wrong; and settings in
                      the configuration of a Keras file are compared, whatever they are (see `keras_semantics`)
    how certain       "may" and "if", unless the finding follows from the module
    what is seen      modules, and for dense_after_flatten the forward method. The arguments of functions that a forward
                      method calls, such as torch.nn.functional.gelu, are not seen

docs/conversion/semantics.md has a section for each name in SEMANTICS.
"""

from collections.abc import Collection, Sequence
from typing import Final

from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.keras_files.reader import KerasReader
from torch_tfckpt.models.findings.keras_semantics import compare_settings
from torch_tfckpt.models.findings.layer_semantics import dense_after_flatten, layer_findings
from torch_tfckpt.models.findings.norm_semantics import norm_findings
from torch_tfckpt.models.findings.symbolic_run import run_once
from torch_tfckpt.models.findings.tensorflow_parts import tensorflow_parts, those
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.targets import Target
from torch_tfckpt.saveables.load_report import SemanticFinding
from torch_tfckpt.text import counted, did_you_mean, quoted

SEMANTICS: Final = (
    "averages_not_used", "weight_order",
    "batch_norm_epsilon", "layer_norm_epsilon", "group_norm_epsilon", "rms_norm_epsilon",
    "batch_norm_momentum", "running_var",
    "dense_after_flatten",
    "same_padding_stride", "same_padding_pool", "same_padding_transposed", "average_pool_padding",
    "strides", "activation",
    "gelu_form", "scaled_logits", "leaky_relu_slope", "hard_sigmoid_form", "upsample_alignment",
    "forget_bias", "gru_reset_after",
    "rmsprop_epsilon", "adam_bias_correction", "optimizer_options", "optimizer_kind", "momentum_learning_rate",
    "trained_constants",
)  # fmt: skip
"""The names that `accept` takes, in the order of reports."""


def check_accept(accept: Collection[str]) -> None:
    """Raise InvalidArgumentError unless `accept` is a collection of names of findings."""
    if isinstance(accept, str) or not isinstance(accept, Collection):
        raise InvalidArgumentError(
            f'load_model: accept={accept!r}: pass a tuple of names, such as accept=("batch_norm_epsilon",)'
        )
    for name in accept:
        if not isinstance(name, str) or name not in SEMANTICS:
            hint = did_you_mean(name, SEMANTICS) if isinstance(name, str) else ""
            shown = quoted(name) if isinstance(name, str) else repr(name)
            names = ", ".join(SEMANTICS)
            raise InvalidArgumentError(
                f"load_model: accept: there is no finding {shown}. {hint} Names: {names}".replace("  ", " ")
            )


def find_semantics(
    model: nn.Module,
    loads: Sequence[tuple[Target, Source]],
    *,
    unused_averages: Collection[str],
    unknown_order: Collection[str] = (),
    trains: bool,
    accept: Collection[str],
    keras: KerasReader | None = None,
) -> list[SemanticFinding]:
    """Return findings on a module about to be loaded: settings that the stored weights do not determine.

    Args:
        unused_averages: Keys of variables whose moving averages are stored, but were not asked for.
        unknown_order: Names of tensors whose axes may be in TensorFlow's order, although they have torch's name.
        trains: Whether training will continue, so that settings that matter only for training are checked, too.
        accept: Names of findings that the caller accepted; these are marked.
        keras: The file, if it is one of Keras.

    Cost: visits all modules; one symbolic run of the forward method if a Linear may follow a feature map, or if the
        configuration of a Keras model is known.
    """
    run = run_once(model)
    parts = tensorflow_parts(model, loads)
    findings = [*_averages(loads, unused_averages), *norm_findings(parts, trains=trains), *layer_findings(parts)]
    findings += dense_after_flatten(model, parts, run)
    findings += _weight_order(loads, unknown_order)
    if keras is not None and keras.config is not None:
        findings = compare_settings(findings, model, parts, keras, run)
    findings.sort(key=lambda finding: SEMANTICS.index(finding.name))
    return [finding._replace(accepted=finding.name in accept) for finding in findings]


def _averages(loads: Sequence[tuple[Target, Source]], unused: Collection[str]) -> list[SemanticFinding]:
    places = [target.places[0] for target, source in loads if any(key in unused for key in source.keys)]
    if not places:
        return []
    modules = tuple(dict.fromkeys(place.parent[:-1] for place in places))
    message = (
        f"moving averages of {counted(len(places), 'tensor')} of {those(modules)} are stored, but the variables "
        f'themselves were loaded. Pass ema="prefer" to load the averages, with which such models are usually '
        f'evaluated, or ema="ignore" to keep the variables'
    )
    return [SemanticFinding("averages_not_used", modules, message)]


def _weight_order(loads: Sequence[tuple[Target, Source]], unknown: Collection[str]) -> list[SemanticFinding]:
    found = [(target, source) for target, source in loads if target.name in unknown]
    if not found:
        return []
    modules = tuple(dict.fromkeys(target.places[0].parent[:-1] for target, _ in found))
    target, source = found[0]
    other = target.other_layout(target.shape or ())
    layout = quoted("same" if other is None else other.name)
    rule = f"mapper={{{quoted(short_key(source.key))}: ({quoted(target.name)}, {layout})}}"
    message = (
        f"{counted(len(found), 'tensor')} of {those(modules)} loaded with the axes as stored: the name is torch's, "
        f"and the shape fits either order. If a program of TensorFlow wrote the file, give the layout, as in {rule}"
    )
    return [SemanticFinding("weight_order", modules, message)]
