"""Variables that are not weights of a model."""

import time
from pathlib import Path

import pytest
import torch
from model_files import save_objects
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, VARIABLE_VALUE, ObjectGraph, ObjectReference
from torch_tfckpt.format.object_graph import SerializedTensor as Attribute
from torch_tfckpt.format.object_graph import TrackableObject as Node
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.auxiliary.recognition import auxiliary_keys, variable_kinds
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.values import WritableValue


def beside(prefix: Path) -> set[str]:
    with tfckpt.load_checkpoint(prefix) as reader:
        return auxiliary_keys(reader)


@pytest.mark.parametrize(
    ("key", "is_beside"),
    [
        ("global_step", True), ("a/global_step", True), ("global_steps", False), ("save_counter", True),
        ("beta1_power", True), ("x/beta2_power_12", True), ("beta3_power", False), ("v/Adam", True), ("v/Adam_1", True),
        ("v/Momentum", True), ("v/RMSProp_2", True), ("v/adam_m", True), ("w/Adam", False), ("v/adam", True),
        ("v/kernel", False), ("v/v", False),
        ("v_slot_vr", True), ("w_slot_v", False), ("v/ExponentialMovingAverage", True),
        ("w/ExponentialMovingAverage", True), ("v", False), ("v/x", True), ("state/x", True), ("state", True),
        ("states/x", False), ("v/Adam:0", True), ("v/ExponentialMovingAverage:0", True), ("global_step:0", True),
        ("opt/v/Adam_1", True), ("a/b/v/Momentum", True), ("opt/w/Adam", False), ("shadow/Adam", True),
        ("s/shadow/Adam", True), ("a/" * 30 + "v/Adam", False), ("training/Adam/v/m", True),
        ("training/Adam/v/vhat:0", True), ("training/Adam_1/shadow/rms", True), ("training/Adam/w/m", False),
        ("training/Adam/v/x", True), ("training/v/x", False), ("training/SGD/momentum", True),
        ("training/SGD/lr:0", True),
        ("training/SGD/x", False), ("SGD/lr", False),
    ],
)  # fmt: skip
def test_by_names(tmp_path: Path, key: str, is_beside: bool) -> None:
    """A slot needs a variable that is stored; keys below a string belong to its state."""
    values: dict[str, WritableValue] = {"v": torch.zeros(1), key: torch.zeros(1), "state": "text"}
    values["shadow/ExponentialMovingAverage"] = torch.zeros(1)
    tfckpt.save_file(values, tmp_path / "m")
    assert (key in beside(tmp_path / "m")) == is_beside


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("v", VariableKind.WEIGHT), ("v/Adam", VariableKind.OPTIMIZER), ("beta1_power", VariableKind.OPTIMIZER),
        ("a/global_step:0", VariableKind.COUNTER), ("save_counter", VariableKind.COUNTER),
        ("v/ExponentialMovingAverage", VariableKind.AVERAGE), ("training/Adam/iterations", VariableKind.COUNTER),
        ("training/Adam/lr", VariableKind.OPTIMIZER), ("training/Adam/v/m", VariableKind.OPTIMIZER),
        ("text", VariableKind.OTHER), ("text/x", VariableKind.OTHER), ("text/state/v/m", VariableKind.OPTIMIZER),
    ],
)  # fmt: skip
def test_kinds_by_names(tmp_path: Path, key: str, kind: VariableKind) -> None:
    """What the listing of the command line adds up separately."""
    tfckpt.save_file({"v": torch.zeros(1), key: torch.zeros(1), "text": "state"}, tmp_path / "m")
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        assert variable_kinds(reader)[key] is kind


def test_kinds_by_objects(golden: Path) -> None:
    """Keras 3 lists the model's weights among the optimizer's children; they stay weights."""
    with tfckpt.load_checkpoint(golden / "digits-checkpoint") as reader:
        kinds = variable_kinds(reader)
        assert list(kinds) == reader.keys()
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    assert kinds["optimizer/_trainable_variables/0" + suffix] is VariableKind.WEIGHT
    assert kinds["optimizer/_variables/2" + suffix] is VariableKind.OPTIMIZER
    assert kinds["optimizer/_learning_rate" + suffix] is VariableKind.OPTIMIZER
    assert kinds["optimizer/_iterations" + suffix] is kinds["step" + suffix] is VariableKind.COUNTER
    assert kinds["_CHECKPOINTABLE_OBJECT_GRAPH"] is VariableKind.OTHER


