"""Settings of norms that weights do not show: epsilon, momentum, and which variance is averaged.

BatchNorm, LayerNorm and so on are recognised by their classes; norms of other classes by their structure: a setting of
epsilon, and no tensors but vectors.
"""

from collections.abc import Sequence
from typing import Final

from torch import nn
from torch.nn.parameter import is_lazy

from torch_tfckpt.models.findings.tensorflow_parts import TensorFlowPart, findings_on
from torch_tfckpt.saveables.load_report import SemanticFinding

_TORCH_EPSILON: Final = 1e-5  # the default of all norms but RMSNorm, whose default is the epsilon of the dtype
EPSILONS: Final = ("eps", "epsilon", "variance_epsilon")  # names of the attribute, in torch and elsewhere
# Names of a norm's variables in Sonnet 2 and GPT-2, where the epsilon is 1e-5, too.
_SAME_EPSILON: Final = {"scale", "offset", "g", "b"}
_TORCH_MOMENTUM: Final = 0.1
_LIKELY_DECAY: Final = 0.5  # a momentum above this is probably a decay

_OF_EPSILON: Final = {
    "batch_norm_epsilon": (
        "eps=1e-05, torch's default, in {those}; the default of TensorFlow, Keras and slim is 1e-3. Set eps=1e-3, "
        "unless the model was built with another value"
    ),
    "layer_norm_epsilon": (
        "eps=1e-05, torch's default, in {those}; Keras's default is 1e-3, and BERT uses 1e-12. Set eps to the value "
        "that the model was built with"
    ),
    "group_norm_epsilon": (
        "eps=1e-05, torch's default, in {those}; Keras's default is 1e-3, and that of TensorFlow 1's instance_norm "
        "1e-6. Set eps to the value that the model was built with"
    ),
    "rms_norm_epsilon": (
        "eps=None, torch's default, in {those} is 1.2e-7 for float32; Keras's default is 1e-6, as in T5. Set eps to "
        "the value that the model was built with"
    ),
}


def norm_findings(parts: Sequence[TensorFlowPart], *, trains: bool) -> list[SemanticFinding]:
    """Return the findings on norms. `trains`: include settings that matter only if training goes on."""
    suspicious: dict[str, list[TensorFlowPart]] = {}
    for part in parts:
        kind = kind_of_norm(part)
        if kind and _has_default_epsilon(part, kind):
            suspicious.setdefault(kind, []).append(part)
    found = [each for kind, those in suspicious.items() for each in findings_on(kind, those, _OF_EPSILON[kind])]
    averaging = [
        (part, getattr(part.module, "momentum", None)) for part in parts if kind_of_norm(part) == "batch_norm_epsilon"
    ]
    momenta = [(part, momentum) for part, momentum in averaging if isinstance(momentum, float)]
    found += _decays([(part, momentum) for part, momentum in momenta if momentum > _LIKELY_DECAY])
    if trains:
        found += findings_on(
            "batch_norm_momentum",
            [part for part, momentum in momenta if momentum == _TORCH_MOMENTUM],
            "momentum=0.1, torch's default, in {those} is a decay of 0.9; the default of TensorFlow and Keras is 0.99, "
            "that of slim 0.999. Set momentum to 1 - decay: 0.01 for Keras's default",
        )
        found += findings_on(
            "running_var",
            [part for part, _ in momenta],
            "as training goes on, torch averages the unbiased variances of batches in {those}, as TensorFlow's fused "
            "kernel does; Keras 3 averages the biased ones, smaller by (n - 1) / n for n values per channel. No "
            "argument changes that. It matters for small batches only",
        )
    return found


def _decays(wrong: Sequence[tuple[TensorFlowPart, float]]) -> list[SemanticFinding]:
    if not wrong:
        return []
    momentum = wrong[0][1]
    return findings_on(
        "batch_norm_momentum",
        [part for part, _ in wrong],
        f"momentum={momentum:g} in {{those}} is a decay, as TensorFlow writes it; torch's momentum is 1 - decay. Set "
        f"momentum={1 - momentum:.6g}. It matters as soon as the model is trained",
    )


def kind_of_norm(part: TensorFlowPart) -> str:
    """Return the name of the finding on the epsilon of a norm; "" for modules that are not norms."""
    module = part.module
    if isinstance(module, nn.GroupNorm | nn.modules.instancenorm._InstanceNorm):
        return "group_norm_epsilon"
    if "running_var" in module._buffers:
        return "batch_norm_epsilon"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return "layer_norm_epsilon" if isinstance(module, nn.LayerNorm) else "rms_norm_epsilon"
    own = [each for each in module._parameters.values() if each is not None]
    if not part.sources or module._modules or not own or any(is_lazy(each) or each.dim() != 1 for each in own):
        return ""
    return "rms_norm_epsilon" if len(own) == 1 else "layer_norm_epsilon"


def _has_default_epsilon(part: TensorFlowPart, kind: str) -> bool:
    """Return whether a norm has torch's epsilon, which is not the default of the program that stored its values."""
    name = next((name for name in EPSILONS if hasattr(part.module, name)), None)
    if name is None:
        return False
    epsilon = getattr(part.module, name)
    if kind == "rms_norm_epsilon":
        return epsilon is None
    is_default = isinstance(epsilon, float) and epsilon == _TORCH_EPSILON
    return is_default and part.stored_names.isdisjoint(_SAME_EPSILON)
