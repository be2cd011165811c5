"""Variables that are not weights of a model."""

import time
from pathlib import Path

import pytest
import torch
from model_files import save_objects

import torch_tfckpt as tfckpt
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, VARIABLE_VALUE, ObjectGraph, ObjectReference
from torch_tfckpt.format.object_graph import SerializedTensor as Attribute
from torch_tfckpt.format.object_graph import TrackableObject as Node
from torch_tfckpt.models.auxiliary import VariableKind, auxiliary_keys, variable_kinds
from torch_tfckpt.values import WritableValue


def beside(prefix: Path) -> set[str]:
    with tfckpt.load_checkpoint(prefix) as reader:
        return auxiliary_keys(reader)


@pytest.mark.parametrize(
    ("key", "is_beside"),
    [
        ("global_step", True), ("a/global_step", True), ("global_steps", False), ("save_counter", True),
        ("beta1_power", True), ("x/beta2_power_12", True), ("beta3_power", False), ("v/Adam", True), ("v/Adam_1", True),
        ("v/Momentum", True), ("v/RMSProp_2", True), ("v/adam_m", True), ("w/Adam", False), ("v/adam", False),
        ("v_slot_vr", True), ("w_slot_v", False), ("v/ExponentialMovingAverage", True),
        ("w/ExponentialMovingAverage", True), ("v", False), ("v/x", False), ("state/x", True), ("state", True),
        ("states/x", False), ("v/Adam:0", True), ("v/ExponentialMovingAverage:0", True), ("global_step:0", True),
        ("opt/v/Adam_1", True), ("a/b/v/Momentum", True), ("opt/w/Adam", False), ("shadow/Adam", True),
        ("s/shadow/Adam", True), ("a/" * 30 + "v/Adam", False), ("training/Adam/v/m", True),
        ("training/Adam/v/vhat:0", True), ("training/Adam_1/shadow/rms", True), ("training/Adam/w/m", False),
        ("training/Adam/v/x", False), ("training/SGD/momentum", True), ("training/SGD/lr:0", True),
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
