"""Optimizers around other optimizers, and optimizers with a state_dict of their own form."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from both_ways import in_both_ways, moved, restored, saved
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError

Parameters = Iterable[nn.Parameter]


class Slow(torch.optim.Optimizer):
    """Like Lookahead: no call of Optimizer.__init__, shared groups, a state_dict of its own form."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.steps = base, 0
        self.defaults, self.param_groups, self.state = base.defaults, base.param_groups, base.state
        self.slow = [p.detach().clone() for group in base.param_groups for p in group["params"]]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step()
        self.steps += 1
        if self.steps % 2 == 0:
            parameters = (p for group in self.param_groups for p in group["params"])
            for slow, parameter in zip(self.slow, parameters, strict=True):
                slow.lerp_(parameter.detach(), 0.5)
                parameter.data.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base.state_dict(), "slow": list(self.slow), "steps": self.steps}

    def load_state_dict(self, state_dict: Any) -> None:
        self.base.load_state_dict(state_dict["base"])
        self.slow, self.steps = list(state_dict["slow"]), state_dict["steps"]


class Sharp(torch.optim.Optimizer):
    """Like SAM: a usual state_dict, which lacks the state of the base optimizer. The groups are shared."""

    def __init__(self, params: Any, base: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__(params, {"rho": 0.05})
        self.base = base(self.param_groups)
        self.param_groups = self.base.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["old"] = parameter.detach().clone()
        self.base.step()


class Delegating(torch.optim.Optimizer):
    """Like a wrapper for mixed precision or accumulation: everything is the base optimizer's."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.count = base, 0

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.base.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step()

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        self.base.load_state_dict(state_dict)


class NoGroups(torch.optim.Optimizer):
    """A wrapper without groups of its own, which are all in its state."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.inner = [base]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner[0].step()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": [each.state_dict() for each in self.inner]}

    def load_state_dict(self, state_dict: Any) -> None:
        for each, state in zip(self.inner, state_dict["inner"], strict=True):
            each.load_state_dict(state)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "Slow": lambda m: Slow(momentum(m.parameters())),
    "Slow of Adam": lambda m: Slow(torch.optim.Adam(m.parameters(), 0.1)),
    "Sharp": lambda m: Sharp(m.parameters(), momentum),
    "Slow of Sharp": lambda m: Slow(Sharp(m.parameters(), momentum)),
    "Delegating": lambda m: Delegating(momentum(m.parameters())),
    "NoGroups": lambda m: NoGroups(momentum(m.parameters())),
    "RAdam": lambda m: torch.optim.RAdam(m.parameters(), 0.1),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), 0.1),
    "ASGD": lambda m: torch.optim.ASGD(m.parameters(), 0.1),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters(), 0.1),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), 0.1, max_iter=2),
}
if hasattr(torch.optim, "Muon"):  # of newer versions of torch
    MAKERS["Muon"] = lambda m: torch.optim.Muon([p for p in m.parameters() if p.dim() == 2], 0.1)


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 3).to(dtype)


def train(net: Any, optimizer: Any, steps: int) -> None:
    def closure() -> float:
        net.zero_grad()
        loss: torch.Tensor = net(torch.ones(1, 3, dtype=net.weight.dtype)).float().square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    for _ in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        else:
            closure()
            optimizer.step()


@in_both_ways
@pytest.mark.parametrize("maker", MAKERS)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, kind: str, maker: str) -> None:
    """Through the optimizer's own state_dict; a stepped optimizer is overwritten."""
    net, fresh = model(), model()
    optimizer, other = MAKERS[maker](net), MAKERS[maker](fresh)
    train(net, optimizer, 3)
    train(fresh, other, 1)
    moved(kind, {"m": net, "o": optimizer}, {"m": fresh, "o": other}, tmp_path)
    train(net, optimizer, 3)
    train(fresh, other, 3)
    assert torch.equal(net.weight, fresh.weight)  # type: ignore[arg-type]


@in_both_ways
@pytest.mark.parametrize("maker", ["Slow", "Sharp"])
def test_groups_stay_shared(tmp_path: Path, kind: str, maker: str) -> None:
    """A scheduler that changes the wrapper's rate changes that of the base optimizer after a restore, too."""
    net = model()
    optimizer: Any = MAKERS[maker](net)
    train(net, optimizer, 1)
    moved(kind, {"m": net, "o": optimizer}, {"m": net, "o": optimizer}, tmp_path)
    optimizer.param_groups[0]["lr"] = 0.75
    assert optimizer.base.param_groups[0]["lr"] == 0.75


@in_both_ways
@pytest.mark.parametrize("maker", ["Slow", "Sharp", "Delegating"])
def test_state_in_a_wrapper_keeps_its_dtype(tmp_path: Path, kind: str, maker: str) -> None:
    """The base optimizer's fp32 state of bf16 parameters."""
    net, fresh = model(torch.bfloat16), model(torch.bfloat16)
    optimizer: Any = MAKERS[maker](net)
    other: Any = MAKERS[maker](fresh)
    for each in (optimizer.base, other.base):
        for parameter in each.param_groups[0]["params"]:
            each.state[parameter]["master"] = torch.full((2,), 1 / 3 if each is optimizer.base else 0.0)
    moved(kind, {"m": net, "o": optimizer}, {"m": fresh, "o": other}, tmp_path)
    for parameter in fresh.parameters():
        assert other.base.state[parameter]["master"].tolist() == torch.full((2,), 1 / 3).tolist()