def test_by_objects(tmp_path: Path) -> None:
    """Optimizers of Keras 2 and 3, Keras 2's metrics, slots and counters."""
    weights = ["model/fc/kernel", "step", "model/iter"]
    others = [
        "optimizer/iter", "optimizer/learning_rate", "model/optimizer/_iterations", "model/optimizer/_learning_rate",
        "model/optimizer/_variables/2", "keras_api/metrics/0/total", "save_counter", "global_step",
        "scaled/base_optimizer/decay", "scaled/loss_scale/good_steps",
    ]  # fmt: skip
    slots = {("optimizer", "model/fc/kernel", "m"): torch.zeros(1)}
    save_objects(tmp_path / "m", {name: torch.zeros(1) for name in (*weights, *others)}, slots=slots)
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        kept = set(reader.keys()) - auxiliary_keys(reader)
    assert kept == {f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in weights}


def test_a_variable_that_an_optimizer_names_too_is_a_weight(tmp_path: Path) -> None:
    """Keras 3's optimizers have the model's variables among their children; and graphs may have loops."""
    nodes = (
        Node((ObjectReference(1, "optimizer"), ObjectReference(2, "layer"))),
        Node((ObjectReference(3, "_trainable_variables"), ObjectReference(4, "_iterations"),
              ObjectReference(4, "_learning_rate"), ObjectReference(0, "model"))),
        Node((ObjectReference(3, "kernel"), ObjectReference(0, "parent"), ObjectReference(2, "self"))),
        Node((), (Attribute(VARIABLE_VALUE, "", "kernel"),)),
        Node((), (Attribute(VARIABLE_VALUE, "", "iterations"),)),
    )  # fmt: skip
    values: dict[str, WritableValue] = {
        "kernel": torch.zeros(1),
        "iterations": torch.zeros(1),
        OBJECT_GRAPH_KEY: ObjectGraph(nodes).encode(),
    }
    tfckpt.save_file(values, tmp_path / "m")
    assert beside(tmp_path / "m") == {"iterations", OBJECT_GRAPH_KEY}


def test_long_names_take_no_time(tmp_path: Path) -> None:
    """A name of a megabyte of slashes is looked at once, and not once a slash."""
    values: dict[str, WritableValue] = {
        "a": "text",
        "a/" * 500_000 + "x": torch.zeros(1),
        "/" * 1_000_000: torch.zeros(1),
    }
    tfckpt.save_file(values, tmp_path / "m")
    began = time.process_time()
    assert len(beside(tmp_path / "m")) == 2
    assert time.process_time() - began < 5  # it would be minutes


def test_whole_numbers_at_the_root_are_counters(tmp_path: Path) -> None:
    """Checkpoint(model=..., step=...): the step is not a weight; what is not a number, or is deeper, may be one."""
    counters = {"step": torch.tensor(3), "epoch": torch.tensor(1, dtype=torch.int32)}
    others = {"scale": torch.tensor(1.0), "table": torch.tensor([1]), "model/count": torch.tensor(1)}
    save_objects(tmp_path / "m", counters | others)
    keys = {f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in counters}
    assert beside(tmp_path / "m") == {*keys, OBJECT_GRAPH_KEY}


KERNEL, BIAS = torch.ones(3, 2), torch.ones(2)
MODEL = {
    "fc/kernel": KERNEL, "fc/bias": BIAS, "bn/gamma": BIAS, "bn/beta": BIAS, "bn/moving_mean": BIAS,
    "bn/moving_variance": BIAS,
}  # fmt: skip
NUMBER, COUNT = torch.tensor(1.0), torch.tensor(1)


def net() -> nn.ModuleDict:
    return nn.ModuleDict({"fc": nn.Linear(3, 2), "bn": nn.BatchNorm1d(2, eps=1e-3)})


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"bn/renorm_mean": BIAS, "bn/renorm_stddev": BIAS, "bn/renorm_mean_weight": NUMBER}, VariableKind.OTHER),
        ({"bn/renorm_stddev_weight": NUMBER, "bn/moving_stddev": BIAS}, VariableKind.OTHER),
        ({"bn/moving_mean/biased": BIAS, "bn/moving_mean/local_step": NUMBER}, VariableKind.OTHER),
        ({"bn/bn/moving_mean/biased": BIAS, "bn/bn/moving_mean/local_step": NUMBER}, VariableKind.OTHER),
        ({"gone/biased": BIAS, "gone/local_step": NUMBER}, VariableKind.OTHER),
        ({"fc/kernel/replica_1": KERNEL, "fc/kernel/replica_12": KERNEL}, VariableKind.OTHER),
        ({"accuracy/total": NUMBER, "accuracy/count": NUMBER}, VariableKind.OTHER),
        ({"current_loss_scale": NUMBER}, VariableKind.OPTIMIZER),
        ({"amp/loss_scale": NUMBER, "amp/num_bad_steps": NUMBER}, VariableKind.OPTIMIZER),
        ({"good_steps": COUNT, "epoch": COUNT, "Variable": COUNT, "global_step_1": COUNT}, VariableKind.COUNTER),
        ({"x/iter": COUNT, "x/iterations": COUNT}, VariableKind.COUNTER),
        ({"learning_rate": NUMBER, "train/learning_rate": NUMBER, "lr": NUMBER}, VariableKind.OPTIMIZER),
        ({"SGD/iter": COUNT, "SGD/lr": NUMBER}, None),
        ({"Adam/iter": COUNT, "Adam/decay": NUMBER, "Adam/rate_power": NUMBER, "Adam/m_0": KERNEL}, None),
        ({"iteration": COUNT, "Adam/m/fc/kernel": KERNEL, "Adam/v/fc/kernel": KERNEL}, None),
        ({"Adam/iter": COUNT, "Adam/fc/kernel/m": KERNEL}, None),
        ({"Adam/m": KERNEL, "bn/gamma/Adam/replica_1": BIAS, "bn/gamma/Adam": BIAS, "Adam/iter": COUNT,
          "Adam/lr": NUMBER}, None),
    ],
)  # fmt: skip
def test_companions(tmp_path: Path, more: dict[str, torch.Tensor], kind: VariableKind | None) -> None:
    """What accompanies variables and optimizers. A plain module with these names loads strictly and without remarks."""
    tfckpt.save_file(MODEL | more, tmp_path / "m")
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        kinds = variable_kinds(reader)
    assert {name for name, found in kinds.items() if found is VariableKind.WEIGHT} == MODEL.keys()
    assert kind is None or {kinds[name] for name in more} == {kind}
    report = load_model(net(), tmp_path / "m")
    assert set(report.ignored) == more.keys() and report.remarks == []


