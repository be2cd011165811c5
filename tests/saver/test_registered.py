"""The variables, savers and collections of one graph, from a saver and what is registered."""

import logging
from collections.abc import Sequence

import pytest
import torch
from case_table import Table

from torch_tfckpt import Collections, GraphKeys, PartitionedVariable, SaveableObject, Saver, SaveSliceInfo, SaveSpec
from torch_tfckpt._proto.queue_runner_pb2 import QueueRunnerDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef, VariableDef
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.meta_graph.model import GraphSaver, GraphVariable, SavedVariable
from torch_tfckpt.saveables.variables import Variable
from torch_tfckpt.saver.registered import InGraph, Registered, saver_in_graph

FLOAT, STRING, CPU = DataType.DT_FLOAT, DataType.DT_STRING, "/device:CPU:0"
SECOND_HALF = SaveSliceInfoDef(full_name="w", full_shape=[4, 3], var_offset=[2, 0], var_shape=[2, 3])


def collections(**values: Sequence[object]) -> Collections:
    made = Collections()
    for name, each in values.items():
        for value in each:
            made.add_to_collection(name, value)
    return made


def of(saver: Saver | None, made: Collections | None = None) -> Registered:
    return Registered(saver_in_graph(saver) if saver is not None else None, made or Collections())


def names(registered: Registered) -> list[str]:
    return [variable.name for variable in registered.variables]


def saved(saver: GraphSaver) -> list[tuple[str, str, str]]:
    """Return (key, slice, variable) of all entries of the saver."""
    return [(each.key, each.slice_spec, each.variable.name) for _, group in saver.groups for each in group]


class Asked(SaveableObject):
    """Saveable whose values must not be computed: that may take minutes or have side effects."""

    def __init__(self, name: str, *specs: SaveSpec) -> None:
        def ask() -> torch.Tensor:
            raise AssertionError("a meta graph needs no value")

        own = [
            SaveSpec(ask, "", f"{name}-number", torch.int32, "/gpu:1"),
            SaveSpec(ask, "4 3 2,2:-", f"{name}-part", DataType.DT_STRING, "/gpu:1"),
        ]
        super().__init__(self, [*own, *specs], name)


# Variables.


def test_without_saver_and_collections() -> None:
    """Without a saver and collections the graph is empty."""
    registered = of(None)
    assert (registered.variables, registered.savers, registered.saver_def) == ([], [], None)
    assert registered.collections() == {}


def test_variables_of_a_saver() -> None:
    """Each tensor is a variable with its own name, dtype, shape and device, whatever its checkpoint key."""
    half = Variable(torch.ones(2, 3), "w/1", SaveSliceInfo("w", [4, 3], [2, 0], [2, 3]), device="/gpu:0")
    tensors = {
        "a": torch.ones(2, requires_grad=True),
        "key": Variable(torch.tensor(1, dtype=torch.int8), "name", trainable=False, dtype=DataType.DT_QINT8),
        "w": [half],
    }
    saver = Saver(tensors, name="mine", filename="default", max_to_keep=3)
    registered = of(saver)
    a = GraphVariable("a", FLOAT, (2,), CPU, trainable=True)
    name = GraphVariable("name", DataType.DT_QINT8, (), CPU)
    w = GraphVariable("w/1", FLOAT, (2, 3), "/device:GPU:0", trainable=True, part=SECOND_HALF)
    assert registered.variables == [a, name, w]
    groups = [("", [SavedVariable(a, "a"), SavedVariable(name, "key"), SavedVariable(w, "w", "4 3 2,2:0,3")])]
    assert registered.savers == [GraphSaver(registered.saver_def or SaverDef(), groups, filename="default")]
    assert registered.saver_def is not None and registered.saver_def.restore_op_name == "mine/restore_all"
    assert registered.saver_def.max_to_keep == 3
    assert registered.collections() == {"variables": [a, name, w], "trainable_variables": [a, w]}


def test_a_slice_that_is_saved_whole() -> None:
    """CASES 67: the variable's slice information is kept although it is saved whole."""
    half = Variable(torch.ones(2, 3), "v", SaveSliceInfo("w", [4, 3], [2, 0], [2, 3]))
    registered = of(Saver({"key": half}))
    assert [each.part for each in registered.variables] == [SECOND_HALF]
    assert saved(registered.savers[0]) == [("key", "", "v")]


