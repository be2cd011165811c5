"""One Keras 3 model in every kind of checkpoint: exported, where every variable is stored twice under one full name,
and with its variables under keys of the optimizer. Each way to name its variables finds them in each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from layer_twins import Answer, tensor
from tensorflow_process import TensorFlowProcess
from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.cli.main import main
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.initialization import init_from_checkpoint
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.tensor_dict import save_file

FORMS = ["export", "saved_model", "model_first", "optimizer_first", "root"]
# Paths of the layers through the model; in an export there are only lists of variables.
LAYERS = {
    "saved_model": "_layers", "model_first": "model/_functional/_operations",
    "optimizer_first": "net/_functional/_operations", "root": "_functional/_operations",
}  # fmt: skip
NAMES = {
    f"net/{layer}/{stored}": f"{layer}.{name}"
    for layer in "ab"
    for stored, name in (("kernel", "weight"), ("bias", "bias"))
}


@pytest.fixture(scope="module")
def saved(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    folder = tmp_path_factory.mktemp("sources")
    return folder, tensorflow.call("tensorflow_sources.save", str(folder))


def empty() -> nn.ModuleDict:
    return nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})


def assert_loaded(model: nn.Module, answer: Answer) -> None:
    for stored, name in NAMES.items():
        value = tensor(answer[stored])
        assert torch.equal(model.get_parameter(name), value.t() if value.dim() == 2 else value), name


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_name_variables(saved: tuple[Path, Answer], form: str) -> None:
    """No rules, rules for full names, patterns, module rules and paths; init_from_checkpoint by names and paths."""
    folder, answer = saved
    rules: list[Any] = [
        None, NAMES, [(r"net/(\w)/kernel", r"\1.weight"), (r"net/(\w)/bias", r"\1.bias")],
    ]  # fmt: skip
    maps = [NAMES]
    if form in LAYERS:
        leaves = (("_kernel", "weight"), ("bias", "bias"))
        paths = {
            f"{LAYERS[form]}/{number}/{stored}": f"{layer}.{name}"
            for number, layer in ((1, "a"), (2, "b"))
            for stored, name in leaves
        }
        rules.append({path.replace("/", "."): name for path, name in paths.items()})
        maps += [paths, {path.replace("/", "."): name for path, name in paths.items()}]
    for mapper in rules:
        model = empty()
        report = load_model(model, folder / form, mapper=mapper)
        assert_loaded(model, answer)
        assert (report.missing, report.unexpected, report.unused_rules) == ([], [], [])
    for assignment_map in maps:
        model = empty()
        init_from_checkpoint(model, folder / form, assignment_map)
        assert_loaded(model, answer)


@pytest.mark.parametrize("form", FORMS)
def test_listing(saved: tuple[Path, Answer], form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`tfckpt ls` shows the full name next to each key."""
    assert main(["ls", str(saved[0] / form)]) == 0
    shown = capsys.readouterr().out
    assert all(f'variable "{name}"' in shown for name in NAMES)


def test_copies_of_exports_alone(saved: tuple[Path, Answer]) -> None:
    """A rule may name either copy by its key."""
    folder, answer = saved
    with CheckpointReader(folder / "export") as reader:
        keys = [(key, reader.variable_name(key)) for key in reader.keys()]
    for start in ("variables/", "_all_variables/"):
        mapper = {key: NAMES[name] for key, name in keys if name in NAMES and key.startswith(start)}
        assert len(mapper) == 4
        layouts: dict[str, Any] = {
            key: (name, "dense") if name.endswith("weight") else name for key, name in mapper.items()
        }
        model = empty()
        assert load_model(model, folder / "export", mapper=layouts).unexpected == []
        assert_loaded(model, answer)


def test_equal_values_under_other_names_are_not_copies(tmp_path: Path) -> None:
    """Only variables with one full name are."""
    save_file({"a/kernel": torch.eye(3), "b/kernel": torch.eye(3)}, tmp_path / "m")
    with pytest.raises(InvalidArgumentError, match="both mapped"):
        load_model(nn.Linear(3, 3, bias=False), tmp_path / "m", mapper=[("./kernel", "weight")])


@pytest.mark.parametrize("form", FORMS)
def test_rules_are_found(saved: tuple[Path, Answer], form: str) -> None:
    """Of a variable that is stored twice, the layer's is taken, not that of a list of all variables."""
    folder, answer = saved
    model = empty()
    load_model(model, folder / form, mapper=KeyMapper.infer(folder / form, model))
    assert_loaded(model, answer)
