"""What torch's optimizers compute differently from TensorFlow's, given the same state.

    rmsprop_epsilon           TensorFlow adds it inside the square root
    adam_bias_correction      Adam without bias correction (BERT): the step is set so that torch's correction is 1
    optimizer_options         the stored slots show amsgrad or centered, which this optimizer does not use
    optimizer_kind            the stored optimizer has slots like Adam's, but the name of one that torch lacks (LAMB)
    momentum_learning_rate    the learning rate that the momentum contains is not stored

Adam's epsilon has the same effect in both after a few thousand steps; the difference in earlier steps is only a remark.
The epsilons of Adagrad and Adamax have no effect in practice; Adadelta is the same in both.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from torch_tfckpt.optimizers.kinds import (
    ADAM,
    LR_IN_MOMENTUM,
    MAXIMA,
    RMSPROP,
    OptimizerKind,
    kind_called,
)
from torch_tfckpt.optimizers.stored_optimizer import StoredOptimizer
from torch_tfckpt.text import quoted

RATE_NOT_STORED: Final = "momentum_learning_rate"
_SMALL: Final = 0.01  # relative change of Adam's epsilon that is not reported


class OptimizerDifference(NamedTuple):
    """Something that torch's optimizer computes differently from TensorFlow's, or that is not stored."""

    name: str  # for load_model(accept=...); "" if it is only a remark
    message: str


def differences(
    kind: OptimizerKind,
    stored: StoredOptimizer,
    groups: Sequence[Mapping[str, Any]],
    step: float | None,
    states: Collection[str],
) -> Iterator[OptimizerDifference]:
    """Yield the differences for an optimizer whose state is loaded.

    Args:
        groups: The options of the groups, with the stored hyperparameters.
        step: The number of steps of the new state.
        states: torch's names of the stored state.
    """
    if kind is RMSPROP and not all(LR_IN_MOMENTUM in group for group in groups):
        yield OptimizerDifference("rmsprop_epsilon", _of_rmsprop(groups))
    if kind is ADAM and stored.corrects_bias and step is not None:
        yield from _of_adam(groups, step)
    if not stored.corrects_bias:
        message = (
            f"the stored moments are from Adam without bias correction, like BERT's. The optimizer's step was set to "
            f"{step:.0f}, so that torch does not correct the bias either"
        )
        yield OptimizerDifference("adam_bias_correction", message)
    for state, option in ((MAXIMA, "amsgrad"), ("grad_avg", "centered")):
        if state in states and not any(group.get(option) for group in groups):
            message = f"TensorFlow's optimizer used {option}, but this optimizer does not. Create it with {option}=True"
            yield OptimizerDifference("optimizer_options", message)
    called = kind_called(stored.called)
    if called is not None and called[1] is None:
        message = (
            f"the stored optimizer is called {quoted(stored.called)}, which torch does not have. Its state was loaded, "
            f"but torch's {kind.name or 'NAdam'} updates the parameters in a different way"
        )
        yield OptimizerDifference("optimizer_kind", message)


def _of_rmsprop(groups: Sequence[Mapping[str, Any]]) -> str:
    shown = ", ".join(dict.fromkeys(f"{float(group['eps']):g}" for group in groups))
    return (
        f"TensorFlow's RMSprop divides by sqrt(average + epsilon), torch's by sqrt(average) + eps (eps={shown}). Where "
        f"the average of the squared gradients is not much larger than epsilon, the steps differ. To continue exactly, "
        f"use an optimizer that adds epsilon inside the root, such as timm's RMSpropTF"
    )


def _of_adam(groups: Sequence[Mapping[str, Any]], step: float) -> Iterator[OptimizerDifference]:
    """Yield the difference in the first steps, in which TensorFlow's epsilon equals a larger eps in torch."""
    for group in groups:
        correction = math.sqrt(1.0 - float(group["betas"][1]) ** (step + 1.0))
        if 0.0 < correction < 1.0 - _SMALL:
            message = (
                f"TensorFlow adds Adam's epsilon before it corrects the bias, torch afterwards: at step "
                f"{step + 1:.0f}, TensorFlow's epsilon equals eps={1 / correction:.3g} x epsilon in torch. The "
                f"difference vanishes in later steps, and matters only for gradients not much larger than epsilon"
            )
            yield OptimizerDifference("", message)
            return
