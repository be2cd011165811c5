"""Models of Keras and TensorFlow 1, loaded into torch counterparts: both compute the same outputs."""

from pathlib import Path

import pytest
import torch
from layer_twins import tensor
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn

from torch_tfckpt.errors import NotFoundError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.rules.key_mapper import KeyMapper, Rules
from torch_tfckpt.models.saving import save_model


class Twin(nn.Module):
    """The torch counterpart of tensorflow_models.Twin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, (2, 3))
        self.bn = nn.BatchNorm2d(5, eps=1e-3)
        self.emb = nn.Embedding(11, 4)
        self.fc = nn.Linear(9, 7)

    def forward(self, image: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        seen = self.bn(self.conv(image.permute(0, 3, 1, 2))).relu().mean((2, 3))
        output: torch.Tensor = self.fc(torch.cat([seen, self.emb(words).mean(1)], -1))
        return output


def assert_same_output(model: nn.Module, answer: dict[str, RawTensor]) -> None:
    inputs = [tensor(answer[name]) for name in ("image", "words") if name in answer]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(*inputs), tensor(answer["output"]), rtol=1e-5, atol=1e-5)


def random_model(make: type[nn.Module]) -> nn.Module:
    """A model with random values, so that an unrestored value is noticed."""
    model = make()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


MAPPERS: dict[str, Rules | None] = {
    "names": None,
    "mapper": [
        (r"model/(conv|fc)/_kernel", r"\1.weight"), (r"model/(conv|fc)/bias", r"\1.bias"),
        (r"model/emb/_embeddings", "emb.weight"), (r"model/bn/gamma", "bn.weight"), (r"model/bn/beta", "bn.bias"),
        (r"model/bn/moving_mean", "bn.running_mean"), (r"model/bn/moving_variance", "bn.running_var"),
        (r".*optimizer/.*|step", None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("rules", MAPPERS)
def test_a_keras_model_by_objects(tensorflow: TensorFlowProcess, tmp_path: Path, rules: str, trained: bool) -> None:
    """tf.train.Checkpoint(model=keras_model): strictly, with and without its compiled optimizer."""
    answer = tensorflow.call("tensorflow_models.save_twin", str(tmp_path / "m"), 3, trained=trained)
    model = random_model(Twin)
    report = load_model(model, tmp_path / "m", mapper=MAPPERS[rules])
    assert_same_output(model, answer)
    assert (report.missing, report.unexpected) == ([], [])
    assert report.prefix == ("model/" if rules == "names" else "")
    assert [(each.name, each.layout) for each in report.converted] == [
        ("conv.weight", "conv2d"),
        ("fc.weight", "dense"),
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_a_keras_model_by_names(tensorflow: TensorFlowProcess, tmp_path: Path, version: int) -> None:
    """tf.compat.v1.train.Saver, both versions, with a scope around all names, and a global_step."""
    answer = tensorflow.call("tensorflow_models.save_twin_by_name", str(tmp_path / "m"), 4, version)
    model = random_model(Twin)
    report = load_model(model, tmp_path / "m")
    assert_same_output(model, answer)
    assert (report.prefix, report.ignored) == ("twin/", ["global_step"])
    other = random_model(Twin)
    rules = [
        (r"twin/(\w+)/(?:kernel|gamma|embeddings)", r"\1.weight"), (r"twin/(\w+)/(?:bias|beta)", r"\1.bias"),
        (r"twin/(\w+)/moving_mean", r"\1.running_mean"), (r"twin/(\w+)/moving_variance", r"\1.running_var"),
    ]  # fmt: skip
    load_model(other, tmp_path / "m", mapper=KeyMapper(rules))
    assert_same_output(other, answer)


class Numbered(nn.Sequential):
    """The torch counterpart of tensorflow_models.save_sequential."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 5, (2, 3)), nn.ReLU(), nn.Conv2d(5, 4, (3, 2)), nn.Linear(4, 7))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        one, relu, two, fc = self
        output: torch.Tensor = fc(two(relu(one(image.permute(0, 3, 1, 2)))).mean((2, 3)))
        return output


def test_a_keras_sequential_needs_a_mapper(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Its objects have other numbers than the torch modules: nothing is guessed, and rules map them."""
    answer = tensorflow.call("tensorflow_models.save_sequential", str(tmp_path / "m"), 5)
    model = random_model(Numbered)
    with pytest.raises(NotFoundError, match=r'Missing key\(s\): "0.weight"'):
        load_model(model, tmp_path / "m")
    rules: dict[str, str] = {}
    for theirs, ours in ((1, 0), (2, 2), (4, 3)):
        rules[f"_functional/_operations/{theirs}/_kernel"] = f"{ours}.weight"
        rules[f"_functional/_operations/{theirs}/bias"] = f"{ours}.bias"
    load_model(model, tmp_path / "m", mapper=rules)
    assert_same_output(model, answer)


def test_keras_loads_what_save_model_writes(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """naming="tf": TensorFlow's reader finds each variable by name and shape, and Keras computes the same outputs."""
    model = random_model(Twin)
    save_model(model, tmp_path / "m", naming="tf")
    assert_same_output(model, tensorflow.call("tensorflow_models.restore_twin_by_name", str(tmp_path / "m"), 6))


class Net(nn.Module):
    """The model that tensorflow_models.train_by_names trains."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)


def optimizer_like(kind: str, model: nn.Module, steps: int) -> torch.optim.Optimizer:
    """An optimizer with the hyperparameters of tensorflow_models."""
    if kind == "adam":
        # TensorFlow's epsilon is the "epsilon hat" of the paper on Adam.
        return torch.optim.Adam(model.parameters(), 0.125, eps=1e-3 / (1 - 0.999 ** (steps + 1)) ** 0.5)
    if kind == "momentum":
        return torch.optim.SGD(model.parameters(), 0.0625, momentum=0.5)
    return torch.optim.Adagrad(model.parameters(), 0.125, eps=0)


@pytest.mark.parametrize("how", ["train_by_names", "train_by_objects"])
@pytest.mark.parametrize("kind", ["adam", "momentum", "adagrad"])
def test_training_continues(tensorflow: TensorFlowProcess, tmp_path: Path, how: str, kind: str) -> None:
    """Weights and slots are converted, and the next step of torch's optimizer equals TensorFlow's."""
    told = tensorflow.call(f"tensorflow_models.{how}", str(tmp_path / "m"), kind, 4, 7)
    model = Net()
    optimizer = optimizer_like(kind, model, 4)
    report = load_model(model, tmp_path / "m", optimizer=optimizer)
    assert (set(report.slots), report.unexpected) == ({"fc.weight", "fc.bias"}, [])
    assert torch.equal(model.fc.weight, tensor(told["fc/kernel"]).t())
    (model.fc(tensor(told["x"])) - 1).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.fc.weight.detach(), tensor(told["next/fc/kernel"]).t(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.fc.bias.detach(), tensor(told["next/fc/bias"]), rtol=1e-5, atol=1e-5)


def test_averages_of_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The shadow variables of tf.train.ExponentialMovingAverage."""
    told = tensorflow.call("tensorflow_models.train_by_names", str(tmp_path / "m"), "adam", 3, 8)
    model = Net()
    report = load_model(model, tmp_path / "m", ema="only")
    assert torch.equal(model.fc.weight, tensor(told["average"]).t()) and report.averaged == ["fc.weight", "fc.bias"]
    assert not torch.equal(model.fc.weight, tensor(told["fc/kernel"]).t())