@pytest.mark.parametrize(
    "name",
    [
        "fc/u",  # of spectral normalization: the layer computes with kernel / sigma
        "renorm_mean", "fc/renorm_mean", "fc/moving_mean/biased", "fc/biased", "gone/replica_1", "total", "fc/total",
        "fc/count", "loss_scale", "fc/local_step", "epoch", "fc/lr", "Adam/m/fc/bias", "fc/bias/beta",
    ],
)  # fmt: skip
def test_other_tensors_are_unexpected(tmp_path: Path, name: str) -> None:
    """A tensor with one element that the module lacks, and that nothing identifies, is never ignored."""
    path = tfckpt.save_file(MODEL | {name: torch.ones(1)}, tmp_path / "m")
    with pytest.raises(InvalidArgumentError, match=f'Unexpected key\\(s\\): "{name}"'):
        load_model(net(), path)


def test_slots_by_shape_alone_are_reported(tmp_path: Path) -> None:
    """They are ignored, but the report names them; a module or a mapper that wants such a tensor gets it."""
    path = tfckpt.save_file(MODEL | {"fc/kernel/sgd": 2 * KERNEL}, tmp_path / "m")
    report = load_model(net(), path)
    assert report.ignored == ["fc/kernel/sgd"]
    assert len(report.remarks) == 1 and report.remarks[0].startswith('ignored as optimizer state: "fc/kernel/sgd"')
    rules = {"fc/kernel/sgd": ("fc.weight", "dense"), "fc/kernel": None}
    model = net()
    report = load_model(model, path, mapper=rules)
    assert report.remarks == [] and model.get_parameter("fc.weight").tolist() == [[2.0] * 3] * 2


def test_a_tensor_of_the_module_is_a_weight(tmp_path: Path) -> None:
    """Whatever its name says: parameters called like slots, averages, replicas and metrics."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Module()
            self.fc.w = nn.Module()
            names = ("Adam", "Adam_1", "ema", "replica_1", "total", "count", "biased", "d_opt")
            for name in names:
                self.fc.w.register_parameter(name, nn.Parameter(torch.zeros(2)))
            self.learning_rate = nn.Parameter(torch.zeros(()))

    values = {name.replace(".", "/"): torch.full(value.shape, 3.0) for name, value in Odd().named_parameters()}
    path = tfckpt.save_file(values | {"fc/w": BIAS}, tmp_path / "m")
    model = Odd()
    report = load_model(model, path, mapper={"fc/w": None})
    assert len(report.sources) == 9 and all((value == 3).all() for value in model.state_dict().values())


def test_renorm_in_an_object_graph(tmp_path: Path) -> None:
    """Variables of batch renormalization next to moving_mean are not weights of a torch BatchNorm."""
    variables = {f"model/{name}": value for name, value in MODEL.items()}
    others = {"model/bn/renorm_mean": BIAS, "model/bn/renorm_stddev": BIAS, "model/bn/moving_stddev": BIAS}
    save_objects(tmp_path / "m", variables | others)
    assert load_model(net(), tmp_path / "m").unexpected == []
    save_objects(tmp_path / "n", variables | {"model/fc/renorm_mean": BIAS})
    with pytest.raises(InvalidArgumentError, match="fc/renorm_mean"):
        load_model(net(), tmp_path / "n")
