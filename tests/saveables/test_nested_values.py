"""What can be saved, one row for each kind of value, by Saver and by Checkpoint. The table is in docs/objects.md."""

import datetime as dt
import enum
import logging
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from both_ways import in_both_ways, moved, moved_value, restored, saved
from torch import nn

import torch_tfckpt as tfckpt

Point = namedtuple("Point", "x y")  # the untyped form has the same methods


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


# Values, and a present value of the same type.
PLAIN: list[tuple[object, object]] = [
    (None, 1), (True, False), (3, 0), (10**30, 0), (0.1, 0.0), (float("inf"), 0.0), (1 + 2j, 0j), ("text", ""),
    (b"\x00", b""), (torch.bfloat16, torch.half), (torch.device("cpu"), torch.device("meta")),
    (torch.Size([2]), torch.Size([])), (torch.strided, torch.sparse_coo), (torch.channels_last, None),
    ({1, "a"}, set()), (frozenset({1}), frozenset()), (deque([1.0], 3), deque(maxlen=3)),
    (defaultdict(int, a=1), defaultdict(int)), (OrderedDict(b=1, a=2), OrderedDict()), (Counter("aab"), Counter()),
    ((1, (2, 3)), ()), ([1, [2]], []), ({"a": {1: 2}}, {}), (Path("a/b"), Path()), (range(3), range(0)),
    (slice(1, None), slice(0)), (bytearray(b"a"), bytearray()), (dt.datetime(2026, 1, 1), dt.datetime(1, 1, 1)),
    (dt.date(2026, 1, 1), dt.date(1, 1, 1)), (dt.timedelta(1), dt.timedelta()), (Fraction(1, 3), Fraction(0)),
    (Decimal("1.10"), Decimal(0)), (np.float32(1.5), np.float32(0)), (np.str_("a"), np.str_("")),
    (np.int64(5), np.int64(0)), (Point(1, Level.HIGH), Point(0, Level.LOW)), (Level.HIGH, Level.LOW),
    (Mode.SLOW, Mode.FAST),
]  # fmt: skip
# Not the values: the order in a set differs between processes, and all must collect the same tests.
PLAIN_IDS = [f"{type(value).__name__}-{number}" for number, (value, _) in enumerate(PLAIN)]


