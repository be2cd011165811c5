#!/usr/bin/env python3
"""A small training loop with a Saver; `scripts/demo` runs it, kills it, and runs it again.

    python scripts/demo_training.py DIRECTORY --steps 40 [--kill-at 23]

Continues from the latest checkpoint in DIRECTORY, prints one line "step loss" per step, and saves every 5 steps. The
head is assigned to a different device than the encoder, so each checkpoint has two data files.
"""

import argparse
import os
import signal
from pathlib import Path

import torch
from torch import nn

import torch_tfckpt as tfckpt


class Model(nn.Module):
    """An encoder and a head, with dropout, so that the losses also depend on the random generator's state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.encoder(x))
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--kill-at", type=int, help="kill this process during the save after that step")
    given = parser.parse_args()

    torch.manual_seed(7)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    step = torch.tensor(0)
    head = {f"head/{name}": tfckpt.Variable(p, name, device="/cpu:1") for name, p in model.head.named_parameters()}
    state = {"encoder": model.encoder, **head, "optimizer": optimizer, "scheduler": scheduler, "step": step}
    saver = tfckpt.Saver({**state, "rng": tfckpt.RNGState()}, sharded=True, max_to_keep=2, recover=True)

    latest = tfckpt.latest_checkpoint(given.directory)
    if latest is not None:
        saver.restore(latest)
    with saver:
        while int(step) < given.steps:
            x = torch.randn(32, 16)
            loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            step += 1
            print(int(step), float(loss.detach()).hex(), flush=True)
            if int(step) == given.kill_at:
                saver.save_async(given.directory / "model.ckpt", global_step=step)
                os.kill(os.getpid(), signal.SIGKILL)
            if int(step) % 5 == 0:
                saver.save_async(given.directory / "model.ckpt", global_step=step)


if __name__ == "__main__":
    main()
