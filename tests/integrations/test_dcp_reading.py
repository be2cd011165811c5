"""Any TensorFlow checkpoint is loaded by torch.distributed.checkpoint under the names that a program uses."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sharded import numbered
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys, load
from torch.distributed.checkpoint.state_dict_saver import save

import torch_tfckpt as tfckpt


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def loaded(path: object, state: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Load into a state_dict, and return it."""
    planner = DefaultLoadPlanner(allow_partial_load=options.pop("partial", False))
    load(state, storage_reader=tfckpt.TFCheckpointReader(str(path), **options), planner=planner)
    return state


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def test_names_of_a_plain_checkpoint(tmp_path: Path) -> None:
    """A key may be one name, or a path of nested dicts with any of its separators."""
    path = tfckpt.save_file({"a/b/kernel": numbered((2, 3)), "a/b/kernel/Adam": numbered((2, 3)) + 1}, tmp_path / "m")
    for state in ({"a/b/kernel": zeros(2, 3)}, {"a": {"b": {"kernel": zeros(2, 3)}}}, {"a": {"b.kernel": zeros(2, 3)}}):
        flat = str(loaded(path, dict(state)))
        assert flat.endswith(str(numbered((2, 3))) + "}" * flat.count("}"))
    both = loaded(path, {"a/b/kernel": zeros(2, 3), "a": {"b": {"kernel": {"Adam": zeros(2, 3)}}}})
    assert torch.equal(both["a/b/kernel"], numbered((2, 3)))
    assert torch.equal(both["a"]["b"]["kernel"]["Adam"], numbered((2, 3)) + 1)
    everything = _load_state_dict_from_keys(None, storage_reader=tfckpt.TFCheckpointReader(path))
    assert sorted(everything) == ["a/b/kernel", "a/b/kernel/Adam"]


def test_missing_and_extra_names(tmp_path: Path) -> None:
    """What is not stored is an error with its name, or skipped; what is stored in addition does not matter."""
    path = tfckpt.save_file({"a": numbered((2,)), "b": numbered((3,))}, tmp_path / "m")
    with pytest.raises(CheckpointException, match="Missing key in checkpoint state_dict: c"):
        loaded(path, {"a": zeros(2), "c": zeros(2)})
    state = loaded(path, {"a": zeros(2), "c": zeros(2) - 1}, partial=True)
    assert [state["a"].tolist(), state["c"].tolist()] == [[0.0, 1.0], [-1.0, -1.0]]
    with pytest.raises(CheckpointException, match="Size mismatch"):
        loaded(path, {"a": zeros(3)})
    with pytest.raises(CheckpointException, match="absent"):
        loaded(tmp_path / "absent", {"a": zeros(2)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32])
def test_other_dtypes_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    """As DCP does with its own files."""
    path = tfckpt.save_file({"a": numbered((4, 3)) + 0.5}, tmp_path / "m")
    state = loaded(path, {"a": torch.zeros(4, 3, dtype=dtype)})
    assert torch.equal(state["a"], (numbered((4, 3)) + 0.5).to(dtype))


def test_targets_with_strides(tmp_path: Path) -> None:
    """A target that is not contiguous is filled in place."""
    path = tfckpt.save_file({"a": numbered((4, 3))}, tmp_path / "m")
    memory = torch.zeros(3, 8)
    loaded(path, {"a": memory[:, ::2].T})
    assert torch.equal(memory[:, ::2].T, numbered((4, 3)))
    assert not memory[:, 1::2].any()


def in_order(optimizer: torch.optim.Optimizer) -> str:
    """The state of an optimizer, as text."""
    packed = optimizer.state_dict()
    return str([packed["state"], [sorted(group.items()) for group in packed["param_groups"]]])


class Extra(nn.Module):
    """A module with extra state and tied weights."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight
        self.value = value

    def get_extra_state(self) -> Any:
        return {"value": self.value, "table": torch.tensor([self.value])}

    def set_extra_state(self, state: Any) -> None:
        self.value = state["value"]
        assert state["table"].tolist() == [self.value]


def test_tied_weights_and_extra_state(tmp_path: Path) -> None:
    """What a Saver stores once is found under all its names; extra state goes both ways."""
    module = Extra(3)
    path = tfckpt.Saver({"model": module}).save(tmp_path / "saver")
    other = Extra(4)
    state = loaded(path, {"model": other.state_dict()})
    other.load_state_dict(state["model"])
    assert torch.equal(other.b.weight, module.b.weight)
    assert other.value == 3
    save({"model": module.state_dict()}, storage_writer=tfckpt.TFCheckpointWriter(tmp_path / "dcp"))
    again = Extra(5)
    tfckpt.Saver({"model": again}).restore(str(tmp_path / "dcp"))
    assert torch.equal(again.a.weight, module.a.weight)
    assert again.value == 3


def test_an_application_in_one_object(tmp_path: Path) -> None:
    """{"app": {"model": ..., "optim": ...}}, as a Stateful object of the program gives it, is restored by a Saver."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    from torch.distributed.checkpoint.state_dict import get_state_dict

    of_model, of_optimizer = get_state_dict(model, optimizer)
    app = {"model": of_model, "optim": of_optimizer, "epoch": 4}
    path = str(tmp_path / "m")
    save({"app": app}, storage_writer=tfckpt.TFCheckpointWriter(path))
    other = nn.Linear(3, 2)
    theirs = torch.optim.SGD(other.parameters(), lr=0.2, momentum=0.9)
    everything = {"model": other, "optim": theirs, "epoch": 0}
    tfckpt.Saver({"app": everything}).restore(path)
    assert everything["epoch"] == 4
    assert torch.equal(other.weight, model.weight)
    assert theirs.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", ["momentum", "no momentum"])
