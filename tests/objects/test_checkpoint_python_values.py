"""Values other than tensors: plain values, containers, objects with a state or a string."""

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.format.object_graph import ObjectGraph
from torch_tfckpt.objects.checkpoint import Checkpoint

STATE = "/.ATTRIBUTES/py_state"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def text_at(path: str, key: str) -> object:
    value = tfckpt.load_file(path, names=[key])[key]
    assert isinstance(value, np.ndarray)
    return json.loads(value.item())


def keys_of(path: str) -> list[str]:
    return [key for key in tfckpt.load_file(path) if key != "_CHECKPOINTABLE_OBJECT_GRAPH"]


def graph_of(path: str) -> ObjectGraph:
    with tfckpt.load_checkpoint(path) as reader:
        assert reader.object_graph is not None
        return reader.object_graph


SCALARS = [None, True, 3, 2**80, 0.1, float("inf"), "text größe", b"\x00\xff", 1 + 2j, np.float32(0.5), np.int64(3)]


@pytest.mark.parametrize("value", SCALARS, ids=[repr(value)[:20] for value in SCALARS])
def test_a_scalar(tmp_path: Path, value: object) -> None:
    """A scalar of any plain type replaces the attribute, whatever its current type."""
    checkpoint: Any = Checkpoint(value=value)
    path = checkpoint.write(tmp_path / "m")
    assert keys_of(path) in (["value" + STATE], ["value" + STATE, f"value{STATE}/value"])
    for other in (17, "other", None):
        checkpoint.value = other
        checkpoint.read(path).assert_consumed()
        assert checkpoint.value == value
        assert type(checkpoint.value) is type(value)


def test_nan(tmp_path: Path) -> None:
    """NaN, the one number that is not equal to itself, is restored."""
    checkpoint: Any = Checkpoint(value=float("nan"))
    path = checkpoint.write(tmp_path / "m")
    checkpoint.value = 0.0
    checkpoint.read(path).assert_consumed()
    assert checkpoint.value != checkpoint.value


def test_a_plain_container_is_one_value(tmp_path: Path) -> None:
    """It is stored as one string; the same dict and list objects get the contents."""
    config = {"lr": 0.1, "betas": [0.9, 0.999], "names": {"a": None, "b": (1, 2)}, 3: "three"}
    history = [1, [2.5, "x"], {"k": b"v"}, np.arange(3)]
    checkpoint: Any = Checkpoint(config=config, history=history)
    path = checkpoint.write(tmp_path / "m")
    assert [key for key in keys_of(path) if key.endswith("py_state")] == ["config" + STATE, "history" + STATE]
    assert text_at(path, "config" + STATE)
    config.clear()
    config["another"] = 1
    history[:] = [7]
    checkpoint.read(path).assert_consumed()
    assert config == {"lr": 0.1, "betas": [0.9, 0.999], "names": {"a": None, "b": (1, 2)}, 3: "three"}
    assert history[:3] == [1, [2.5, "x"], {"k": b"v"}]
    assert np.array_equal(history[3], np.arange(3))  # type: ignore[arg-type]
    assert checkpoint.config is config and checkpoint.history is history


def test_order_of_keys(tmp_path: Path) -> None:
    """A dict is restored in the order in which it was saved."""
    config = dict.fromkeys("zaqm", 1)
    checkpoint = Checkpoint(config=config)
    path = checkpoint.write(tmp_path / "m")
    config.clear()
    checkpoint.read(path)
    assert list(config) == list("zaqm")


def test_mixed_containers(tmp_path: Path) -> None:
    """A container with a tensor in it is a node, and so is each of its items; plain ones are strings."""
    ema, layer = torch.tensor([1.0, 2.0]), nn.Linear(1, 1)
    extra: dict[str, Any] = {
        "lr": 0.5, "ema": ema, "plain": {"a": [1, 2]}, "list": [3, layer, "x", [torch.tensor(5)]], "none": None,
    }  # fmt: skip
    checkpoint = Checkpoint(extra=extra)
    path = checkpoint.write(tmp_path / "m")
    assert keys_of(path) == sorted(
        f"extra/{name}"
        for name in (
            "lr" + STATE, "ema" + VALUE, "plain" + STATE, "none" + STATE, "list/0" + STATE, "list/1/weight" + VALUE,
            "list/1/bias" + VALUE, "list/2" + STATE, "list/3/0" + VALUE,
        )
    )  # fmt: skip
    ema.zero_()
    inner, plain = extra["list"], extra["plain"]
    extra.update(lr=9.0, none="some")
    plain["a"] = None
    inner[0], inner[2] = 0, 0
    inner[3][0].zero_()
    checkpoint.read(path).assert_consumed()
    assert extra["ema"] is ema and ema.tolist() == [1.0, 2.0]
    assert (extra["lr"], extra["none"], inner[0], inner[2], inner[3][0].item()) == (0.5, None, 3, "x", 5)
    assert extra["plain"] is plain and plain == {"a": [1, 2]}
    assert inner[1] is layer