@in_both_ways
@pytest.mark.parametrize(("value", "present"), PLAIN, ids=PLAIN_IDS)
def test_plain_values_come_back_equal_and_of_the_same_type(
    tmp_path: Path, kind: str, value: object, present: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a word in the log."""
    with caplog.at_level(logging.WARNING):
        back = moved_value(kind, value, present, tmp_path)
    assert type(back) is type(value) and back == value
    if isinstance(back, deque | defaultdict):
        assert repr(back) == repr(value)  # with maxlen, and with the factory
    assert not caplog.records


@in_both_ways
def test_types_of_the_program_need_a_present_value(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Else a named tuple is a tuple, and a member of an enumeration its value; a warning names them."""
    assert moved_value(kind, Point(1, 2), None, tmp_path) == (1, 2)
    assert "v was a Point and is restored as a tuple" in caplog.text or "was a Point" in caplog.text
    caplog.clear()
    assert moved_value(kind, Level.HIGH, None, tmp_path) == 2
    assert 'was a Level and is restored as "2"' in caplog.text


@in_both_ways
@pytest.mark.parametrize(
    "value",
    [object(), lambda: 1, nn.ReLU, defaultdict(lambda: 1, a=1), torch.Generator(), {Level.LOW}, {"a": [object()]}],
    ids=["object", "function", "class", "defaultdict", "generator", "enumeration in a set", "nested"],
)
def test_other_values_are_refused_by_name(tmp_path: Path, kind: str, value: object) -> None:
    """At construction or at the first save; nothing is written."""
    with pytest.raises((TypeError, ValueError), match=r'state "(s/v|s|v|s/.*py_state.*)|expecting [vs0a] '):
        saved(kind, {"s": {"v": value}}, tmp_path)
    assert not list(tmp_path.iterdir())


def net() -> nn.Linear:
    return nn.Linear(2, 2)


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    return optimizer


def both(model: nn.Module) -> dict[str, Any]:
    return {"model": model, "opt": stepped(model), "epoch": 3, "seen": {1}, "best": torch.ones(1)}


def assert_equal(
    one: nn.Module, of_one: torch.optim.Optimizer, other: nn.Module, of_other: torch.optim.Optimizer
) -> None:
    for here, there in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(here, there)
        assert torch.equal(of_one.state[here]["exp_avg"], of_other.state[there]["exp_avg"])


@in_both_ways
def test_nested_dicts_of_objects(tmp_path: Path, kind: str) -> None:
    """As DCP and GANs have them; plain values in them are replaced, too."""
    first = {"G": both(net()), "D": {"model": (model := net()), "opt": [stepped(model)]}}
    start = {"epoch": 0, "seen": set(), "best": torch.zeros(1)}
    second = {"G": {**both(net()), **start}, "D": {"model": (model := net()), "opt": [stepped(model)]}}
    moved(kind, first, second, tmp_path)
    one, other = first["G"], second["G"]
    assert_equal(one["model"], one["opt"], other["model"], other["opt"])
    assert (other["epoch"], other["seen"], other["best"].tolist()) == (3, {1}, [1.0])
    one, other = first["D"], second["D"]
    assert_equal(one["model"], one["opt"][0], other["model"], other["opt"][0])


@in_both_ways
def test_lists_of_optimizers(tmp_path: Path, kind: str) -> None:
    """One for each parameter, as with optimizers that step in the backward pass."""
    models = [net(), net()]
    opts = [[torch.optim.Adam([each]) for each in model.parameters()] for model in models]
    for optimizer in opts[0]:
        parameter = optimizer.param_groups[0]["params"][0]
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    one, other = ({"m": model, "opts": optimizers} for model, optimizers in zip(models, opts, strict=True))
    moved(kind, one, other, tmp_path)
    for here, there in zip(*opts, strict=True):
        pair = (each.state[each.param_groups[0]["params"][0]]["exp_avg"] for each in (here, there))
        assert torch.equal(*pair)


def test_names_of_nested_values(tmp_path: Path) -> None:
    """The same as of one flat dict, so that either form restores the other."""
    model, other = net(), net()
    path = saved("Saver", {"G": {"model": model, "opt": stepped(model), "epoch": 3}, "x": (torch.ones(1),)}, tmp_path)
    keys = [name for name, _ in tfckpt.list_variables(path)]
    assert {"G/model/weight", "G/opt", "G/opt/state/weight/exp_avg", "G/epoch", "x/0"} <= set(keys)
    restored("Saver", path, {"G/model": other, "G/opt": stepped(other)})
    assert torch.equal(other.weight, model.weight)
    with pytest.raises(ValueError, match="At least two variables have the same name: G/model"):
        tfckpt.Saver({"G": {"model": model}, "G/model": other})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((net(), 3), r'"x/1" has type int and is in a tuple.*Use a list'),
        ({(1, 2): net()}, r"its key \(1, 2\) is a tuple.*use str"),
        ([net(), object()], '"x/1" is a builtins.object'),
    ],
)
def test_nested_values_that_cannot_be_saved(value: object, text: str) -> None:
    """With their names and what to do."""
    with pytest.raises(TypeError, match=text):
        tfckpt.Saver({"x": value})


@in_both_ways
def test_a_container_that_contains_itself_is_refused(tmp_path: Path, kind: str) -> None:
    """Not a RecursionError."""
    endless: list[Any] = [net()]
    endless.append(endless)
    if kind == "Saver":
        with pytest.raises(tfckpt.InvalidArgumentError, match=r'"x.*" is nested deeper than 100 levels'):
            saved(kind, {"x": endless}, tmp_path)
    else:  # a graph of objects may have cycles
        moved(kind, {"x": endless}, {"x": endless}, tmp_path)