def test_optimizers_with_and_without_state(kind: str, named: bool, tmp_path: Path) -> None:
    """An SGD without momentum has no tensors in its state; one that was built with names has names in its groups."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def made(lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(3, 2)
        parameters: Any = list(model.named_parameters()) if named else model.parameters()
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9 if kind == "momentum" else 0.0)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return model, optimizer

    model, optimizer = made(0.1)
    of_model, of_optimizer = get_state_dict(model, optimizer)
    by_ranks, by_saver = str(tmp_path / "ranks"), str(tmp_path / "saver")
    save({"model": of_model, "optim": of_optimizer}, storage_writer=tfckpt.TFCheckpointWriter(by_ranks))
    tfckpt.Saver({"model": model, "optim": optimizer}).save(by_saver)
    other, theirs = made(0.2)
    tfckpt.Saver({"model": other, "optim": theirs}).restore(by_ranks)
    assert in_order(theirs) == in_order(optimizer)
    for path in (by_ranks, by_saver):
        other, theirs = made(0.2)
        of_model, of_optimizer = get_state_dict(other, theirs)
        state: dict[str, Any] = {"model": of_model, "optim": of_optimizer}
        loaded(path, state)
        set_state_dict(other, theirs, model_state_dict=state["model"], optim_state_dict=state["optim"])
        assert in_order(theirs) == in_order(optimizer)


def test_strings_of_tensorflow(tmp_path: Path) -> None:
    """Strings that are not a document are bytes, and arrays of them."""
    strings = np.array([b"a", b"b"], dtype=object)
    path = tfckpt.save_file({"one": "text", "several": strings, "w": numbered((2,))}, tmp_path / "m")
    state = loaded(path, {"one": None, "several": None, "w": zeros(2)})
    assert state["one"] == b"text"
    assert state["several"].tolist() == [b"a", b"b"]


def test_object_based_checkpoints(tmp_path: Path) -> None:
    """A tensor is found by the path of its object, as in CheckpointReader."""
    path = tfckpt.Checkpoint(net=nn.Linear(3, 2)).save(tmp_path / "m")
    state = loaded(path, {"net": {"weight": zeros(2, 3)}, "net.bias": zeros(2)})
    with tfckpt.load_checkpoint(path) as reader:
        assert torch.equal(state["net"]["weight"], reader["net/weight"])
        assert torch.equal(state["net.bias"], reader["net.bias"])


def test_a_document_that_refers_to_nothing(tmp_path: Path) -> None:
    """It is a DataLossError with its name."""
    path = tfckpt.save_file({"a": '{"b": {"$tensor": "a/b"}}'}, tmp_path / "m")
    with pytest.raises(CheckpointException, match=re.escape('state "a": the state refers to a tensor "a/b"')):
        loaded(path, {"a": {"b": zeros(2)}})


def test_a_mapper(tmp_path: Path) -> None:
    """Names and layouts of a TensorFlow model: moved axes, joined and split tensors, and what needs a layout."""
    stored = {
        "dense/kernel": numbered((3, 4)),
        "dense/bias": numbered((4,)),
        "conv/kernel": numbered((2, 2, 3, 4)),
        "q": numbered((3, 2)),
        "k": numbered((3, 2)) + 10,
        "gates/kernel": numbered((3, 8)),
        "gates/bias": numbered((8,)),
        "both/kernel": numbered((3, 4)),
        "unused": numbered((1,)),
    }
    path = tfckpt.save_file(stored, tmp_path / "m")
    rules: list[Any] = [
        ("dense/kernel", "fc.weight", "dense"),
        ("(.*)/bias", r"\1.bias"),
        ("conv/kernel", "conv.weight", "conv2d"),
        tfckpt.KeyRule(("q", "k"), "qk", "dense"),
        ("gates/kernel", "lstm", "lstm_tf1"),
        tfckpt.KeyRule("both/kernel", ["left", "right"], "dense", sizes=(1, 3)),
        ("unused", None),
    ]
    wanted = {
        "fc.weight": stored["dense/kernel"].T,
        "dense.bias": stored["dense/bias"],
        "conv.weight": stored["conv/kernel"].permute(3, 2, 0, 1),
        "qk": torch.cat([stored["q"].T, stored["k"].T]),
        "lstm": torch.cat([stored["gates/kernel"].T.chunk(4)[gate] for gate in (0, 2, 1, 3)]),
        "left": stored["both/kernel"].T[:1],
        "right": stored["both/kernel"].T[1:],
    }
    for below in (False, True):
        state: dict[str, Any] = {name: torch.zeros_like(value) for name, value in wanted.items()}
        state = loaded(path, {"model": state} if below else state, mapper=tfckpt.KeyMapper(rules))
        found = state["model"] if below else state
        for name, value in wanted.items():
            assert torch.equal(found[name], value), name
    with pytest.raises(CheckpointException, match="Missing key in checkpoint state_dict: unused"):
        loaded(path, {"unused": zeros(1)}, mapper=rules)
    with pytest.raises(CheckpointException, match=r'the order of the axes of "dense/kernel", \[3,4\], is not known'):
        loaded(path, {"fc.weight": zeros(4, 3)}, mapper={"dense/kernel": "fc.weight"})
    with pytest.raises(CheckpointException, match="would both be loaded"):
        loaded(path, {"a": {"fc.weight": zeros(4, 3)}, "b": {"fc.weight": zeros(4, 3)}}, mapper=rules)