def test_no_value_is_computed() -> None:
    """Functions are not called: dtype and device are known, the shape is not; slices are recorded."""
    asked = Asked("x")
    made = collections(saveable_objects=[asked], mine=[asked])
    registered = of(Saver({"x": asked}), made)
    part = SaveSliceInfoDef(full_name="x-part", full_shape=[4, 3], var_offset=[2, 0], var_shape=[2, 3])
    number = GraphVariable("x-number", DataType.DT_INT32, None, "/device:GPU:1")
    [first, second] = registered.variables
    assert first == number
    assert (second.name, second.dtype, second.part) == ("x-part", STRING, part)
    assert registered.collections()["saveable_objects"] == registered.collections()["mine"] == [first, second]
    assert saved(registered.savers[0]) == [("x-number", "", "x-number"), ("x-part", "4 3 2,2:-", "x-part")]


def test_a_spec_without_a_value() -> None:
    """A spec without a value is left out until it has one."""
    registered = of(Saver({"x": Asked("x", SaveSpec(None, "", "later", device="/gpu:1"))}))
    assert names(registered) == ["x-number", "x-part"]


def test_a_table() -> None:
    """The two values of a table are two variables; they are read only when saved."""
    table = Table("t", {"k": 1.0})
    registered = of(Saver([table.saveable]))
    assert [(each.name, each.dtype) for each in registered.variables] == [("t-keys", STRING), ("t-values", FLOAT)]
    assert table.reads == 0


def test_one_tensor_is_one_variable() -> None:
    """One tensor under several names, in savers and collections, is named by its first use."""
    tensor = torch.ones(4)
    other = Saver({"other": tensor})
    made = collections(savers=[other], variables=[("third", tensor), Variable(tensor, "fourth")])
    registered = of(Saver({"key": Variable(tensor, "first")}), made)
    registered.collections()
    assert names(registered) == ["first"]
    assert [saved(saver) for saver in registered.savers] == [[("key", "", "first")], [("other", "", "first")]]


def test_views_are_other_variables() -> None:
    """Tensors that share memory but are different objects are different variables."""
    tensor = torch.ones(4)
    made = collections(variables=[("a", tensor), ("b", tensor[:2]), ("c", tensor.view(2, 2))])
    registered = of(None, made)
    assert [each.name for each in registered.collections()["variables"]] == ["a", "b", "c"]  # type: ignore[attr-defined]


def test_names_are_valid_and_unique() -> None:
    """Names of savers' nodes are not given to variables."""
    tensors = {name: torch.ones(1) for name in ("save/Const", "a b", "a_b", "_x", "save/restore_all", "v:0")}
    registered = of(Saver(tensors))
    assert sorted(names(registered)) == ["a_b", "a_b_1", "save/Const_1", "save/restore_all_1", "v", "v_x"]
    assert sorted(key for key, _, _ in saved(registered.savers[0])) == sorted(tensors)


def test_the_state_of_an_optimizer() -> None:
    """The tensors of an optimizer are variables; the rest of its state is one string."""
    linear = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(linear.parameters())
    torch.autograd.backward([linear(torch.ones(1, 2)).sum()])
    optimizer.step()
    registered = of(Saver({"model": linear, "optimizer": optimizer}))
    shapes = {each.name: each.shape for each in registered.variables if each.dtype != STRING}
    assert shapes == {
        "model/weight": (2, 2),
        "model/bias": (2,),
        **{f"optimizer/state/weight/{name}": (2, 2) for name in ("exp_avg", "exp_avg_sq")},
        **{f"optimizer/state/bias/{name}": (2,) for name in ("exp_avg", "exp_avg_sq")},
        "optimizer/state/weight/step": (),
        "optimizer/state/bias/step": (),
    }
    trainable = {each.name for each in registered.variables if each.trainable}
    assert trainable == {"model/weight", "model/bias"}


# Savers.


def test_shards() -> None:
    """A sharded saver has one group per device, in the order of the shards."""
    tensors = [Variable(torch.ones(1), name, device=device) for name, device in (("a", "/gpu:1"), ("b", "/cpu:0"))]
    for sharded, groups in ((True, [(CPU, "b"), ("/device:GPU:1", "a")]), (False, [("", "a b")])):
        [saver] = of(Saver(tensors, sharded=sharded)).savers
        assert [(device, " ".join(each.key for each in group)) for device, group in saver.groups] == groups


def test_a_saver_that_reshapes() -> None:
    """The reshape flag of a saver is recorded."""
    assert [saver.reshape for saver in of(Saver({"a": torch.ones(1)}, reshape=True)).savers] == [True]


