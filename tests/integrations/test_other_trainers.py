"""A Saver in programs of Accelerate and transformers' Trainer: what it restores continues the training bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_families import family

import torch_tfckpt as tfckpt

# Of the libraries: deprecated functions of torch.
pytestmark = pytest.mark.filterwarnings("ignore:::accelerate", "ignore:::transformers", "ignore:::torch")


def make() -> Any:
    """A module, AdamW and a scheduler, equal in each call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


def step(state: Any, backward: Any) -> float:
    """Train one step; return the loss."""
    model, optimizer, scheduler = state
    loss = model(torch.linspace(-1, 1, 12).reshape(4, 3)).square().mean()
    backward(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return float(loss.detach())


def test_accelerate(tmp_path: Path) -> None:
    """A program without Accelerate restores what one with it has saved, and the other way round."""
    accelerator = family("accelerate").Accelerator(cpu=True)
    state = accelerator.prepare(*make())
    names = ("model", "optimizer", "scheduler")
    for _ in range(3):
        step(state, accelerator.backward)
    saver = tfckpt.Saver(dict(zip(names, state, strict=True)))
    path = saver.save(tmp_path / "ckpt", 3)
    losses = [step(state, accelerator.backward) for _ in range(3)]

    plain = make()
    tfckpt.Saver(dict(zip(names, plain, strict=True))).restore(path)
    assert [step(plain, torch.Tensor.backward) for _ in range(3)] == losses
    again = tfckpt.Saver(dict(zip(names, plain, strict=True))).save(tmp_path / "plain", 6)
    saver.restore(path)
    assert [step(state, accelerator.backward) for _ in range(3)] == losses
    following = [step(state, accelerator.backward) for _ in range(2)]
    saver.restore(again)
    assert [step(state, accelerator.backward) for _ in range(2)] == following


def test_accelerate_directories(tmp_path: Path) -> None:
    """Hooks put the checkpoint into the directory of save_state, and Accelerate writes no weights."""
    accelerator = family("accelerate").Accelerator(cpu=True)
    state = accelerator.prepare(*make())
    saver = tfckpt.Saver({"model": state[0]})

    def save(models: list[Any], weights: list[Any], directory: str) -> None:
        saver.save(Path(directory) / "model.ckpt", write_state=False, write_meta_graph=False)
        weights.clear()

    accelerator.register_save_state_pre_hook(save)
    step(state, accelerator.backward)
    accelerator.save_state(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"model.ckpt.index", "model.ckpt.data-00000-of-00001"}
    assert not names & {"model.safetensors", "pytorch_model.bin"}


def test_transformers_trainer(tmp_path: Path) -> None:
    """on_save gets the objects of the Trainer: their state, restored, is that of its own files."""
    family("accelerate")
    transformers = family("transformers")

    class Save(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_save(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
            saved = {"model": objects["model"], "optimizer": objects["optimizer"], "scheduler": objects["lr_scheduler"]}
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            tfckpt.Saver(saved).save(directory / "tf" / "model.ckpt", write_state=False, write_meta_graph=False)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = make()[0]

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.layers(x) - labels).square().mean()}

    examples = [{"x": torch.full((3,), float(number)), "labels": torch.ones(1)} for number in range(8)]
    options = transformers.TrainingArguments(
        str(tmp_path / "run"),
        max_steps=4,
        save_steps=2,
        save_total_limit=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(Model(), options, train_dataset=examples, callbacks=[Save()])
    trainer.train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-4"]
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    tfckpt.Saver({"model": model, "optimizer": optimizer}).restore(tmp_path / "run" / "checkpoint-4" / "tf/model.ckpt")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in model.state_dict().items())
    own = torch.load(tmp_path / "run" / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    found = optimizer.state_dict()["state"]
    order = [name for group in trainer.optimizer.param_groups for name in group["params"]]
    places = [[id(each) for each in trainer.model.parameters()].index(id(each)) for each in order]
    assert len(places) == len(own) == 4
    for place, position in enumerate(places):
        assert all(torch.equal(found[position][slot], value) for slot, value in own[place].items())
