"""Slots are recognised by structure: all of them, whatever the optimizer was called, and no weight among them."""

import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.auxiliary.named_slots import NamedSlot, find_slots

LEAVES = ("kernel", "bias", "gamma", "beta", "moving_mean", "embeddings", "w", "b")
Shapes = dict[str, Shape]

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}[A-Za-z]", fullmatch=True)


@st.composite
def trees(draw: st.DrawFn) -> Shapes:
    """The variables of a model: layers in modules, some with a variable named like the layer itself."""
    shapes: Shapes = {}
    part = st.sampled_from("ab") | names  # few names, so that modules are nested and names are repeated
    paths = st.lists(part, min_size=1, max_size=3).map("/".join)
    modules = draw(st.lists(paths, min_size=1, max_size=4, unique=True))
    for module in modules:
        size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        shapes[f"{module}/kernel"] = size
        shapes[f"{module}/bias"] = size[1:]
        for leaf in draw(st.lists(st.sampled_from(LEAVES), max_size=2)):
            shapes.setdefault(f"{module}/{leaf}", draw(st.sampled_from([size, size[1:], (3, 3, *size)])))
        if draw(st.booleans()):
            shapes.setdefault(module, size)
    return shapes


@st.composite
def optimizers(draw: st.DrawFn, variables: Shapes) -> Shapes:
    """The slots of an optimizer with a random name, of most variables, maybe below a scope."""
    name, scope = draw(names), draw(st.sampled_from(["", "train/", "training_1/net_/"]))
    last_parts = {variable.rpartition("/")[2] for variable in variables}
    assume(name not in last_parts and name not in LEAVES and "_slot_" not in name and "average" not in name.lower())
    style = draw(st.sampled_from(["numbered", "lettered", "factored"]))
    slots: Shapes = {}
    for variable, shape in variables.items():
        if variable.endswith("moving_mean"):
            continue
        start = f"{scope}{variable}/{name}"
        if style == "factored" and len(shape) > 1:
            slots[f"{start}_vr"], slots[f"{start}_vc"] = shape[:-1], shape[:-2] + shape[-1:]
        elif style == "lettered" or style == "factored":
            slots[f"{start}_m"] = slots[f"{start}_v"] = shape
        else:
            number = draw(st.integers(1, 3))
            slots.update({start + (f"_{each}" if each else ""): shape for each in range(number)})
    return slots


@given(st.data())
def test_all_slots_and_no_variables(data: st.DataObject) -> None:
    """For a model with optimizers of random names. No name of an optimizer is one of the model's own names."""
    variables = data.draw(trees())
    slots: Shapes = {}
    for _ in range(data.draw(st.integers(0, 2))):
        slots |= data.draw(optimizers(variables))
    assume(not slots.keys() & variables.keys())
    everything = variables | slots
    found = find_slots(everything, everything)
    assert found.keys() == slots.keys()
    assert all(slot.variable in variables for slot in found.values())
    assert not [name for name, slot in found.items() if not slot.is_certain]


@given(trees())
def test_a_model_has_no_slots(variables: Shapes) -> None:
    """Also if a module is named like a variable, and has tensors of its shape."""
    assert find_slots(variables, variables) == {}


@pytest.mark.parametrize(
    "more",
    [
        {"a/b/kernel": (4, 4)},
        {"a/b/b": (4, 4)},
        {"a/b/scale": (4, 4)},
        {"a/b/c": (4, 4), "a/b/d": (4,)},  # something else is stored below a/b, too
        {"a/b/c": (4, 4), "a/b/d/e": (4, 4)},
        {"a/b/c": (4, 4), "x/c": (4, 4)},  # c is the name of a variable elsewhere
        {"a/b/g": (4,)},  # one of two axes, without the other
        {"a/b/g": (1,)},
        {"x/a/b/c": (4, 4)},  # only one equal shape, and a scope
        {"x/a/b/kernel": (4, 4), "x/a/b/bias": (4, 4)},
        {"a/b_slot_vector": (4, 4)},
        {"target/a/b": (4, 4), "target/a/bias": (4,)},  # a copy of the model
        {"a/bc": (4, 4), "a/b_1": (4, 4), "a/b/": (4, 4)},
    ],
)
def test_weights_with_names_like_slots(more: Shapes) -> None:
    """Tensors that follow the name of the variable a/b, and are weights."""
    shapes = {"a/b": (4, 4), "a/bias": (4,)} | more
    assert find_slots(shapes, shapes) == {}


