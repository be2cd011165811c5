"""CASES 85: name-based savers that restore checkpoints of tf.train.Checkpoint: ours behave as TensorFlow's."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tensorflow_process import RawTensor, TensorFlowError, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import CheckpointError, NotFoundError

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


def blank(variables: Mapping[str, RawTensor]) -> dict[str, torch.Tensor]:
    """Zeros of the same dtypes and shapes."""
    return {name: torch.zeros(raw.shape, dtype=getattr(torch, raw.dtype)) for name, raw in variables.items()}


def kinds(variables: Mapping[str, RawTensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (raw.dtype, raw.shape) for name, raw in variables.items()}


def held(tensors: Mapping[str, torch.Tensor]) -> dict[str, RawTensor]:
    return {name: RawTensor.of(tensor) for name, tensor in tensors.items()}


def one_of_each_type() -> dict[str, RawTensor]:
    """A value of each dtype, none of them zero, under names with scopes and characters that keys escape."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for i, dtype in enumerate(DTYPES):
        shape = ((), (3,), (2, 0), (2, 3))[i % 4]
        numbers = torch.randint(1, 100, shape, generator=generator)
        tensors[f"scope_{i % 2}/v.{i}/part-{i}"] = numbers.to(dtype)
    return held(tensors)


@pytest.fixture(scope="module")
def model(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, RawTensor]]:
    """A Keras model and its optimizer, saved by objects."""
    found: tuple[str, dict[str, RawTensor]] = tensorflow.call(
        "tensorflow_keras.write_keras_model", str(tmp_path_factory.mktemp("keras") / "model")
    )
    return found


def test_a_keras_model_and_its_optimizer(
    model: tuple[str, dict[str, RawTensor]], tensorflow: TensorFlowProcess
) -> None:
    """Every variable is restored by its Keras name, and TensorFlow's saver restores the same values."""
    path, variables = model
    assert {"net/look/kernel", "net/norm/moving_mean", "net/think/bias", "adam/iteration"} <= variables.keys()
    tensors = blank(variables)
    tfckpt.Saver(tensors).restore(path)
    assert held(tensors) == variables
    assert tensorflow.call("tensorflow_keras.saver_restores", path, kinds(variables)) == variables


def test_parameters_of_a_module(model: tuple[str, dict[str, RawTensor]]) -> None:
    """In place, as Variables with Keras's names, together with a module's own tensors."""
    path, variables = model
    norm = nn.BatchNorm2d(2)
    buffers = {"moving_mean": norm.running_mean, "moving_variance": norm.running_var}
    named = {"gamma": norm.weight, "beta": norm.bias, **buffers}
    tfckpt.Saver(
        [tfckpt.Variable(tensor, f"net/norm/{name}") for name, tensor in named.items() if tensor is not None]
    ).restore(path)
    for name, tensor in named.items():
        assert tensor is not None
        assert RawTensor.of(tensor) == variables[f"net/norm/{name}"]


