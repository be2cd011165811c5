"""A run that is stopped and resumed ends where one that was never stopped ends, to the last bit."""

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
    """Training with everything that has state: dropout, batch norm, an optimizer, two schedulers, data drawn at random.

    Args:
        kind: Key of OPTIMIZERS.
        seed: Of all generators; a run that is resumed begins with another one.
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
        """The losses of the steps up to `until`."""
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
        """All that is left of the run, as text."""
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
    """The generators as they were."""
    before = RNGState().state_dict()
    yield
    RNGState().load_state_dict(before)


@pytest.mark.parametrize("asynchronously", [False, True], ids=["save", "save_async"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resumed_into_fresh_objects(tmp_path: Path, kind: str, asynchronously: bool) -> None:
    """Losses, weights, moments, learning rates and generators are equal, whatever came between; saving changes none."""
    whole = Run(kind, seed=1)
    expected, bits = whole.train(STEPS), whole.bits()
    stopped = Run(kind, seed=1)
    before = stopped.train(STOP)
    if asynchronously:
        handle = stopped.saver.save_async(tmp_path / "m", stopped.step)
        went_on = stopped.train(STEPS)  # at once, beside the save
        path = handle.result()
    else:
        path = stopped.saver.save(tmp_path / "m", stopped.step)
        went_on = stopped.train(STEPS)
    assert before + went_on == expected
    resumed = Run(kind, seed=99)
    resumed.train(3)  # something else has happened there already
    resumed.saver.restore(path)
    assert resumed.step.item() == STOP and resumed.log["losses"] == before
    assert resumed.train(STEPS) == expected[STOP:]
    assert resumed.bits() == bits


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resumed_in_another_process(tmp_path: Path, kind: str) -> None:
    """The whole curve from a program that is started twice; the second finds the newest checkpoint by itself."""
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
    """What the other process does: resumes from what is there, trains, saves."""
    run = Run(kind, int(seed))
    newest = tfckpt.latest_checkpoint(directory, valid=True)
    if newest is not None:
        run.saver.restore(newest)
    for loss in run.train(int(until)):
        print(loss.hex())
    run.saver.save(Path(directory) / "m", run.step)


if __name__ == "__main__":
    main(*sys.argv[1:])
