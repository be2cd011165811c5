"""Find the slots of TensorFlow's optimizers: in an object graph, or by the last parts of their names.

In a name-based checkpoint, "Adam" is the name of the optimizer, which a program may change. `named_states` recognises
Adam under other names by its powers (d_opt, d_opt_1 and d_opt/beta1_power) or by the letters of its slots (adam_m,
adam_v). Slots of the other kinds are recognised only under the names that TensorFlow gives them: a single slot under a
different name may be Momentum's, Adagrad's or LARS's, and two may be Adadelta's or RMSProp's. The checkpoint does not
store which, so they are not converted.

`kinds` lists the names of slots. `slot_names` returns the names that Checkpoint writes.

Source: get_slot_names of tensorflow/python/training/*.py; keras/src/optimizers/*.py.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, NamedTuple

import torch

from torch_tfckpt.format.object_graph import ObjectGraph, SlotVariable, TrackableObject
from torch_tfckpt.optimizers.kinds import ADAM, MAXIMA, OptimizerKind, kind_called


class SlotName(NamedTuple):
    """TensorFlow's name for a tensor of an optimizer's state."""

    slot: str  # its name in the object graph
    suffix: str  # last part of the slot variable's name, which follows the name of the variable


_ADAM: Final = {
    "exp_avg": SlotName("m", "Adam"),
    "exp_avg_sq": SlotName("v", "Adam_1"),
    MAXIMA: SlotName("vhat", "vhat"),
}
_SLOTS: Final[Mapping[type, Mapping[str, SlotName]]] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.Adagrad: {"sum": SlotName("accumulator", "Adagrad")},
    torch.optim.SGD: {"momentum_buffer": SlotName("momentum", "Momentum")},
}

# Names of children that identify an optimizer: Keras 2, Keras 2.11 and later (two sets), loss scaling in Keras 2 and 3.
_OF_OPTIMIZERS: Final = (
    {"iter", "learning_rate"},
    {"_iterations", "_learning_rate"},
    {"_iterations", "_trainable_variables"},  # with a learning rate schedule, which is not stored
    {"base_optimizer", "loss_scale"},
    {"inner_optimizer", "dynamic_scale"},
)
# Keras 3 has no slot variables. It keeps lists that are parallel to its list of trainable variables.
_TRAINED: Final = "_trainable_variables"
_LISTS: Final = {
    "_momentums": "m", "_velocities": "v", "_velocity_hats": "vhat", "momentums": "momentum",
    "_accumulators": "accumulator", "_linears": "linear", "_m": "m", "_u": "u", "_r": "r", "_c": "c", "_v": "v",
    "_accumulated_grads": "accum_grad", "_accumulated_delta_vars": "accum_var",
}  # fmt: skip
_LISTS_OF_RMSPROP: Final = {"_velocities": "rms", "_momentums": "momentum", "_average_gradients": "mg"}
_NUMBER: Final = re.compile(r"(.+)_(0|[1-9][0-9]{0,8})", re.DOTALL)
_LONGEST_BEGINNING: Final = 16  # scopes that may precede a variable's full name in its slot's full name
# Keras 3's name -> Keras 2's, if it has one.
_NUMBERS: Final = {"_iterations": "iter", "_learning_rate": "learning_rate", "_u_product": "u_product"}


def slot_names(optimizer: torch.optim.Optimizer) -> Mapping[str, SlotName]:
    """Return the slots that Checkpoint writes under TensorFlow's names: torch's state name -> these names.

    Empty for optimizers whose state has different units in TensorFlow.
    """
    return next((_SLOTS[kind] for kind in type(optimizer).__mro__ if kind in _SLOTS), {})


def slot_variables(graph: ObjectGraph, optimizer: int) -> tuple[SlotVariable, ...]:
    """Return the slot variables of an optimizer's node; for Keras 3, with their Keras 2 names."""
    return graph.nodes[optimizer].slot_variables or tuple(_listed_slots(graph, optimizer))


def stem_and_number(part: str) -> tuple[str, int]:
    """Return the name of an optimizer, and the number of its slot: ("Adam", 0) for "Adam", ("Adam", 1) for "Adam_1"."""
    numbered = _NUMBER.fullmatch(part) if part[-1:].isdigit() else None
    return (part, 0) if numbered is None else (numbered[1], int(numbered[2]))


def numbered_name(stem: str, number: int) -> str:
    """Return the last part of the name of a slot: the inverse of `stem_and_number`."""
    return f"{stem}_{number}" if number else stem