def test_variables_of_every_type(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """By Saver, by the checkpoint's saver, and by TensorFlow's: the same bits."""
    variables = one_of_each_type()
    path = tensorflow.call("tensorflow_keras.write_variables", str(tmp_path / "v"), variables)
    by_saver, by_function = blank(variables), blank(variables)
    tfckpt.Saver(by_saver).restore(path)
    tfckpt.saver_from_object_based_checkpoint(path, by_function).restore(path)
    assert tensorflow.call("tensorflow_keras.saver_restores", path, kinds(variables)) == variables
    assert held(by_saver) == held(by_function) == variables


def test_slot_variables(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Those of TensorFlow 1 optimizers have their own names: w/Adam, w/Adam_1, beta1_power."""
    path, variables = tensorflow.call("tensorflow_keras.write_first_generation_adam", str(tmp_path / "a"))
    assert set(variables) == {"w", "w/Adam", "w/Adam_1", "beta1_power", "beta2_power"}
    tensors = blank(variables)
    tfckpt.Saver(tensors).restore(path)
    assert held(tensors) == variables


def test_the_mapping_is_tensorflows(
    model: tuple[str, dict[str, RawTensor]], tensorflow: TensorFlowProcess, tmp_path: Path
) -> None:
    """full_name -> checkpoint_key, as TensorFlow's function of that name returns it; also for ""."""
    paths = [model[0], tensorflow.call("object_checkpoint", str(tmp_path / "o"))]
    for path in paths:
        assert tfckpt.object_graph_key_mapping(path) == tensorflow.call("object_graph_mapping", path)


def error_of_tensorflow(tensorflow: TensorFlowProcess, function: str, *arguments: object) -> TensorFlowError:
    with pytest.raises(TensorFlowError) as raised:
        tensorflow.call(f"tensorflow_keras.{function}", *arguments)
    return raised.value


def error_of_ours(path: str, tensors: dict[str, torch.Tensor]) -> CheckpointError:
    before = held(tensors)
    with pytest.raises(CheckpointError) as raised:
        tfckpt.Saver(tensors).restore(path)
    assert held(tensors) == before
    return raised.value


def test_missing_names_in_tensorflows_words(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """NotFoundError; the three parts of the message are TensorFlow's, character for character."""
    stored = held({name: torch.ones(1) for name in ("b", "a/b", "c_1", "d")})
    path = tensorflow.call("tensorflow_keras.write_variables", str(tmp_path / "m"), stored)
    wanted = held({name: torch.ones(1) for name in ("c", "a/b", "z/y", "B", "d")})
    theirs = error_of_tensorflow(tensorflow, "saver_restores", path, kinds(wanted))
    ours = error_of_ours(path, blank(wanted))
    assert theirs.kind == "NotFoundError" and isinstance(ours, NotFoundError)
    parts = [text.strip().split("\n\n")[:3] for text in (str(ours), theirs.message)]
    assert (
        parts[0]
        == parts[1]
        == [
            "Existing variables not in the checkpoint: B, c, z/y",
            "Variables names when this checkpoint was written which don't exist now: b, c_1",
            "(2 variable name(s) did match)",
        ]
    )


def test_another_dtype(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """InvalidArgumentError on both sides, with the same words for the cause; ours has changed nothing."""
    stored = held({"a": torch.ones(3), "b": torch.ones(3)})
    path = tensorflow.call("tensorflow_keras.write_variables", str(tmp_path / "w"), stored)
    wanted = {"a": torch.ones(3) * 5, "b": torch.ones(3, dtype=torch.int32)}
    theirs = error_of_tensorflow(tensorflow, "saver_restores", path, kinds(held(wanted)))
    ours = error_of_ours(path, wanted)
    assert theirs.kind == type(ours).__name__ == "InvalidArgumentError"
    for text in (theirs.message, str(ours)):
        assert "a mismatch between the current graph and the graph from the checkpoint" in text


def test_a_name_based_checkpoint(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The function raises ValueError, in TensorFlow's words."""
    path = tfckpt.save_file({"a": torch.ones(1)}, tmp_path / "n")
    theirs = error_of_tensorflow(tensorflow, "saver_of_checkpoint_restores", path, {"a": ("float32", (1,))})
    with pytest.raises(ValueError) as ours:
        tfckpt.saver_from_object_based_checkpoint(path, {"a": torch.ones(1)})
    assert theirs.kind == "ValueError"
    assert str(ours.value).startswith(theirs.message)


def test_a_custom_mapping(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Other names for the keys, on both sides."""
    stored = held({"a": torch.tensor([1.0]), "b": torch.tensor([2.0])})
    path = tensorflow.call("tensorflow_keras.write_variables", str(tmp_path / "v"), stored)
    keys = tfckpt.object_graph_key_mapping(path)
    mapping = {"x": keys["b"], "y": keys["a"]}
    wanted = {"x": stored["b"], "y": stored["a"]}
    tensors = blank(wanted)
    tfckpt.saver_from_object_based_checkpoint(path, tensors, names_to_keys=mapping).restore(path)
    assert held(tensors) == wanted
    call = ("tensorflow_keras.saver_of_checkpoint_restores", path, kinds(wanted), mapping)
    assert tensorflow.call(*call) == wanted
