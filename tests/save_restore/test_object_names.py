"""object_graph_key_mapping, and saveables that look up checkpoint keys by variable name."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import GOLDEN
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt import SaveableObject, SaveSpec
from torch_tfckpt.errors import DataLossError, NotFoundError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.save_restore.object_names import object_graph_key_mapping, with_keys
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.values import Value

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
MAPPINGS = {
    path.parent.relative_to(GOLDEN).as_posix(): content["object_graph"]
    for path in sorted(GOLDEN.rglob("expected.json"))
    if (content := json.loads(path.read_text(encoding="utf-8"))).get("object_graph")
}


def keys_of(var_list: object, names_to_keys: dict[str, str]) -> list[str]:
    """Return the keys that a saver of `var_list` looks up."""
    saveables = with_keys(VarList(var_list).to_save(), names_to_keys)
    return [spec.name for saveable in saveables for spec in saveable.specs]


def error_parts(var_list: object, *names: str) -> list[str]:
    """Return the parts of the error for a checkpoint with the given names."""
    with pytest.raises(NotFoundError) as raised:
        with_keys(VarList(var_list).to_save(), {name: f"key of {name}" for name in names})
    return str(raised.value).strip().split("\n\n")


# The mapping.


@pytest.mark.parametrize("folder", MAPPINGS)
def test_mapping_of_real_checkpoints(folder: str) -> None:
    """The mapping from full_name to checkpoint_key equals TensorFlow's, including "" for non-variables."""
    prefix = json.loads((GOLDEN / folder / "expected.json").read_text(encoding="utf-8"))["prefix"]
    found = object_graph_key_mapping(GOLDEN / folder / prefix)
    assert {name: key for name, key in found.items() if name} == {
        name: key for name, key in MAPPINGS[folder].items() if name
    }


def test_non_variables_are_in_the_mapping() -> None:
    """A value that is not a variable has the name ""."""
    found = object_graph_key_mapping(GOLDEN / "tensorflow" / "object" / "object")
    assert found[""] in ("state/.ATTRIBUTES/py_state", "table/.ATTRIBUTES/table")
    assert found["escaped"] == "by_name/a.Sb..c/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.mark.parametrize(
    "path", ["", "variables", "variables/variables", "variables/variables.index", "saved_model.pb"]
)
def test_any_spelling_of_the_path(path: str) -> None:
    """All spellings that CheckpointReader accepts are accepted, as str, bytes and PathLike."""
    where = GOLDEN / "digits-module" / path
    for spelled in (where, str(where), bytes(where)):
        assert "authors" in object_graph_key_mapping(spelled)


def test_a_name_based_checkpoint(tmp_path: Path) -> None:
    """NotFoundError in TensorFlow's words, with the location and the function to use."""
    path = tfckpt.save_file({"w": torch.zeros(1)}, tmp_path / "n")
    with pytest.raises(NotFoundError, match=rf"Key {GRAPH} not found in checkpoint: .*n stores tensors by name.*Saver"):
        object_graph_key_mapping(path)


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    """The same NotFoundError as from CheckpointReader."""
    with pytest.raises(NotFoundError, match="Failed to find any matching files"):
        object_graph_key_mapping(tmp_path / "nothing")


@pytest.mark.parametrize(
    "graph",
    [np.array(b"no graph", dtype=object), np.array([b""], dtype=object), torch.zeros(())],
    ids=["no graph", "a vector", "a number"],
)
def test_a_damaged_graph(graph: Value, tmp_path: Path) -> None:
    """DataLossError with the file and the tensor."""
    path = tfckpt.save_file({GRAPH: graph}, tmp_path / "d")
    with pytest.raises(DataLossError, match=rf'd: tensor "{GRAPH}": '):
        object_graph_key_mapping(path)


# Saveables with keys of the checkpoint.


def test_specs_have_keys_and_saveables_keep_their_names() -> None:
    """The given saveables are not changed; TensorFlow changes them and cannot save by name afterwards."""
    saveables = VarList({"a": torch.zeros(2), "b": torch.zeros(3)}).to_save()
    found = with_keys(saveables, {"a": "x", "b": "y", "c": "z"})
    assert [each.specs[0].name for each in found] == ["x", "y"]
    assert [each.name for each in found] == [each.specs[0].name for each in saveables] == ["a", "b"]


def test_other_fields_of_a_spec_are_kept() -> None:
    """Slice, dtype and device are kept, and functions are not called."""

    def never() -> torch.Tensor:
        raise AssertionError("called")

    class Mine(SaveableObject):
        def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> object:
            return restored_tensors[0]

    spec = SaveSpec(never, "4 5 0,2:-", "a", torch.bfloat16, "/job:w/task:1/cpu:0")
    (found,) = with_keys([Mine(None, [spec], "a")], {"a": "x"})
    assert repr(found.specs[0]) == repr(spec).replace("'a'", "'x'")
    assert found.restore([torch.ones(1)], None) == torch.ones(1)


def test_a_shared_tensor_is_found_under_any_of_its_names() -> None:
    """A breadth-first writer may have stored it under another name than ours."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2, bias=False))
            self.outer = self.inner[0]

    assert keys_of({"model": Tied()}, {"model/inner.0.weight": "x"}) == ["x"]
    assert keys_of({"model": Tied()}, {"model/outer.weight": "x"}) == ["x"]
    assert error_parts({"model": Tied()})[0] == "Existing variables not in the checkpoint: model/inner.0.weight"


def test_the_parts_of_the_error() -> None:
    """CASES 85: TensorFlow's words with sorted names, without the "" of non-variables, and a hint."""
    parts = error_parts({"d": torch.zeros(1), "b": torch.zeros(1), "both": torch.zeros(1)}, "z", "both", "y", "")
    assert parts[:3] == [
        "Existing variables not in the checkpoint: b, d",
        "Variables names when this checkpoint was written which don't exist now: y, z",
        "(1 variable name(s) did match)",
    ]
    assert "tfckpt.Checkpoint" in parts[3]


def test_a_similar_name_is_suggested() -> None:
    """A similar name in the checkpoint is suggested."""
    assert 'Closest: "dense/kernel".' in error_parts({"dense/kernle": torch.zeros(1)}, "dense/kernel", "dense/bias")[3]


def test_additional_names_are_ignored() -> None:
    """CASES 85: additional names alone are not an error."""
    assert keys_of({"a": torch.zeros(1)}, {"a": "x", "b": "y", "": "z"}) == ["x"]


def test_object_state_is_missing() -> None:
    """Strings and tensors of an object's state are not stored by name, even if a variable has that name."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1)).backward()
    optimizer.step()
    names, _, matched = error_parts({"model": model, "sgd": optimizer}, "model/weight", "model/bias", "sgd")[:3]
    momenta = "sgd/state/bias/momentum_buffer, sgd/state/weight/momentum_buffer"
    assert names == f"Existing variables not in the checkpoint: sgd, {momenta}"
    assert matched == "(2 variable name(s) did match)"


def test_long_lists_and_names_are_shortened() -> None:
    """The message stays short and printable whatever the file contains."""
    (first, *_) = error_parts({f"v{i:04}\x1b[2J": torch.zeros(1) for i in range(1200)})
    assert first.endswith(" and 200 more") and "\x1b" not in first
    assert len(error_parts({"a": torch.zeros(1)}, "n" * 1_000_000)[1]) < 500