def test_empty_containers_have_no_values(tmp_path: Path) -> None:
    """They have no key and no attribute and need no match; a non-empty one is emptied."""
    config, history = {"a": 1}, [1]
    path = Checkpoint(config={}, history=[], v=torch.tensor(0.0)).write(tmp_path / "m")
    assert keys_of(path) == ["v" + VALUE]
    graph = graph_of(path)
    assert [node.has_checkpoint_values for node in graph.nodes] == [True, False, False, True]
    Checkpoint(config=config, history=history, v=torch.tensor(0.0)).read(path).assert_consumed()
    assert (config, history) == ({}, [])
    full = Checkpoint(config={"a": 1}, v=torch.tensor(0.0)).write(tmp_path / "full")
    config.clear()
    Checkpoint(config=config, v=torch.tensor(0.0)).read(full).assert_consumed()
    assert config == {"a": 1}


@pytest.mark.parametrize("kind", [OrderedDict, Counter])
def test_kinds_of_dicts(tmp_path: Path, kind: type[dict[str, Any]]) -> None:
    """An OrderedDict or Counter remains the same object and gets the contents."""
    held = kind({"a": 3, "b": 1})
    checkpoint = Checkpoint(held=held)
    path = checkpoint.write(tmp_path / "m")
    held.clear()
    held["z"] = 1
    checkpoint.read(path).assert_consumed()
    assert held == {"a": 3, "b": 1} and type(held) is kind


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "thing"),
        (lambda: 0, "thing"),
        ({1, (2, nn.Linear)}, "thing"),
        (nn.Linear, "thing"),
        (torch.Generator(), "thing"),
        (np.array(["a"], dtype=object), "thing"),
        ({"a": {"b": object()}}, "b"),
        ([torch.tensor(0.0), object()], "1"),
    ],
    ids=["object", "function", "set", "class", "generator", "array of objects", "in dicts", "with a tensor"],
)
def test_values_that_cannot_be_saved(tmp_path: Path, value: object, named: str) -> None:
    """A ValueError names the value, at construction or when written; nothing is written."""
    with pytest.raises((ValueError, TypeError), match=r"trackable object|cannot be stored") as caught:
        Checkpoint(thing=value).write(tmp_path / "m")
    assert named in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_error_equals_tensorflows() -> None:
    """The error has TensorFlow's words."""
    with pytest.raises(ValueError, match="was expecting thing to be a trackable object"):
        Checkpoint(thing=object())
    checkpoint = Checkpoint()
    with pytest.raises(ValueError, match="was expecting thing to be a trackable object"):
        checkpoint.thing = object()
    assert not hasattr(checkpoint, "thing")


def test_keys_that_are_not_strings(tmp_path: Path) -> None:
    """A dict with a tensor needs string keys; a plain one can have any keys."""
    for unnamed in ({1: torch.tensor(0.0)}, {"a": torch.tensor(0.0), 2: [nn.Linear(1, 1)]}):
        with pytest.raises(ValueError, match="Unable to save the object"):
            Checkpoint(held=unnamed).write(tmp_path / "m")
    held = {1: "one", (2, 3): None, None: True}
    checkpoint = Checkpoint(held=held)
    path = checkpoint.write(tmp_path / "m")
    held.clear()
    checkpoint.read(path).assert_consumed()
    assert held == {1: "one", (2, 3): None, None: True}


def test_a_container_that_holds_itself(tmp_path: Path) -> None:
    """Plain ones are rejected; with a tensor in it, it is a loop like any other."""
    endless: list[object] = [1]
    endless.append(endless)
    with pytest.raises(ValueError):
        Checkpoint(endless=endless).write(tmp_path / "m")
    v = torch.tensor(1.0)
    held: dict[str, object] = {"v": v}
    held["self"] = held
    path = Checkpoint(held=held).write(tmp_path / "m")
    v.zero_()
    Checkpoint(held=held).read(path).assert_consumed()
    assert v.item() == 1.0


def test_a_dict_restored_into_a_list(tmp_path: Path) -> None:
    """A clear error is raised, and nothing is assigned."""
    path = Checkpoint(held={"a": 1}, v=torch.tensor(1.0)).write(tmp_path / "m")
    v, held = torch.tensor(0.0), [3]
    with pytest.raises(tfckpt.InvalidArgumentError, match="dict"):
        Checkpoint(held=held, v=v).read(path)
    assert (v.item(), held) == (0.0, [3])