@pytest.mark.parametrize(
    ("more", "is_certain"),
    [
        ({"a/b/c": (4, 5)}, False),
        ({"a/b/c": (4, 5), "a/b/d": (4, 5)}, False),
        ({"a/b/Lars": (4, 5)}, True),
        ({"a/b/c": (4, 5), "a/b/c_1": (4, 5)}, True),
        ({"a/b/c": (4, 5), "a/bias/c": (5,)}, True),
        ({"a/b/c_m": (4, 5), "a/b/c_v": (4, 5)}, True),
        ({"a/b/c_vr": (4,), "a/b/c_vc": (5,)}, True),
        ({"a/b/Adafactor": (4,), "a/b/Adafactor_1": (5,), "a/bias/Adafactor": (5,), "a/bias/Adafactor_1": (1,)}, True),
        ({"a/b_slot_v": (4, 5)}, True),
        ({"a/b_slot_vr": (5,), "a/b_slot_vc": (4,)}, True),
        ({"s/a/b/c": (4, 5), "s/a/bias/c": (5,)}, True),
        ({"a/b/part_0/Ftrl": (4, 5)}, True),  # TensorFlow's names of the slots of partitioned variables
        ({"a/b/t_0/Adagrad": (4, 5)}, True),
    ],
)
def test_slots(more: Shapes, is_certain: bool) -> None:
    """The smallest trees that show an optimizer."""
    shapes = {"a/b": (4, 5), "a/bias": (5,)} | more
    found = find_slots(shapes, shapes)
    assert found.keys() == more.keys()
    assert {slot.is_certain for slot in found.values()} == {is_certain}


def test_a_square_variable_has_rows_and_columns() -> None:
    """Both have the same shape; a single one is not enough."""
    shapes: Shapes = {"a": (4, 4), "a/Adafactor": (4,)}
    assert find_slots(shapes, shapes) == {}
    shapes["a/Adafactor_1"] = (4,)
    assert find_slots(shapes, shapes).keys() == {"a/Adafactor", "a/Adafactor_1"}


def test_counters_of_an_optimizer_make_it_certain() -> None:
    """Powers in a scope with the optimizer's name, or in the scope that precedes the variable."""
    shapes: Shapes = {"a/b": (4, 5), "a/b/opt": (4, 5), "train/a/b/x": (4, 5)}
    found = find_slots(shapes, shapes, scopes={"opt", "train"})
    assert found == {"a/b/opt": NamedSlot("a/b", "opt"), "train/a/b/x": NamedSlot("a/b", "x", "train")}


def test_the_scope_of_an_optimizer_of_keras() -> None:
    """Anything directly in it with the shape of a variable is a slot; what has another shape is not."""
    scope = "training/SGD"
    more: Shapes = {f"{scope}/moment_0": (4, 5), f"{scope}/m/a/b": (4, 5), f"{scope}/a/b/m": (4, 5)}
    others: Shapes = {f"{scope}/x": (7,), f"{scope}/kernel": (4, 5), f"{scope}/m/c": (7,)}
    shapes = {"a/b": (4, 5)} | more | others
    found = find_slots(shapes, shapes, keras_scopes={scope})
    assert found.keys() == more.keys() and found[f"{scope}/moment_0"].variable == ""


def test_many_names_take_little_time() -> None:
    """Time grows with the number of names, however many slots one variable has or scopes there are."""
    shapes: Shapes = {"a": (7, 8)}
    shapes |= {f"a/Opt_{number}": (7,) if number % 2 else (8,) for number in range(20_000)}
    shapes |= {f"s{number}/a/Opt": (7, 8) for number in range(20_000)}
    shapes |= {"/" * 500_000: (7, 8), "a/" * 250_000 + "b": (7, 8)}
    began = time.process_time()
    found = find_slots(shapes, shapes, keras_scopes={f"s{number}" for number in range(20_000)})
    assert len(found) == 40_000
    assert time.process_time() - began < 10  # it would be minutes
