"""A graph of TensorFlow 1 trains in torch on its own loss as in TensorFlow, and goes back to TensorFlow."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from op_rows import torch_of
from tensorflow_process import TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt

STEPS = 20
SUPPORT = "tensorflow_graph_families"
OPTIMIZERS: dict[str, Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9),
    # TensorFlow adds epsilon before it corrects the bias, torch after: it must be small.
    "adam": lambda parameters: torch.optim.Adam(parameters, 1e-3, eps=1e-10),
}


class Trained:
    """A graph imported from TensorFlow's files, and its loss as a module."""

    def __init__(self, tensorflow: TensorFlowProcess, name: str, folder: Path) -> None:
        self.written: Any = tensorflow.call(f"{SUPPORT}.meta_graph", name, str(folder))
        path, inputs, outputs, constants = self.written
        self.prefix = path.removesuffix(".meta")
        self.imported = tfckpt.import_meta_graph(path)
        assert self.imported.saver is not None
        self.saver = self.imported.saver
        self.saver.restore(self.prefix)
        loss = "output_loss:0" if "output_loss:0" in outputs else self._loss_of(name)
        self.loss = self.imported.module(list(inputs), [loss], constants)
        self.values = [torch_of(raw) for raw in inputs.values()]

    @staticmethod
    def _loss_of(name: str) -> str:
        return {"seq2seq": "Mean:0", "bert": "Mean:0"}[name]

    def compute(self) -> torch.Tensor:
        """Return the loss."""
        found: torch.Tensor = self.loss(*self.values)[0]
        return found

    def train(self, optimizer: torch.optim.Optimizer) -> list[float]:
        """Return the losses before each step and after the last."""
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = self.compute()
            losses.append(loss.item())
            torch.autograd.backward(loss)
            optimizer.step()
        return [*losses, self.compute().item()]


ROWS = [
    ("perceptron", "sgd"),
    ("digits", "adam"),
    *(
        pytest.param(*row, marks=pytest.mark.heavy)
        for row in [
            ("perceptron", "momentum"), ("perceptron", "adam"), ("digits", "sgd"), ("slim", "momentum"),
            ("slim", "adam"), ("seq2seq", "sgd"), ("seq2seq", "adam"), ("bert", "sgd"), ("bert", "adam"),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "optimizer"), ROWS)
def test_training(name: str, optimizer: str, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The losses of 20 steps are TensorFlow's; TensorFlow restores what was trained, and computes the same loss."""
    trained = Trained(tensorflow, name, tmp_path)
    expected = tensorflow.call(f"{SUPPORT}.train", name, trained.prefix, optimizer, STEPS)
    found = trained.train(OPTIMIZERS[optimizer](list(trained.loss.parameters())))
    assert expected[0] - expected[-1] > 1e-3 * abs(expected[0]), "the loss must go down"
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)

    path = trained.saver.save(tmp_path / "trained")
    loss, variables = tensorflow.call(f"{SUPPORT}.loss_after", name, path)
    assert loss == pytest.approx(found[-1], rel=1e-5)
    assert variables.keys() == trained.imported.variables.keys()
    for key, raw in variables.items():
        value = trained.imported.variables[key]
        assert isinstance(value, torch.Tensor)
        assert torch.equal(value.detach(), torch_of(raw)), key


@pytest.mark.parametrize("name", ["slim"])
def test_training_with_updates(name: str, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """`train()` and `eval()` set is_training; moving averages are buffers, which the graph changes where allowed."""
    path, inputs, outputs, _ = tensorflow.call(f"{SUPPORT}.meta_graph", name, str(tmp_path))
    imported = tfckpt.import_meta_graph(path)
    assert imported.saver is not None
    imported.saver.restore(path.removesuffix(".meta"))
    module = imported.module(
        list(inputs),
        list(outputs),
        when_training={"is_training:0": True},
        when_evaluating={"is_training:0": False},
        allow_assign=True,
    )
    values = [torch_of(raw) for raw in inputs.values()]
    parameters = dict(module.named_parameters())
    buffers = {key: value for key, value in module.state_dict().items() if key not in parameters}
    assert {key.rsplit(".", 1)[-1] for key in buffers} == {"moving_mean", "moving_variance"}
    module.eval()
    with torch.no_grad():
        for found, raw in zip(module(*values), outputs.values(), strict=True):
            torch.testing.assert_close(found, torch_of(raw), rtol=1e-4, atol=1e-5)
    before = {key: value.clone() for key, value in buffers.items()}
    module.train()
    torch.autograd.backward(module(*values)[1])
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(not torch.equal(before[key], value) for key, value in buffers.items())
