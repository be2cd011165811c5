"""A stopped and resumed run gives bitwise the same result as an uninterrupted one."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import RNGState, Saver

STEPS, STOP = 12, 5
OPTIMIZERS: dict[str, Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


class Run:
    """Training with all kinds of state: dropout, batch norm, optimizer, two schedulers, random data.

    Args:
        kind: Key of OPTIMIZERS.
        seed: Seed of all generators; a resumed run starts with another one.
    """

    def __init__(self, kind: str, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        layers: list[torch.nn.Module] = [torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5)]
        self.model = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(16, 1))
        groups: Any = [{"params": self.model[0].parameters()}, {"params": self.model[1:].parameters(), "lr": 0.02}]
        self.optimizer = OPTIMIZERS[kind](groups)
        self.scheduler = torch.optim.lr_scheduler.SequentialLR(
            self.optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(self.optimizer, 0.1, total_iters=4),
                torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=8),
            ],
            milestones=[4],
        )
        self.step = torch.tensor(0)
        self.log: dict[str, Any] = {"losses": [], "best": None}
        self.saver = Saver(
            {
                "model": self.model,
                "optimizer": self.optimizer,
                "scheduler": self.scheduler,
                "step": self.step,
                "log": self.log,
                "rng": RNGState(),
            },
            max_to_keep=2,
        )

    def train(self, until: int) -> list[float]:
        """Train up to the step `until` and return the losses."""
        losses = []
        while self.step < until:
            inputs = torch.randn(8, 4) * random.random() + float(np.random.rand())
            self.optimizer.zero_grad()
            loss = (self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            torch.autograd.backward([loss])
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
            losses.append(loss.item())
            self.log["losses"] = [*self.log["losses"], loss.item()]
        return losses

    def bits(self) -> list[str]:
        """Return the final state of the run as strings of all its bits."""
        tensors = [*self.model.state_dict().values(), *map(torch.tensor, self.scheduler.get_last_lr())]
        state = self.optimizer.state_dict()["state"]
        tensors += [
            torch.as_tensor(state[n][key])
            for n in sorted(state)
            for key in sorted(state[n])
            if state[n][key] is not None
        ]
        return [tensor.double().numpy().tobytes().hex() for tensor in tensors] + [repr(self.log), repr(torch.rand(1))]


@pytest.fixture(autouse=True)
def generators() -> Any:
    """Restore the state of the random generators afterwards."""
    before = RNGState().state_dict()
    yield
    RNGState().load_state_dict(before)


@pytest.mark.parametrize("asynchronously", [False, True], ids=["save", "save_async"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resumed_into_fresh_objects(tmp_path: Path, kind: str, asynchronously: bool) -> None:
    """Losses, weights, moments, learning rates and generators are equal; saving changes none of them."""
    whole = Run(kind, seed=1)
    expected, bits = whole.train(STEPS), whole.bits()
    stopped = Run(kind, seed=1)
    before = stopped.train(STOP)
    if asynchronously:
        handle = stopped.saver.save_async(tmp_path / "m", stopped.step)
        went_on = stopped.train(STEPS)  # at once, during the save
        path = handle.result()
    else:
        path = stopped.saver.save(tmp_path / "m", stopped.step)
        went_on = stopped.train(STEPS)
    assert before + went_on == expected
    resumed = Run(kind, seed=99)
    resumed.train(3)  # the resumed process has other state first
    resumed.saver.restore(path)
    assert resumed.step.item() == STOP and resumed.log["losses"] == before
    assert resumed.train(STEPS) == expected[STOP:]
    assert resumed.bits() == bits


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "Adam" else pytest.mark.heavy) for kind in OPTIMIZERS]
)
def test_resumed_in_another_process(tmp_path: Path, kind: str) -> None:
    """A program that is started twice gives the whole curve; the second run finds the newest checkpoint."""
    expected = Run(kind, seed=1).train(STEPS)
    losses = []
    for until, seed in ((STOP, 1), (STEPS, 2)):
        done = subprocess.run(
            [sys.executable, __file__, str(tmp_path), kind, str(until), str(seed)],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        losses += [float.fromhex(line) for line in done.stdout.split()]
    assert losses == expected
    assert tfckpt.latest_checkpoint(tmp_path) == str(tmp_path / f"m-{STEPS}")


def main(directory: str, kind: str, until: str, seed: str) -> None:
    """Run of the other process: resume from the newest checkpoint, train, save."""
    run = Run(kind, int(seed))
    newest = tfckpt.latest_checkpoint(directory, valid=True)
    if newest is not None:
        run.saver.restore(newest)
    for loss in run.train(int(until)):
        print(loss.hex())
    run.saver.save(Path(directory) / "m", run.step)


if __name__ == "__main__":
    main(*sys.argv[1:])
