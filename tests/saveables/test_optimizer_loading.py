"""State of optimizers comes back bit for bit, whatever its dtype, and the optimizer's own code runs."""

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from both_ways import in_both_ways, moved
from torch import nn

from torch_tfckpt.saveables.optimizer_loading import load_exactly, with_strides_of

Make = Callable[[torch.Tensor], dict[str, Any]]

STATES: dict[str, tuple[torch.dtype, Make]] = {
    "fp32 masters of bf16": (torch.bfloat16, lambda p: {"master": torch.full_like(p, 1 / 3, dtype=torch.float32)}),
    "bf16 moments of fp32": (torch.float32, lambda p: {"m": torch.full_like(p, 1 / 3, dtype=torch.bfloat16)}),
    "masks": (torch.float16, lambda p: {"mask": p > 0, "bytes": torch.ones_like(p, dtype=torch.uint8)}),
    "int8 and scales": (
        torch.float32,
        lambda p: {"q": torch.full_like(p, 7, dtype=torch.int8), "scale": p.new_ones(2)},
    ),
    "complex": (torch.float32, lambda p: {"z": torch.full_like(p, 1 + 2j, dtype=torch.complex64)}),
    "float64 in a list": (torch.float32, lambda p: {"old": [torch.full((3,), 1 / 3, dtype=torch.float64)]}),
    "int64 step": (torch.float32, lambda p: {"step": torch.tensor(2**40 + 1), "count": torch.tensor(2**40 + 1)}),
    "float8": (torch.float32, lambda p: {"f": torch.full_like(p, 1.5, dtype=torch.float32).to(torch.float8_e4m3fn)}),
    "nested": (torch.bfloat16, lambda p: {"a": {"b": {"c": torch.full((2,), 1 / 3)}}, "t": (torch.ones(1), 2)}),
    "strings": (torch.float32, lambda p: {"mode": "fast", "raw": b"\x00\xff", "n": 3, "none": None}),
    "of a complex parameter": (torch.complex64, lambda p: {"norm": torch.full((2,), 1 / 3, dtype=torch.float64)}),
}


class Custom(torch.optim.Optimizer):
    """An optimizer whose state is given."""

    def __init__(self, params: Iterable[torch.Tensor], make: Make) -> None:
        super().__init__(params, {"lr": 0.1})
        self._make = make

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._make(parameter.detach())


def flat(value: object, path: str = "") -> dict[str, object]:
    """Return every leaf by its path; tensors as dtype, shape and bytes."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        kind = {f"{path}()": type(value)}
        return kind | {k: v for n, item in enumerate(value) for k, v in flat(item, f"{path}/{n}").items()}
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().view(-1).view(torch.uint8).tolist()
        return {path: (value.dtype, tuple(value.shape), data)}
    return {path: (type(value), value)}


@in_both_ways
@pytest.mark.parametrize("state", STATES)
def test_state_keeps_its_dtype(tmp_path: Path, kind: str, state: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bit for bit, with nothing to report."""
    dtype, make = STATES[state]
    model, fresh = (
        nn.ParameterDict({"w": torch.ones(2, 3, dtype=dtype), "b": torch.ones(2, dtype=dtype)}) for _ in "ab"
    )
    saved, restored = Custom(model.values(), make), Custom(fresh.values(), lambda p: {})
    saved.step()
    with caplog.at_level(logging.WARNING):
        moved(kind, {"m": model, "o": saved}, {"m": fresh, "o": restored}, tmp_path)
    for here, there in zip(fresh.values(), model.values(), strict=True):
        assert flat(restored.state[here]) == flat(saved.state[there])
    assert not caplog.records


def test_everything_else_is_as_torch_does_it() -> None:
    """For state of the parameter's dtype the result is that of load_state_dict, for several optimizers of torch."""
    for make in (torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam):
        model = nn.Linear(3, 2)
        optimizer = make(model.parameters(), lr=0.1)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        one, other = (make(model.parameters(), lr=0.5) for _ in "ab")
        packed = copy.deepcopy(optimizer.state_dict())
        one.load_state_dict(copy.deepcopy(packed))
        assert load_exactly(other, packed) == []
        assert flat(one.state_dict()) == flat(other.state_dict())