def named_states(
    kind: OptimizerKind, parts: Collection[str], has_powers: Callable[[str], bool]
) -> dict[str, dict[str, str]]:
    """Return the stored optimizers that may be of a kind: name -> torch's state name -> part.

    Args:
        parts: Last parts of the names of the slots of one variable; the slots have its shape.
        has_powers: Whether the stored optimizer of this name has the powers of both betas, as only Adams do.
    """
    stems: dict[str, dict[int, str]] = {}
    for part in parts:
        stem, number = stem_and_number(part)
        stems.setdefault(stem, {})[number] = part
    found: dict[str, dict[str, str]] = {}
    for stem, numbered in stems.items() if kind.in_order else ():
        called = kind_called(stem)
        if called is None or called[1] is None:
            is_kind = kind.betas == 2 and len(numbered) > 1 and has_powers(stem)
        else:
            is_kind = kind.is_called(stem)
        if not is_kind:
            continue
        # If several optimizers with the same name train a variable, their slots are numbered consecutively.
        in_order = kind.numbered(len(numbered))
        for first in sorted({number - number % len(in_order) for number in numbered}):
            name = numbered_name(stem, first)
            found[name] = {state: numbered[n] for n, state in enumerate(in_order, first) if n in numbered}
    if kind is ADAM:
        found.update(_lettered(parts))
        for states in found.values() if "vhat" in parts else ():
            states[MAXIMA] = "vhat"
    return found


def is_lettered(part: str) -> bool:
    """Return whether a slot is named by a family and a letter, such as "adam_m" of BERT's optimizer.

    These optimizers do not correct the bias of the moments. TensorFlow's own Adam has no such slots. Only parts
    that `named_states` returns are meaningful here.
    """
    return part.endswith(("_m", "_v"))


def _lettered(parts: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield Adams whose slots are named by letters: "adam_m" and "adam_v" of BERT, "lamb_m" and "lamb_v"."""
    for part in parts:
        family, letter = part[:-1], part[-1:]
        if letter == "m" and f"{family}v" in parts and (not family or family.endswith("_")) and family != "slot_":
            yield family.removesuffix("_"), {"exp_avg": part, "exp_avg_sq": f"{family}v"}


def is_optimizer(node: TrackableObject) -> bool:
    """Return whether an object has slot variables, or the children of a Keras optimizer."""
    children = {child.local_name for child in node.children}
    return bool(node.slot_variables) or any(known <= children for known in _OF_OPTIMIZERS)


def listed_originals(graph: ObjectGraph, optimizer: int, list_name: str) -> list[tuple[int, int | None]]:
    """Return each entry of an optimizer's list with the variable that it belongs to, or None if unknown.

    Keras 3 also stores the list of the trainable variables, in the same order. Keras 2.11 to 2.15 do not, but the
    full name of an entry is the full name of its variable after a prefix that all entries share:
    "Adam/m/dense/kernel".
    """
    lists = _children(graph, optimizer)
    entries = _children(graph, lists[list_name]) if list_name in lists else {}
    if _TRAINED in lists:
        trained = _children(graph, lists[_TRAINED])
        return [(node_id, trained.get(position)) for position, node_id in entries.items()]
    return list(_by_full_names(graph, set(entries.values())).items())


def _by_full_names(graph: ObjectGraph, entries: Collection[int]) -> dict[int, int | None]:
    found: dict[int, int | None] = {}
    beginnings = set()
    for entry in entries:
        full_name = next((value.full_name for value in graph.nodes[entry].attributes), "")
        originals: tuple[int, ...] = ()
        rest = full_name
        for _ in range(_LONGEST_BEGINNING):
            rest = rest.partition("/")[2]
            originals = graph.named(rest) if rest else ()
            if originals:
                break
        if len(originals) != 1:
            return dict.fromkeys(entries)
        beginnings.add(full_name[: len(full_name) - len(rest)])
        found[entry] = originals[0]
    # If the prefixes differ, an entry may belong to a variable that is not stored, but whose name ends with the name of
    # a stored variable.
    is_known = len(beginnings) == 1 and len(set(found.values())) == len(found)
    return found if is_known else dict.fromkeys(entries)


def _children(graph: ObjectGraph, node_id: int) -> dict[str, int]:
    return {child.local_name: child.node_id for child in graph.nodes[node_id].children}


def _listed_slots(graph: ObjectGraph, optimizer: int) -> Iterator[SlotVariable]:
    lists = _children(graph, optimizer)
    for name, slot in (_LISTS_OF_RMSPROP if "_average_gradients" in lists else _LISTS).items():
        for entry, original in listed_originals(graph, optimizer, name):
            if original is not None:
                yield SlotVariable(original, slot, entry)


def number_nodes(graph: ObjectGraph, optimizer: int) -> dict[str, int]:
    """Return the children of an optimizer's node by name; for Keras 3, only numbers, under Keras 2 names."""
    children = _children(graph, optimizer)
    if _TRAINED in children or {"_iterations", "_learning_rate"} <= children.keys():
        return {_NUMBERS[name]: node_id for name, node_id in children.items() if name in _NUMBERS}
    return children
