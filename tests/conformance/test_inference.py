"""KeyMapper.infer: Keras's models load into torch counterparts with other names, or nothing is guessed.

Every model is written by TensorFlow. The torch counterpart computes the same outputs with the inferred rules; a wrong
mapping would change them, because all values are random and no layer can replace another.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
from architectures import architecture, known_model
from layer_twins import tensor
from tensorflow_process import Call, RawTensor, TensorFlowError, TensorFlowProcess
from torch_architectures import Built

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.models.saving import save_model


def outcome(prefix: Path, seed: int, answer: dict[str, RawTensor]) -> str:
    """What infer does with one random architecture: "right", "wrong" or "refused"."""
    model = Built(architecture(seed)).eval()
    try:
        mapper = KeyMapper.infer(prefix, model)
    except InvalidArgumentError as error:
        assert "[[rule]]" in str(error)
        return "refused"
    load_model(model, prefix, mapper=mapper)
    with torch.no_grad():
        output = model(tensor(answer["in"]))
    return "right" if torch.allclose(output, tensor(answer["out"]), rtol=1e-5, atol=1e-5) else "wrong"


@pytest.mark.parametrize(("first", "count"), [(0, 30), pytest.param(30, 470, marks=pytest.mark.heavy)])
def test_random_architectures(tensorflow: TensorFlowProcess, tmp_path: Path, first: int, count: int) -> None:
    """Names by the conventions of either side, few sizes: many models are refused, none is wrong."""
    seen: Counter[str] = Counter()
    wrong = []
    for start in range(first, first + count, 20):
        seeds = range(start, start + 20)
        calls = [Call("tensorflow_architectures.save_architecture", (str(tmp_path / str(s)), s)) for s in seeds]
        for seed, answer in zip(seeds, tensorflow.batch(calls), strict=True):
            assert not isinstance(answer, TensorFlowError), f"seed {seed}: {answer}"
            found = outcome(tmp_path / str(seed), seed, answer)
            seen[found] += 1
            wrong += [seed] if found == "wrong" else []
    assert not wrong
    assert seen["right"] >= count // 4
    assert seen["refused"] >= count // 4


@pytest.mark.parametrize("by_objects", [False, True], ids=["names", "objects"])
@pytest.mark.parametrize("name", ["mlp", "mobilenet", "resnet", "tagger", "transformer"])
def test_known_models(tensorflow: TensorFlowProcess, tmp_path: Path, name: str, by_objects: bool) -> None:
    """No rules are needed, by names and by objects; the mapper survives a map file."""
    architecture_here = known_model(name, by_objects=by_objects)
    answer = tensorflow.call("tensorflow_architectures.save_model", str(tmp_path / "m"), architecture_here, 3)
    model = Built(architecture_here).eval()
    KeyMapper.infer(tmp_path / "m", model).to_file(tmp_path / "map.toml")
    load_model(model, tmp_path / "m", mapper=KeyMapper.from_file(tmp_path / "map.toml"))
    with torch.no_grad():
        torch.testing.assert_close(model(tensor(answer["in"])), tensor(answer["out"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet", "tagger", "transformer"])
def test_saving_after_training(tensorflow: TensorFlowProcess, tmp_path: Path, name: str) -> None:
    """The rules save what a step of training changed: the second bias of an LSTM is added to the only one of Keras."""
    model_here = known_model(name, by_objects=False)
    answer = tensorflow.call("tensorflow_architectures.save_model", str(tmp_path / "m"), model_here, 3)
    model, inputs = Built(model_here).eval(), tensor(answer["in"])
    mapper = KeyMapper.infer(tmp_path / "m", model)
    load_model(model, tmp_path / "m", mapper=mapper)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(inputs).square().sum().backward()
    optimizer.step()
    assert all(bool(each.any()) for name, each in model.named_parameters() if "bias_hh" in name)
    save_model(model, tmp_path / "trained", mapper=mapper)
    theirs = tensorflow.call(
        "tensorflow_architectures.output_of_saved", str(tmp_path / "trained"), model_here, inputs.numpy()
    )
    with torch.no_grad():
        torch.testing.assert_close(tensor(theirs), model(inputs), rtol=1e-5, atol=1e-5)
