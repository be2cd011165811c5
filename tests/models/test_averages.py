"""Moving averages: which tensor is the average of which variable is read from names and graphs, and never guessed."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from model_files import Small, save_objects, small_in_tensorflow
from torch import nn
from torch.optim.swa_utils import AveragedModel

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, VARIABLE_VALUE, ObjectGraph, ObjectReference
from torch_tfckpt.format.object_graph import SerializedTensor as Attribute
from torch_tfckpt.format.object_graph import TrackableObject as Node
from torch_tfckpt.models.auxiliary.averages import StoredAverages, count_of_updates, stored_averages
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.auxiliary.recognition import kinds
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.values import WritableValue

EMA = "/ExponentialMovingAverage"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def averages_of(path: str | Path) -> StoredAverages:
    with tfckpt.load_checkpoint(path) as reader:
        found = stored_averages(reader)
        averages = {key for key, kind in kinds(reader).of.items() if kind is VariableKind.AVERAGE}
    assert averages == found.keys
    return found


@pytest.mark.parametrize(
    ("shapes", "of", "unknown"),
    [
        ({f"v{EMA}": (2,)}, {"v": f"v{EMA}"}, []),
        ({f"s/v{EMA}": (2,)}, {"v": f"s/v{EMA}"}, []),
        ({f"s/v{EMA}": (3,)}, {"s/v": f"s/v{EMA}"}, []),  # of another variable, which is not stored
        ({f"gone{EMA}": (3,)}, {"gone": f"gone{EMA}"}, []),
        ({f"v{EMA}": (3,)}, {}, [f"v{EMA}"]),  # another shape
        ({f"v{EMA}": (2,), f"s/v{EMA}": (2,), "v/ema": (2,)}, {"v": f"v{EMA}"}, []),
        ({f"s/v{EMA}": (2,), f"t/v{EMA}": (2,)}, {}, [f"s/v{EMA}", f"t/v{EMA}"]),
        ({"v/ema": (2,)}, {"v": "v/ema"}, []),
        ({"v/params_ema": (2,)}, {"v": "v/params_ema"}, []),
        ({"v/moving_average": (2,)}, {"v": "v/moving_average"}, []),
        ({f"v{EMA}_1": (2,)}, {"v": f"v{EMA}_1"}, []),
        ({"v/ema": (2,), "v/average": (2,)}, {}, ["v/average", "v/ema"]),
        ({"v/ema": (3,), "gone/ema": (2,), "v/schema": (2,), "ema": (2,)}, {}, []),
    ],
)
def test_by_names(tmp_path: Path, shapes: dict[str, tuple[int, ...]], of: dict[str, str], unknown: list[str]) -> None:
    """The default name is preferred, then the one without a scope; two of the same rank are not known."""
    path = tfckpt.save_file(
        {"v": torch.zeros(2)} | {n: torch.zeros(shape) for n, shape in shapes.items()}, tmp_path / "m"
    )
    found = averages_of(path)
    assert (found.of, sorted(found.unknown)) == (of, unknown)


def graph_of_keras(
    path: Path, names: list[str], *, trained: list[str] | None = None, full_names: list[str] | None = None
) -> str:
    """A model with the variables a and b of two elements, and an optimizer with averages.

    Args:
        names: Names of the averages in the optimizer's list.
        trained: Variables in the optimizer's list of variables; None: it stores no such list.
        full_names: Full names of the averages.
    """

    def references(items: Mapping[str, int]) -> tuple[ObjectReference, ...]:
        return tuple(ObjectReference(node_id, name) for name, node_id in items.items())

    def variable(name: str, full_name: str) -> Node:
        return Node((), (Attribute(VARIABLE_VALUE, full_name, name + SUFFIX),))

    lists = {"_iterations": 4, "_learning_rate": 5, "_model_variables_moving_average": 6}
    nodes = [
        Node(references({"model": 1, "optimizer": 2})),
        Node(references({"a": 8, "b": 9})),
        Node(references(lists | ({} if trained is None else {"_trainable_variables": 7}))),
        Node(),
        variable("iterations", "iteration"),
        variable("rate", "learning_rate"),
        Node(references({name: 10 + number for number, name in enumerate(names)})),
        Node(references({str(number): {"a": 8, "b": 9}[name] for number, name in enumerate(trained or [])})),
        variable("a", "net/a"),
        variable("b", "net/b"),
        *(variable(f"e{number}", (full_names or names)[number]) for number in range(len(names))),
    ]
    values: dict[str, WritableValue] = {f"{name}{SUFFIX}": torch.zeros(2) for name in "ab"}
    values |= {f"e{number}{SUFFIX}": torch.full((2,), number + 1.0) for number in range(len(names))}
    values |= {f"iterations{SUFFIX}": torch.tensor(7), f"rate{SUFFIX}": torch.tensor(0.1)}
    return tfckpt.save_file(values | {OBJECT_GRAPH_KEY: ObjectGraph(tuple(nodes)).encode()}, path)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((2,), 9.0))
        self.b = nn.Parameter(torch.full((2,), 9.0))


@pytest.mark.parametrize(
    ("trained", "full_names", "of"),
    [
        (["a", "b"], None, {"a": "e0", "b": "e1"}),
        (["b", "a"], None, {"b": "e0", "a": "e1"}),
        (["b"], None, {"b": "e0"}),
        (None, ["Adam/average/net/b", "Adam/average/net/a"], {"b": "e0", "a": "e1"}),
        (None, ["average/net/b", "average/net/a"], {"b": "e0", "a": "e1"}),
        (None, ["Adam/average/net/b", "Adam/average/net/gone"], {}),
        (
            None,
            ["Adam/average/net/b", "Adam/average/other/net/a"],
            {},
        ),  # of a model that is not stored
        (None, ["Adam/average/net/b", "Adam/average/net/b"], {}),
        (None, ["average_of_a", "average_of_b"], {}),
        (None, None, {}),
    ],
)
def test_lists_of_keras(
    tmp_path: Path, trained: list[str] | None, full_names: list[str] | None, of: dict[str, str]
) -> None:
    """By the list of variables, else by full names that all have the same beginning; otherwise they are not known."""
    path = graph_of_keras(tmp_path / "m", ["0", "1"], trained=trained, full_names=full_names)
    found = averages_of(path)
    assert found.of == {variable + SUFFIX: average + SUFFIX for variable, average in of.items()}
    assert set(found.unknown) == {f"e{number}{SUFFIX}" for number in range(2)} - set(found.of.values())
    model = Pair()
    report = load_model(model, path, ema="prefer", prefix="model")
    for name in "ab":
        expected = int(of[name][1:]) + 1.0 if name in of else 0.0
        assert model.get_parameter(name).tolist() == [expected] * 2
    assert bool(report.remarks) == bool(found.unknown)
    if found.unknown:
        assert "it is not stored which variables these moving averages belong to" in report.remarks[0]
        with pytest.raises(NotFoundError, match="no moving average is stored for"):
            load_model(model, path, ema="only", prefix="model")


def test_slot_variables_called_average(tmp_path: Path) -> None:
    """tfa.optimizers.MovingAverage and others store them; two optimizers with averages are ambiguous."""
    variables = {"model/a": torch.zeros(2), "model/b": torch.zeros(2), "one/iter": torch.tensor(3)}
    variables |= {"two/iter": torch.tensor(3)}
    slots = {("one", "model/a", "average"): torch.ones(2), ("one", "model/b", "average"): torch.ones(2)}
    more = {("two", "model/b", "average"): torch.ones(2), ("one", "model/a", "momentum"): torch.ones(2)}
    path = save_objects(tmp_path / "m", variables, slots=slots | more)
    found = averages_of(path)
    assert found.of == {f"model/a{SUFFIX}": f"model/a/.OPTIMIZER_SLOT/one/average{SUFFIX}"} and len(found.unknown) == 2
    model = Pair()
    assert load_model(model, path, ema="prefer").averaged == ["a"]
    assert model.a.tolist() == [1.0, 1.0] and model.b.tolist() == [0.0, 0.0]


def test_full_names_in_an_object_graph(tmp_path: Path) -> None:
    """A program that tracks the variables of a tf.train.ExponentialMovingAverage."""
    variables = {"model/a": torch.zeros(2), "model/b": torch.zeros(2), "averages/0": torch.ones(2)}
    path = save_objects(tmp_path / "m", variables, full_names={"model/a": "net/a", "averages/0": f"net/a{EMA}"})
    assert averages_of(path).of == {f"model/a{SUFFIX}": f"averages/0{SUFFIX}"}


@pytest.mark.parametrize(
    ("stored", "count"),
    [({}, None), ({"global_step": 12}, 12), ({"global_step:0": 12}, 12), ({"global_step": 12.0}, None)],
)
def test_number_of_updates(tmp_path: Path, stored: Mapping[str, float], count: int | None) -> None:
    """It is an integer called global_step, or the counter of the optimizer that averages."""
    path = tfckpt.save_file(
        {"v": torch.zeros(1), **{key: torch.tensor(n) for key, n in stored.items()}}, tmp_path / "m"
    )
    with tfckpt.load_checkpoint(path) as reader:
        assert count_of_updates(reader) == count
    with tfckpt.load_checkpoint(graph_of_keras(tmp_path / "k", ["0"], trained=["a"])) as reader:
        assert count_of_updates(reader) == 7


@pytest.mark.parametrize(("step", "count"), [(None, 1), (0, 1), (12, 12)])
@pytest.mark.parametrize("place", ["in place", "meta"])
def test_an_averaged_model(tmp_path: Path, step: int | None, count: int, place: str) -> None:
    """n_averaged is set with the averages: with 0, the next update would replace them. A remark tells the number."""
    stored = small_in_tensorflow()
    averages = {f"{name}{EMA}": value + 100 for name, value in stored.items()}
    steps = {} if step is None else {"global_step": torch.tensor(step)}
    path = tfckpt.save_file(stored | averages | steps, tmp_path / "m")
    model = AveragedModel(Small())
    if place == "meta":
        model = model.to("meta")
    report = load_model(model, path, ema="prefer", assign=place == "meta")
    assert model.n_averaged == count and model.n_averaged.dtype == torch.int64
    assert f'"n_averaged" is set to {count}' in "\n".join(report.remarks)
    state = model.state_dict()
    assert torch.equal(state["module.fc.bias"], stored["fc/bias"] + 100)
    assert torch.equal(state["module.bn.running_mean"], stored["bn/moving_mean"] + 100)
    model.update_parameters(Small())
    assert model.n_averaged == count + 1


def test_an_averaged_model_without_averages(tmp_path: Path) -> None:
    """n_averaged is unchanged if the variables themselves are loaded; a stored n_averaged is loaded."""
    path = tfckpt.save_file(small_in_tensorflow() | {"global_step": torch.tensor(5)}, tmp_path / "m")
    model = AveragedModel(Small())
    report = load_model(model, path, ema="prefer")
    assert model.n_averaged == 0 and '"n_averaged" is not stored, and is unchanged' in report.remarks
    with_count = tfckpt.save_file(small_in_tensorflow() | {"n_averaged": torch.tensor(3)}, tmp_path / "n")
    load_model(model, with_count, ema="prefer")
    assert model.n_averaged == 3


def test_unknown_averages_are_reported_only_if_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With ema="ignore" there is no remark about them."""
    path = graph_of_keras(tmp_path / "m", ["0"])
    with caplog.at_level(logging.WARNING):
        assert load_model(Pair(), path, prefix="model").remarks == []