def test_hooks_and_overrides_run_and_their_changes_stay() -> None:
    """A pre-hook changes what is loaded; a post-hook and an override change the result; no hook of ours remains."""
    calls: list[str] = []

    class Own(Custom):
        def load_state_dict(self, state_dict: Any) -> None:
            super().load_state_dict(state_dict)
            calls.append("override")
            for state in self.state.values():
                state["added"] = state["m"].dtype

        def __setstate__(self, state: Any) -> None:
            super().__setstate__(state)
            calls.append("setstate")

    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = Own([parameter], lambda p: {})

    def before(_: Any, state_dict: Any) -> Any:
        calls.append("pre")
        return {**state_dict, "state": {0: {"m": state_dict["state"][0]["m"] * 3}}}

    def after(optimizer: Any) -> None:
        calls.append("post")
        optimizer.state[parameter]["seen"] = optimizer.state[parameter]["m"].dtype

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    hooks = optimizer._optimizer_load_state_dict_pre_hooks, optimizer._optimizer_load_state_dict_post_hooks
    packed = {"state": {0: {"m": torch.full((2,), 1 / 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    assert load_exactly(optimizer, packed) == []
    assert calls == ["pre", "setstate", "post", "override"]
    state = optimizer.state[parameter]
    assert torch.equal(state["m"], torch.full((2,), 1 / 3) * 3) and state["m"].dtype == torch.float32
    assert (state["seen"], state["added"]) == (torch.float32, torch.float32)
    assert [len(each) for each in hooks] == [1, 1]


def test_what_an_override_changes_is_reported() -> None:
    """An override that casts by itself, and drops a value."""

    class Casts(Custom):
        def load_state_dict(self, state_dict: Any) -> None:
            parameter = self.param_groups[0]["params"][0]
            self.state[parameter] = {"m": state_dict["state"][0]["m"].half()}

    packed = {"state": {0: {"m": torch.ones(2), "v": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    lines = load_exactly(Casts([nn.Parameter(torch.ones(2))], lambda p: {}), packed)
    assert lines == ["state/0/m was torch.float32 [2] and is torch.float16 [2]", "state/0/v is missing"]


@in_both_ways
def test_strides_follow_the_parameter(tmp_path: Path, kind: str) -> None:
    """Moments of a channels_last parameter are channels_last again, as those that torch creates."""
    model, fresh = (nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in "ab")  # type: ignore[call-overload]
    saved, restored = (torch.optim.Adam(each.parameters()) for each in (model, fresh))
    model(torch.ones(1, 3, 5, 5)).sum().backward()
    saved.step()
    moved(kind, {"m": model, "o": saved}, {"m": fresh, "o": restored}, tmp_path)
    there, here = saved.state[model.weight]["exp_avg"], restored.state[fresh.weight]["exp_avg"]
    assert torch.equal(here, there) and here.stride() == there.stride() == model.weight.stride()


def test_strides_that_cannot_be_copied() -> None:
    """A value of another shape, or a parameter with gaps between its elements, changes nothing."""
    value = torch.ones(2, 3)
    assert with_strides_of(torch.ones(3, 2).T, torch.ones(6)).shape == (6,)
    assert with_strides_of(torch.ones(2, 6)[:, ::2], value).stride() == (3, 1)
    assert with_strides_of(torch.ones(3, 2).T, value).stride() == (1, 2)


@in_both_ways
@pytest.mark.parametrize("capturable", [False, True])
def test_the_device_of_step_is_torchs(tmp_path: Path, kind: str, capturable: bool) -> None:
    """`step` of a fused optimizer on the CPU is float32, and a step runs after the restore."""
    model, fresh = nn.Linear(2, 1), nn.Linear(2, 1)
    saved, restored = (torch.optim.AdamW(each.parameters(), fused=capturable) for each in (model, fresh))
    model(torch.ones(1, 2)).sum().backward()
    saved.step()
    moved(kind, {"m": model, "o": saved}, {"m": fresh, "o": restored}, tmp_path)
    for net, optimizer in ((model, saved), (fresh, restored)):
        net.zero_grad()
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert torch.equal(model.weight, fresh.weight)
    assert restored.state[fresh.weight]["step"].dtype == torch.float32


def test_a_parameter_of_another_dtype(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """State of the dtype that the parameter had follows it, as torch's optimizers need; the rest stays. Reported."""
    model, fresh = nn.Linear(2, 1), nn.Linear(2, 1)
    saved = Custom(model.named_parameters(), lambda p: {"m": p * 2, "wide": p.double()})  # type: ignore[arg-type]
    saved.step()
    restored = Custom(fresh.named_parameters(), lambda p: {})  # type: ignore[arg-type]
    fresh.bfloat16()
    moved("Saver", {"o": saved}, {"o": restored}, tmp_path)
    state = restored.state[fresh.weight]
    assert (state["m"].dtype, state["wide"].dtype) == (torch.bfloat16, torch.float64)
    assert '"weight" was float32 and is bfloat16' in caplog.text


@in_both_ways
def test_state_that_cannot_be_stored_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    """A function or an object in the state, with its place."""
    model = nn.Linear(1, 1, bias=False)
    for value in (lambda: 1, object(), nn.Linear(1, 1), deque([object()])):
        optimizer = Custom(model.parameters(), lambda p, value=value: {"odd": value})  # type: ignore[misc]
        optimizer.step()
        with pytest.raises(TypeError, match=r"state/.*weight/odd.*cannot be stored"):
            moved(kind, {"m": model, "o": optimizer}, {}, tmp_path)