@in_both_ways
def test_none_is_a_part_that_is_switched_off(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is saved, and what is stored for it is not restored, which is logged."""
    model = net()
    optimizer = stepped(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    moved(kind, {"m": model, "scheduler": None}, {"m": model, "scheduler": None}, tmp_path)
    assert not caplog.records
    (tmp_path / "on").mkdir()
    path = saved(kind, {"m": model, "scheduler": scheduler}, tmp_path / "on")
    restored(kind, path, {"m": model, "scheduler": None}, consumed=False)
    if kind == "Saver":
        assert '"scheduler" is stored, but is None in var_list' in caplog.text


@in_both_ways
@pytest.mark.parametrize(
    "nest",
    [lambda sd: sd, lambda sd: {"a": sd}, lambda sd: [sd], lambda sd: {"model": net(), "o": sd}],
    ids=["itself", "in a dict", "in a list", "next to objects"],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_a_snapshot_of_an_optimizer_is_refused(
    tmp_path: Path, kind: str, nest: Callable[[Any], object], steps: int
) -> None:
    """Before and after the first step; the fix is in the message. An object's state_dict may contain one."""
    model = net()
    optimizer = stepped(model) if steps else torch.optim.Adam(model.parameters())
    with pytest.raises(
        tfckpt.InvalidArgumentError, match=r"state_dict\(\) of an optimizer, a snapshot.*Pass the optimizer"
    ):
        saved(kind, {"model": model, "optimizer": nest(optimizer.state_dict())}, tmp_path)


@in_both_ways
def test_the_state_dict_of_a_module_is_restored_in_place(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It references the module's tensors. A dict of copies has the values of the copies."""
    model, fresh = net(), net()
    moved(kind, {"m": model.state_dict()}, {"m": fresh.state_dict()}, tmp_path)
    assert torch.equal(fresh.weight, model.weight)
    if kind == "Saver":
        assert '"m" is the state_dict() of a module' in caplog.text
    copies = {name: torch.zeros_like(value) for name, value in fresh.state_dict().items()}
    moved(kind, {"m": {**model.state_dict()}}, {"m": copies}, tmp_path)
    assert torch.equal(copies["weight"], model.weight)


def test_an_old_snapshot_can_be_read_into_a_dict(tmp_path: Path) -> None:
    """Earlier versions stored it, by positions."""
    text = '{"state": {"$dict": [[0, {"step": 1}]]}, "param_groups": [{"lr": 0.5, "params": [0]}]}'
    path = tfckpt.save_file({"optimizer": text}, tmp_path / "old")
    packed: dict[str, Any] = {}
    tfckpt.Saver({"optimizer": packed}).restore(path)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    optimizer.load_state_dict(packed)
    assert optimizer.param_groups[0]["lr"] == 0.5


@in_both_ways
def test_lists_of_tensors_are_restored_in_place(tmp_path: Path, kind: str) -> None:
    """A list of tensors is not slices. Other references to them see the values, on every device and in every mode."""
    tensors = [torch.zeros(2), torch.zeros(())]
    other = [torch.zeros(2), torch.zeros(())]
    moved(kind, {"x": [torch.ones(2), torch.tensor(5.0)]}, {"x": other if kind == "Saver" else tensors}, tmp_path)
    held = other if kind == "Saver" else tensors
    first = held[0]
    assert first.tolist() == [1, 1] and held[1].item() == 5
    moved("Saver", {"y": [torch.full((2,), 7.0), 3]}, {"y": (items := [first, 0])}, tmp_path)
    assert items[0] is first and first.tolist() == [7, 7] and items[1] == 3


def test_tensors_that_cannot_take_the_value_are_replaced(tmp_path: Path) -> None:
    """Of another shape or dtype, expanded, or on the meta device."""
    stored = {"a": torch.ones(3), "b": torch.ones(2), "c": torch.ones(2), "d": torch.ones(2), "e": torch.ones(2)}
    here = {
        "a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.int64), "c": torch.zeros(1).expand(2),
        "d": 0, "e": torch.zeros(2, requires_grad=True),
    }  # fmt: skip
    kept = here["e"]
    moved("Saver", {"x": stored}, {"x": here}, tmp_path)
    assert all(torch.equal(torch.as_tensor(here[name]), stored[name]) for name in stored)
    assert here["e"] is kept


@in_both_ways
@pytest.mark.parametrize(
    ("value", "present"),
    [
        ({1, 2}, {5}),
        (deque([1, 2], 4), deque([9], 4)),
        ({"a": {1}}, {"b": 1}),
        (defaultdict(int, a=1), defaultdict(int)),
    ],
    ids=["set", "deque", "dict", "defaultdict"],
)
def test_containers_keep_their_identity(tmp_path: Path, kind: str, value: Any, present: Any) -> None:
    """As values of their own, they get new contents."""
    moved(kind, {"x": value}, {"x": present}, tmp_path)
    assert present == value


def test_a_container_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Before anything changes."""
    path = saved("Saver", {"x": [1, 2, 3]}, tmp_path)
    for present in ({1}, deque([0], 2), {"a": 1}):
        with pytest.raises(tfckpt.InvalidArgumentError, match='state "x"'):
            restored("Saver", path, {"x": present})
    path = saved("Saver", {"x": deque([1, 2, 3])}, tmp_path)
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"stores 3 elements.*maxlen=2"):
        restored("Saver", path, {"x": deque([0], 2)})
