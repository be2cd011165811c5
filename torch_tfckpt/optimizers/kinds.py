"""The kinds of optimizers that TensorFlow and torch both have, and the names of their state in each.

    torch                        state            TensorFlow 1   Keras 2      lists of Keras 3
    Adam, AdamW, NAdam           exp_avg          v/Adam         m            _momentums
                                 exp_avg_sq       v/Adam_1       v            _velocities
    Adam, AdamW with amsgrad     max_exp_avg_sq   v/vhat         vhat         _velocity_hats
    SGD                          momentum_buffer  v/Momentum     momentum     momentums
    RMSprop                      square_avg       v/RMSProp      rms          _velocities
                                 grad_avg         v/RMSProp_1    mg           _average_gradients   if centered
                                 momentum_buffer  the last slot  momentum     _momentums
    Adagrad                      sum              v/Adagrad      accumulator  _accumulators
    Adadelta                     square_avg       v/Adadelta     accum_grad   _accumulated_grads
                                 acc_delta        v/Adadelta_1   accum_var    _accumulated_delta_vars
    Adamax                       exp_avg          v/AdaMax       m            _m
                                 exp_inf          v/AdaMax_1     v            _u

Contract:

    which kind    an optimizer has the kind of its base class in torch.optim; without such a base class, it is an
                  RMSprop if its momentum contains the learning rate, as in timm's RMSpropTF
    which state   a tensor that only an option uses, such as the momentum of SGD, is required only with this option
    names         in Keras 2.11 and later, the variables have different names, which are the same for Adam and RMSprop

Source: get_slot_names of tensorflow/python/training/*.py; keras/src/optimizers/*.py; in tf_keras, optimizers/*.py.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

STEP: Final = "step"  # in the state of most optimizers; looks like a slot if the parameter is a scalar
MAXIMA: Final = "max_exp_avg_sq"  # of Adam with amsgrad
MOMENTUM: Final = "momentum_buffer"
ADAMS: Final = (torch.optim.Adam, torch.optim.AdamW)
LR_IN_MOMENTUM: Final = "lr_in_momentum"  # group option of timm's RMSpropTF


@dataclass(frozen=True, slots=True)
class OptimizerKind:
    """A kind of optimizer.

    Attributes:
        name: TensorFlow's name for it, and for its first slot in TensorFlow 1; "" if TensorFlow 1 lacks it.
        slots: torch's name of a state tensor -> its names in object graphs, Keras 2's first.
        later: torch's name of a state tensor -> the names that Keras 2.11 and later give to the variables.
        options: torch's name of a state tensor -> the torch option that requires it; "" if it is never required.
        in_order: The state tensors in the order of TensorFlow 1's slots; each is required by TensorFlow 1.
        betas: Number of betas whose powers TensorFlow 1 stores.
        called: Further names that TensorFlow's programs give to this kind, in lower case.
        counts: Whether torch's state has a number of steps.
        needs_steps: Whether the next step depends on that number.
    """

    name: str
    slots: Mapping[str, tuple[str, ...]]
    later: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    in_order: tuple[str, ...] = ()
    betas: int = 0
    called: frozenset[str] = frozenset()
    counts: bool = True
    needs_steps: bool = False

    def required(self, group: Mapping[str, Any]) -> set[str]:
        """Return the state tensors without which the next step of a group's parameters would fail."""
        return {state for state in self.slots if state not in self.options or group.get(self.options[state])}

    def state_of(self, slot: str) -> str | None:
        """Return the state tensor for a slot of an object graph; None if the kind has no such slot."""
        return next((state for state, names in self.slots.items() if slot in names), None)

    def state_of_variable(self, slot: str) -> str | None:
        """Return the state tensor for the slot whose Keras variable has this name, or None."""
        return next((state for state, names in self.later.items() if slot in names), None)

    def slot_of_variable(self, slot: str) -> str:
        """Return the name that object graphs use for the slot whose variable has this name in Keras."""
        state = self.state_of_variable(slot)
        return slot if state is None else self.slots.get(state, (slot,))[0]

    def is_called(self, name: str) -> bool:
        """Return whether this is TensorFlow 1's name for the kind, such as "Momentum" or "MomentumOptimizer"."""
        return bool(self.name) and _plain(name) == self.name.lower()

    def numbered(self, count: int) -> tuple[str, ...]:
        """Return the state tensors in the order of the slots, for a variable that has `count` slots."""
        centered = ("square_avg", "grad_avg", MOMENTUM)
        return centered if self is RMSPROP and count % 2 and count % 3 == 0 else self.in_order


