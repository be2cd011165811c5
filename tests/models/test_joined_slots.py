"""Optimizer state of parameters that are joined, split, transformed by a rule, filled, or trained by another optimizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import numbered
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.saving import save_model

STEP = {"global_step": torch.tensor(9)}


def adam(model: nn.Module, **options: Any) -> torch.optim.Adam:
    return torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.1, **options)


def with_adam(variables: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The variables, their slots, and the step."""
    slots = {f"{name}/{slot}": value + 100 * at for name, value in variables.items() for at, slot in SLOTS}
    return variables | slots | STEP


SLOTS = [(1, "Adam"), (2, "Adam_1")]


def lengths(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [numbered(*shape) + 10 * number for number, shape in enumerate(shapes)]


class One(nn.Module):
    """A module "x"."""

    def __init__(self, x: nn.Module) -> None:
        super().__init__()
        self.x = x


def test_slots_of_variables_that_a_rule_joins(tmp_path: Path) -> None:
    """q, k, v -> in_proj_weight: each part is transposed, and the report names all three slots."""
    parts = dict(zip("qkv", lengths((4, 4), (4, 4), (4, 4)), strict=True))
    path = tfckpt.save_file(with_adam({f"{name}/kernel": value for name, value in parts.items()}), tmp_path / "m")
    model = One(nn.Linear(4, 12, bias=False))
    optimizer = adam(model)
    mapper = {("q/kernel", "k/kernel", "v/kernel"): ("x.weight", "dense")}
    rule = {"join": [f"{name}/kernel" for name in "qkv"], "to": "x.weight", "axis": 0, "layout": "dense"}
    del mapper
    report = load_model(model, path, mapper=[tfckpt.KeyRule(rule["join"], "x.weight", layout="dense")], optimizer=optimizer)
    expected = torch.cat([value.t() for value in parts.values()]) + 100
    assert torch.equal(optimizer.state[model.get_parameter("x.weight")]["exp_avg"], expected)
    assert report.slots["x.weight"]["exp_avg"] == "q/kernel/Adam + k/kernel/Adam + v/kernel/Adam"