def test_savers_of_one_scope() -> None:
    """The saver of the meta graph comes first and keeps its names; duplicates are removed."""
    first, second = Saver({"a": torch.ones(1)}), Saver({"b": torch.ones(1)})
    registered = of(second, collections(savers=[first, second, first]))
    assert [saver.saver_def.restore_op_name for saver in registered.savers] == [
        "save/restore_all",
        "save_1/restore_all",
    ]
    assert names(registered) == ["b", "a"]
    assert registered.saver_def == registered.savers[0].saver_def
    found = [registered.to_proto(value) for value in registered.collections()["savers"]]
    assert found == [saver.saver_def for saver in (registered.savers[1], registered.savers[0], registered.savers[1])]
    assert of(None, collections(savers=[first])).saver_def is None


def test_a_saver_without_variables() -> None:
    """It is not in the graph and has no message."""
    nothing = Saver([], allow_empty=True)
    registered = of(None, collections(savers=[nothing]))
    assert isinstance(nothing, InGraph) and saver_in_graph(nothing) is None
    assert registered.savers == [] and registered.to_proto(nothing) is None
    assert of(nothing).saver_def is None


def test_other_values_among_savers(caplog: pytest.LogCaptureFixture) -> None:
    """Other values in the collection "savers" have no message, except a SaverDef, which is kept."""
    settings = SaverDef(restore_op_name="r")
    registered = of(None, collections(savers=[3, "save", settings]))
    assert [registered.to_proto(each) for each in registered.collections()["savers"]] == [None, None, settings]


# Collections.


def test_values_of_collections() -> None:
    """Variables become variables of the graph, partitioned ones all their parts; other values are kept."""
    parts = [Variable(torch.ones(2), f"w/{n}", SaveSliceInfo("w", [4], [2 * n], [2])) for n in (0, 1)]
    runner, thing = QueueRunnerDef(), object()
    made = collections(mine=[Variable(torch.ones(1), "a"), PartitionedVariable("w", parts), 3, "text", thing, runner])
    made.add_to_collection(5, "value")
    found = of(None, made).collections()
    *variables, number, text, same, message = found["mine"]
    assert [getattr(each, "name", None) for each in variables] == ["a", "w/0", "w/1"]
    assert all(isinstance(each, GraphVariable) for each in variables)
    assert (number, text, same, message) == (3, "text", thing, runner) and found[5] == ["value"]


@pytest.mark.parametrize("value", [("a", 3), ("a",), ("a", torch.ones(1), 3), ["a", torch.ones(1)]], ids=str)
def test_other_tuples_are_kept(value: object) -> None:
    """Only a tuple of a name and a tensor is treated as a variable."""
    [found] = of(None, collections(mine=[value])).collections()["mine"]
    assert found is value


def test_pairs() -> None:
    """Pairs as from `named_parameters`: those that require a gradient are trainable."""
    frozen, trained = torch.nn.Parameter(torch.ones(1), requires_grad=False), torch.nn.Parameter(torch.ones(1))
    found = of(None, collections(variables=[("a", frozen), ("b", trained)])).collections()["variables"]
    assert [(each.name, each.trainable) for each in found] == [("a", False), ("b", True)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["variables", "local_variables", "metric_variables", "global_step"])
def test_other_values_in_collections_of_variables(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """In a collection of variables other values are left out, with a warning."""
    variable = Variable(torch.ones(1), "v")
    with caplog.at_level(logging.WARNING):
        found = of(None, collections(**{key: [3, variable, torch.ones(1), variable]})).collections()
    assert [each.name for each in found[key]] == ["v"]  # type: ignore[attr-defined]
    assert [record.getMessage().partition(" is not written")[0] for record in caplog.records] == [
        f"collection {key}: a value of type int",
        f"collection {key}: a value of type Tensor",
    ]


def test_saved_and_registered_variables_are_listed() -> None:
    """The variables that any saver saves come first, then the registered ones, each once."""
    a, b, c = (Variable(torch.ones(1), name, trainable=name != "b") for name in "abc")
    made = collections(variables=[c, a], trainable_variables=[b], savers=[Saver([b])])
    found = of(Saver([a]), made).collections()
    assert [each.name for each in found["variables"]] == ["a", "b", "c"]  # type: ignore[attr-defined]
    assert [each.name for each in found["trainable_variables"]] == ["a", "b"]  # type: ignore[attr-defined]
    assert GraphKeys.LOCAL_VARIABLES not in found


def test_messages() -> None:
    """Variables, savers and existing messages have a message; other values have none."""
    variable = Variable(torch.ones(2, 3), "v")
    registered = of(Saver([variable]))
    [found] = registered.collections()["variables"]
    message = registered.to_proto(found)
    assert isinstance(message, VariableDef)
    assert (message.variable_name, message.initializer_name, message.trainable) == ("v:0", "v/Assign", True)
    assert registered.to_proto(QueueRunnerDef(queue_name="q")) == QueueRunnerDef(queue_name="q")
    assert registered.to_proto(3) is registered.to_proto(variable) is None