@in_both_ways
def test_positions_of_other_parameters_are_refused(tmp_path: Path, kind: str) -> None:
    """A state_dict of its own form refers to positions, so the order must be the same."""
    net, fresh = model(), model()
    optimizer = Slow(momentum(net.parameters()))
    path = saved(kind, {"m": net, "o": optimizer}, tmp_path)
    with pytest.raises(InvalidArgumentError, match="this Slow refers to parameters by their positions"):
        restored(kind, path, {"m": fresh, "o": Slow(momentum([fresh.bias, fresh.weight]))})
    with pytest.raises(InvalidArgumentError, match="has the state of Slow, but this optimizer is SGD"):
        restored(kind, path, {"m": fresh, "o": momentum(fresh.parameters())})


@in_both_ways
def test_a_state_dict_of_another_form_is_refused(tmp_path: Path, kind: str) -> None:
    """After the class has changed, or in a hostile file; not by an error inside load_state_dict."""
    net, fresh = model(), model()
    path = saved(kind, {"m": net, "o": Slow(momentum(net.parameters()))}, tmp_path)
    usual = type("Slow", (torch.optim.SGD,), {})(fresh.parameters(), lr=0.1)
    with pytest.raises(InvalidArgumentError, match="of this Slow had a different structure"):
        restored(kind, path, {"m": fresh, "o": usual})
    (tmp_path / "usual").mkdir()
    path = saved(kind, {"m": fresh, "o": usual}, tmp_path / "usual")
    with pytest.raises(InvalidArgumentError, match="of this Slow had a different structure"):
        restored(kind, path, {"m": net, "o": Slow(momentum(net.parameters()))})


@in_both_ways
def test_a_wrapped_optimizer_that_is_missing_is_refused(tmp_path: Path, kind: str) -> None:
    """Its state would be lost."""
    net, fresh = model(), model()
    optimizer, other = Sharp(net.parameters(), momentum), Sharp(fresh.parameters(), momentum)
    train(net, optimizer, 1)
    del other.base
    path = saved(kind, {"m": net, "o": optimizer}, tmp_path)
    with pytest.raises(InvalidArgumentError, match='attribute "base" of this Sharp'):
        restored(kind, path, {"m": fresh, "o": other})


@in_both_ways
def test_a_state_dict_that_cannot_be_called_is_refused(tmp_path: Path, kind: str) -> None:
    """As that of ZeroRedundancyOptimizer before it is consolidated: with the optimizer's key and what to do."""

    class Spread(torch.optim.SGD):
        gathered = False

        def state_dict(self) -> Any:
            if not self.gathered:
                raise RuntimeError("Optimizer state has not been consolidated on this rank.")
            return super().state_dict()

    net, fresh = model(), model()
    optimizer, other = (Spread(each.parameters(), lr=0.1, momentum=0.9) for each in (net, fresh))
    train(net, optimizer, 1)
    with pytest.raises(FailedPreconditionError, match=r"o.*this Spread raised RuntimeError.*consolidate_state_dict"):
        saved(kind, {"m": net, "o": optimizer}, tmp_path)
    optimizer.gathered = True
    moved(kind, {"m": net, "o": optimizer}, {"m": fresh, "o": other}, tmp_path)  # into one that was not gathered
    for here, there in zip(fresh.parameters(), net.parameters(), strict=True):
        assert torch.equal(other.state[here]["momentum_buffer"], optimizer.state[there]["momentum_buffer"])


@in_both_ways
@pytest.mark.parametrize(
    "make",
    [
        lambda o: SWALR(o, 0.05),
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, scale_fn=lambda x: 1 / (5 * x) if x else 1.0),
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    ],
    ids=["SWALR", "LambdaLR", "CyclicLR", "ChainedScheduler", "WarmRestarts"],
)
def test_schedulers(tmp_path: Path, kind: str, make: Callable[[torch.optim.Optimizer], Any]) -> None:
    """The rates after the restore are those of the uninterrupted run."""
    net, fresh = model(), model()
    optimizer, other = momentum(net.parameters()), momentum(fresh.parameters())
    scheduler, again = make(optimizer), make(other)

    def rates(optimizer: torch.optim.Optimizer, scheduler: Any) -> list[float]:
        found = []
        for _ in range(4):
            optimizer.step()
            scheduler.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    rates(optimizer, scheduler)
    moved(kind, {"m": net, "o": optimizer, "s": scheduler}, {"m": fresh, "o": other, "s": again}, tmp_path)
    assert rates(other, again) == rates(optimizer, scheduler)


@in_both_ways
def test_sparse_gradients_and_a_disabled_scaler(tmp_path: Path, kind: str) -> None:
    """SparseAdam keeps dense state; a scaler that is switched off has an empty state."""
    nets = [nn.Embedding(5, 2, sparse=True) for _ in "ab"]
    pairs: list[tuple[Any, Any, Any]] = [
        (net, torch.optim.SparseAdam(net.parameters()), torch.amp.GradScaler("cpu", enabled=False)) for net in nets
    ]
    for net, optimizer, _ in pairs[:1] * 2:
        net(torch.tensor([1, 3])).sum().backward()
        optimizer.step()
    one, other = ({"m": net, "o": optimizer, "s": scaler} for net, optimizer, scaler in pairs)
    moved(kind, one, other, tmp_path)
    there, here = ({**opt.state[net.weight]} for net, opt, _ in pairs)
    assert torch.equal(there["exp_avg"], here["exp_avg"]) and there["step"] == here["step"]