_ADAM_SLOTS: Final[Mapping[str, tuple[str, ...]]] = {"exp_avg": ("m",), "exp_avg_sq": ("v",)}
_ADAM_LATER: Final = {"exp_avg": ("m", "momentum"), "exp_avg_sq": ("v", "velocity"), MAXIMA: ("vhat", "velocity_hat")}
ADAM: Final = OptimizerKind(
    "Adam",
    {**_ADAM_SLOTS, MAXIMA: ("vhat",)},
    _ADAM_LATER,
    {MAXIMA: ""},  # without stored maxima, zeros are the right initial values
    ("exp_avg", "exp_avg_sq"),
    betas=2,
    called=frozenset(("adamw", "adamweightdecay", "lazyadam")),
    needs_steps=True,
)
SGD: Final = OptimizerKind(
    "Momentum",
    {MOMENTUM: ("momentum",)},
    {MOMENTUM: ("momentum", "m")},
    {MOMENTUM: "momentum"},
    (MOMENTUM,),
    called=frozenset(("sgd", "momentumw", "gradientdescent")),
    counts=False,
)
RMSPROP: Final = OptimizerKind(
    "RMSProp",
    {"square_avg": ("rms",), "grad_avg": ("mg",), MOMENTUM: ("momentum",)},
    {"square_avg": ("rms", "velocity"), "grad_avg": ("mg", "average_gradient"), MOMENTUM: ("momentum",)},
    {"grad_avg": "centered", MOMENTUM: "momentum"},
    ("square_avg", MOMENTUM),
)
ADAGRAD: Final = OptimizerKind("Adagrad", {"sum": ("accumulator",)}, {"sum": ("accumulator",)}, in_order=("sum",))
ADADELTA: Final = OptimizerKind(
    "Adadelta",
    {"square_avg": ("accum_grad", "accum"), "acc_delta": ("accum_var", "accum_update")},
    {"square_avg": ("accum_grad", "accumulated_grad"), "acc_delta": ("accum_var", "accumulated_delta_var")},
    in_order=("square_avg", "acc_delta"),
)
ADAMAX: Final = OptimizerKind(
    "AdaMax",
    {"exp_avg": ("m",), "exp_inf": ("u", "v")},
    {"exp_avg": ("m", "momentum"), "exp_inf": ("u", "v", "norm")},
    in_order=("exp_avg", "exp_inf"),
    betas=1,
    needs_steps=True,
)
NADAM: Final = OptimizerKind("", _ADAM_SLOTS, _ADAM_LATER, called=frozenset(("nadam",)), needs_steps=True)

_KINDS: Final[Mapping[type, OptimizerKind]] = {
    torch.optim.Adam: ADAM,
    torch.optim.AdamW: ADAM,
    torch.optim.SGD: SGD,
    torch.optim.RMSprop: RMSPROP,
    torch.optim.Adagrad: ADAGRAD,
    torch.optim.Adadelta: ADADELTA,
    torch.optim.Adamax: ADAMAX,
    torch.optim.NAdam: NADAM,
}
TORCH_CLASSES: Final = tuple(_KINDS)
CONVERTED: Final = tuple(each.__name__ for each in TORCH_CLASSES)
# An optimizer is of the kind listed with the first of these slots that it has.
_TELLING: Final = (
    ("linear", "Ftrl"), ("r", "Adafactor"), ("rms", "RMSprop"), ("accum_grad", "Adadelta"), ("accum", "Adadelta"),
    ("u", "Adamax"), ("v", "Adam"), ("accumulator", "Adagrad"), ("momentum", "SGD"),
)  # fmt: skip
_OTHER_NAMES: Final = frozenset((
    "ftrl", "adafactor", "lamb", "lars", "lion", "yogi", "radam", "novograd", "muon", "shampoo", "adabelief",
))  # fmt: skip


def kind_of(optimizer: torch.optim.Optimizer) -> OptimizerKind | None:
    """Return the kind of a torch optimizer; None if TensorFlow has no such optimizer."""
    found = next((_KINDS[each] for each in type(optimizer).__mro__ if each in _KINDS), None)
    return RMSPROP if found is None and LR_IN_MOMENTUM in optimizer.defaults else found


def kind_called(name: str) -> tuple[str, OptimizerKind | None] | None:
    """Return an optimizer's usual name, and its kind if torch has it; None if the name is unknown.

    The name may have a scope, a number, and "Optimizer" at the end, as in "training/AdamOptimizer_1".
    """
    plain = _plain(name)
    for kind in _KINDS.values():
        if kind.is_called(plain) or plain in kind.called:
            return (kind.name if kind.is_called(plain) else plain), kind
    return (plain, None) if plain in _OTHER_NAMES else None


def is_default_name(name: str) -> bool:
    """Return whether TensorFlow 1 gives this name to slots of one kind only, unless a program chooses another name."""
    return _plain(name) == "ftrl" or any(kind.is_called(name) for kind in _KINDS.values())


def likely_kind(slots: Collection[str]) -> str:
    """Return the name of the kind of optimizer that usually has slots of these names; "" if it is unknown."""
    return next((kind for slot, kind in _TELLING if slot in slots), "")


def _plain(name: str) -> str:
    """Return a name without its scope, its number and "Optimizer", in lower case without underscores."""
    last = name.rpartition("/")[2]
    return re.sub(r"_?\d+\Z", "", last).replace("_", "").lower().removesuffix("optimizer")