def test_a_scheduler_and_random_numbers(tmp_path: Path) -> None:
    """Objects with state_dict and load_state_dict are stored as a string and separate tensors."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1.0, 0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    rng = tfckpt.RNGState()
    checkpoint = Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, rng=rng)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    path = checkpoint.write(tmp_path / "m")
    expected = scheduler.state_dict(), torch.rand(3).tolist()
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    checkpoint.read(path).assert_consumed()
    assert (scheduler.state_dict(), torch.rand(3).tolist()) == expected
    assert optimizer.param_groups[0]["lr"] == 0.5


class Stateful:
    """Object whose state has nested tensors."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)


def test_a_state_with_tensors(tmp_path: Path) -> None:
    """Each tensor of a state is a tensor of the checkpoint; their number may change."""
    one = Stateful({"step": 3, "ema": {"a/b": torch.tensor([1.0]), "deep": [torch.tensor(2), (torch.tensor(True),)]}})
    path = Checkpoint(one=one).write(tmp_path / "m")
    assert len(keys_of(path)) == 4
    other = Stateful({"step": 0})
    Checkpoint(one=other).read(path).assert_consumed()
    ema = other.state["ema"]
    assert (other.state["step"], ema["a/b"].tolist(), ema["deep"][0].item(), ema["deep"][1][0].item()) == (3, [1], 2, 1)


class Text:
    """Object that serializes itself to a string."""

    def __init__(self, text: str) -> None:
        self.text = text

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: str) -> None:
        self.text = string_value


def test_a_string_is_stored_unchanged(tmp_path: Path) -> None:
    """`serialize` is called at each save, `deserialize` at each restore."""
    state = Text("größe\n\0")
    checkpoint = Checkpoint(state=state)
    path = checkpoint.write(tmp_path / "m")
    stored = tfckpt.load_file(path)["state" + STATE]
    assert isinstance(stored, np.ndarray) and stored.item() == "größe\n\0".encode()
    state.text = ""
    checkpoint.read(path).assert_consumed()
    assert state.text == "größe\n\0"


class WithExtra(nn.Linear):
    """Module with extra state."""

    def __init__(self, extra: object) -> None:
        super().__init__(1, 1)
        self.extra = extra

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state


def test_extra_state(tmp_path: Path) -> None:
    """The extra state of each module and submodule is a child "_extra_state"."""
    model = nn.Sequential(WithExtra({"n": 3, "t": torch.tensor(4.0)}))
    path = Checkpoint(model=model).write(tmp_path / "m")
    assert "model/0/_extra_state" + STATE in keys_of(path)
    other = WithExtra(None)
    Checkpoint(model=nn.Sequential(other)).read(path).assert_consumed()
    assert isinstance(other.extra, dict)
    assert (other.extra["n"], other.extra["t"].item()) == (3, 4.0)


def test_tuples(tmp_path: Path) -> None:
    """Tensors in tuples are restored in place; plain values in them are rejected when saved."""
    pair = (torch.tensor(1.0), [torch.tensor(2.0)])
    path = Checkpoint(pair=pair).write(tmp_path / "m")
    assert keys_of(path) == ["pair/0" + VALUE, "pair/1/0" + VALUE]
    pair[0].zero_(), pair[1][0].zero_()
    Checkpoint(pair=pair).read(path).assert_consumed()
    assert (pair[0].item(), pair[1][0].item()) == (1.0, 2.0)
    with pytest.raises(ValueError, match="tuple"):
        Checkpoint(pair=(torch.tensor(1.0), 3)).write(tmp_path / "n")


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=3)
)
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


CONTAINERS = st.dictionaries(st.text(max_size=4), NESTED, max_size=4) | st.lists(NESTED, max_size=4)


def has_a_scalar(value: object) -> bool:
    """Return whether it contains anything but empty containers."""
    if isinstance(value, dict | list):
        return any(map(has_a_scalar, value.values() if isinstance(value, dict) else value))
    return True


@given(value=CONTAINERS.filter(has_a_scalar))
def test_any_plain_container_is_restored(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any] | list[Any]
) -> None:
    """Written, emptied and restored it is equal and the same object; nested empty ones have no value."""
    directory = tmp_path_factory.getbasetemp() / "plain"
    directory.mkdir(exist_ok=True)
    expected = repr(value)
    checkpoint = Checkpoint(value=value, beside=torch.tensor(0.0))
    path = checkpoint.write(directory / "m")
    value.clear()
    checkpoint.read(path).assert_consumed()
    assert repr(value) == expected
