"""The optimizers of a name-based checkpoint: the slots of each variable, counters and hyperparameters.

    fc/kernel/Adam, fc/kernel/Adam_1, beta1_power, beta2_power            (scope "", name "Adam")
    fc/kernel/d_opt, fc/kernel/d_opt_1, d_opt/beta1_power, ...            (scope "", name "d_opt")
    train/fc/kernel/adam_m, train/fc/kernel/adam_v, train/global_step     (scope "train", name "adam")
    training/Adam/fc/kernel/m, .../v, training/Adam/iter, .../lr          (scope "training/Adam", name "")
    adam/fc_kernel_momentum, adam/fc_kernel_velocity, adam/iteration      (scope "adam", name "")

The slots are those that `named_kinds` recognises; nothing else is searched. Powers of betas without a scope,
or in a scope that several optimizers may share, are used for an optimizer only if there is no other optimizer, or if
all stored powers of this beta are equal.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.auxiliary.averages import OUTPUT
from torch_tfckpt.models.auxiliary.named_kinds import POWERS, Kinds
from torch_tfckpt.models.auxiliary.named_slots import stem_of
from torch_tfckpt.optimizers.kinds import OptimizerKind
from torch_tfckpt.optimizers.slots import named_states, numbered_name
from torch_tfckpt.optimizers.stored_optimizer import GLOBAL_STEP, StoredOptimizer
from torch_tfckpt.text import listed, quoted

Owner = tuple[str, str]
"""Scope and name of a stored optimizer."""

_POWERS: Final = ("beta1_power", "beta2_power")
_KERAS_NAMES: Final[Mapping[str, Sequence[str]]] = {  # Keras 2's name -> other names
    "iter": ("iterations", "iteration"), "learning_rate": ("lr",), "beta_1": (), "beta_2": (), "momentum": (),
    "rho": (), "decay": (),
}  # fmt: skip
_IN_NO_SCOPE: Final = {"iter": ("iteration", "iterations"), "learning_rate": ("learning_rate",)}
_LISTED: Final = 4  # keys in a message


class NamedOptimizers:
    """The optimizers of one checkpoint.

    Args:
        found: The kinds of all variables of the checkpoint.
    """

    def __init__(self, reader: CheckpointReader, found: Kinds) -> None:
        self._reader = reader
        self._slots, self._keras_scopes = found.slots, found.keras_scopes
        self._names = {key.removesuffix(OUTPUT): key for key in reader.keys()}
        self._powers = [name for name in self._names if POWERS.fullmatch(name)]
        places = {name[: name.rfind("/") + 1] for name in self._powers}
        self._places_of_both = {place for place in places if all(place + power in self._names for power in _POWERS)}
        self._stems = {stem_of(slot.part) for slot in self._slots.values()}
        self._parts: dict[str, dict[str, dict[str, str]]] = {}  # variable -> scope -> last part of the name -> key
        for key, slot in self._slots.items():
            self._parts.setdefault(slot.variable, {}).setdefault(slot.scope, {})[slot.part] = key

    def states(self, kind: OptimizerKind, key: str) -> dict[Owner, dict[str, str]]:
        """Return the state of a variable, from each stored optimizer of a kind: torch's state name -> key."""
        found: dict[Owner, dict[str, str]] = {}
        for scope, parts in self._parts.get(key.removesuffix(OUTPUT), {}).items():
            if self._is_of_keras(scope):
                named = {state: part for part in parts if (state := kind.state_of_variable(part)) is not None}
                states = {"": named} if named else {}
            else:
                whole = [part for part, slot_key in parts.items() if self._slots[slot_key].is_whole]
                states = named_states(kind, whole, partial(self._has_powers, scope))
            for name, own in states.items():
                found[scope, name] = {state: parts[part] for state, part in own.items()}
        return found

    def slots_of(self, key: str) -> list[str]:
        """Return the keys of all slots of a variable, of any kind of optimizer."""
        return [each for parts in self._parts.get(key.removesuffix(OUTPUT), {}).values() for each in parts.values()]

    def misshapen(self, kind: OptimizerKind, key: str) -> Iterator[tuple[str, str]]:
        """Yield state name and key of each tensor that has a slot's name, but not the slot's shape or type."""
        bare = key.removesuffix(OUTPUT)
        for number, state in enumerate(kind.in_order):
            slot_key = f"{bare}/{numbered_name(kind.name, number)}{key[len(bare) :]}"
            if slot_key in self._reader and slot_key not in self._slots:
                yield state, slot_key

    def stored(self, kind: OptimizerKind, owner: Owner | None, is_lettered: bool = False) -> StoredOptimizer:
        """Return the counters and hyperparameters of a stored optimizer; if `owner` is None, only the global step.

        Args:
            is_lettered: Whether the names of its slots end in "_m" and "_v", as BERT's do.

        Raises:
            InvalidArgumentError: several optimizers have different numbers of steps, and it is unclear which number
                belongs to this one.
        """
        if owner is not None and self._is_of_keras(owner[0]):
            scope = owner[0]
            of_scope = (parts.get(scope, {}) for variable, parts in self._parts.items() if variable)
            slots = frozenset(kind.slot_of_variable(part) for parts in of_scope for part in parts)
            called = scope.rpartition("/")[2]
            return StoredOptimizer(self._reader, quoted(scope), self._keras_numbers(scope), slots, called)
        keys = self._global_step()
        if owner is not None and kind.betas:
            for power in _POWERS[: kind.betas]:
                key = self._power(power, owner, is_needed=not keys)
                keys |= {} if key is None else {power: key}
        called = "" if owner is None else owner[1]
        return StoredOptimizer(self._reader, "the optimizer", keys, called=called, corrects_bias=not is_lettered)

    def _is_of_keras(self, scope: str) -> bool:
        return scope in self._keras_scopes or f"{scope}/iter" in self._names or f"{scope}/iterations" in self._names

    def _has_powers(self, scope: str, stem: str) -> bool:
        """Return whether both powers of Adam belong to the optimizer called `stem`."""
        is_only_one = len(self._stems) == 1 and bool(self._places_of_both)
        return is_only_one or not self._places_of_both.isdisjoint(_own_places(scope, stem))

    def _global_step(self) -> dict[str, str]:
        if GLOBAL_STEP in self._names:
            return {GLOBAL_STEP: self._names[GLOBAL_STEP]}
        scoped = [name for name in self._names if name.endswith(f"/{GLOBAL_STEP}")]
        return {GLOBAL_STEP: self._names[scoped[0]]} if len(scoped) == 1 else {}

    def _power(self, power: str, owner: Owner, *, is_needed: bool) -> str | None:
        """Return the key of an optimizer's power of a beta; None if it is not stored or not known."""
        for place in _own_places(*owner):
            if place + power in self._names:
                return self._names[place + power]
        every = [name for name in self._powers if name[name.rfind("/") + 1 :].startswith(power)]
        if len({str(self._reader.get_tensor(self._names[name])) for name in every}) == 1:
            return self._names[every[0]]
        if every and is_needed:
            raise InvalidArgumentError(
                f"{self._reader.path}: {listed(every, _LISTED)} differ, and it is unclear which of them belongs to the "
                f"optimizer of these parameters, so its number of steps is unknown. Omit optimizer, or exclude the "
                f"powers of the other optimizer, as in `tfckpt convert SRC DST --exclude '_power_1$'`"
            )
        return None

    def _keras_numbers(self, scope: str) -> dict[str, str]:
        """Return the counter and the hyperparameters of an optimizer of Keras, by Keras 2's names."""
        found = {}
        for name, others in _KERAS_NAMES.items():
            places = [f"{scope}/{each}" for each in (name, *others)]
            # Since Keras 2.11, the counter and the learning rate have no scope.
            places += _IN_NO_SCOPE.get(name, ()) if len(self._keras_scopes) == 1 else ()
            place = next((place for place in places if place in self._names), None)
            if place is not None:
                found[name] = self._names[place]
        return found


def _own_places(scope: str, stem: str) -> list[str]:
    """Return the prefixes under which powers of betas belong to this optimizer alone."""
    return list(dict.fromkeys([f"{scope}/{stem}/" if scope else f"{stem}/", f"{stem}/"]))
