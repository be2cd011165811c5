"""Savers that restore by name from object-based checkpoints. CASES 85."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from object_files import children, variable, write_graph, write_variables
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt import SaveableObject, Saver, SaveSpec, Variable
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.object_graph import TrackableObject
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.save_restore.builder import BaseSaverBuilder, Saveables
from torch_tfckpt.values import Value


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return an object-based checkpoint of "dense/kernel" = [[1, 2]], "dense/bias" = [3] and "step" = 7."""
    tensors = {
        "dense/kernel": torch.tensor([[1.0, 2.0]]),
        "dense/bias": torch.tensor([3.0]),
        "step": torch.tensor(7, dtype=torch.int64),
    }
    return write_variables(tmp_path / "ckpt", tensors)


def blank() -> dict[str, torch.Tensor]:
    """Return zeroed tensors that match the checkpoint of `path`."""
    return {
        "dense/kernel": torch.zeros(1, 2),
        "dense/bias": torch.zeros(1),
        "step": torch.zeros((), dtype=torch.int64),
    }


def values(tensors: dict[str, torch.Tensor]) -> list[object]:
    return [tensor.tolist() for tensor in tensors.values()]


RESTORED = [[[1.0, 2.0]], [3.0], 7]
BLANK = [[[0.0, 0.0]], [0.0], 0]


# Saver.restore without a given mapping of names.


@pytest.mark.parametrize("options", [{}, {"sharded": True}, {"restore_sequentially": True}], ids=str)
def test_restore_by_names(path: str, options: dict[str, bool], caplog: pytest.LogCaptureFixture) -> None:
    """CASES 85: names are the full names of the variables; one warning names the file."""
    tensors = blank()
    Saver(tensors, **options).restore(path)  # type: ignore[arg-type]
    assert values(tensors) == RESTORED
    (text,) = caplog.messages
    assert path in text and "object-based" in text and "tfckpt.Checkpoint" in text


@pytest.mark.parametrize("spelled", ["prefix", "index", "directory", "bytes", "PathLike"])
def test_any_spelling_of_the_path(path: str, spelled: str) -> None:
    """Each spelling that CheckpointReader accepts is accepted."""
    spellings: dict[str, str | bytes | os.PathLike[str]] = {
        "prefix": path,
        "index": f"{path}.index",
        "directory": Path(path).parent,
        "bytes": os.fsencode(path),
        "PathLike": Path(path),
    }
    tensors = blank()
    Saver(tensors).restore(spellings[spelled])
    assert values(tensors) == RESTORED


def test_some_of_the_variables(path: str) -> None:
    """CASES 85: further variables of the checkpoint are ignored."""
    bias = torch.zeros(1)
    Saver([Variable(bias, "dense/bias")]).restore(path)
    assert bias.tolist() == [3.0]


def test_a_module_under_a_key(tmp_path: Path) -> None:
    """A module's tensors are found by the names that Saver gives them: "model/0.weight"."""
    model = nn.Sequential(nn.Linear(1, 1))
    stored = {"model/0.weight": torch.tensor([[5.0]]), "model/0.bias": torch.tensor([6.0])}
    Saver({"model": model}).restore(write_variables(tmp_path / "m", stored))
    assert [parameter.item() for parameter in model.parameters()] == [5.0, 6.0]


def test_a_saver_restores_both_kinds_in_turn(path: str, tmp_path: Path) -> None:
    """The saveables keep their names, so that the saver saves and restores by name before and after."""
    tensors = blank()
    saver = Saver(tensors)
    by_name = saver.save(tmp_path / "by_name", write_meta_graph=False)
    for each, expected in ((path, RESTORED), (by_name, BLANK), (path, RESTORED)):
        saver.restore(each)
        assert values(tensors) == expected
    again = saver.save(tmp_path / "again", write_meta_graph=False)
    assert again is not None
    assert tfckpt.load_file(again).keys() == tensors.keys()


def test_keys_are_names_too(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A saver of checkpoint keys reads an object-based file like any other, without a warning."""
    bias = torch.zeros(1)
    Saver({"v1/.ATTRIBUTES/VARIABLE_VALUE": bias}).restore(path)
    assert bias.tolist() == [3.0] and caplog.messages == []


def test_slices(tmp_path: Path) -> None:
    """A slice of a variable is restored as a slice."""
    path = write_variables(tmp_path / "s", {"table": torch.arange(6.0).reshape(3, 2)})
    rows = torch.zeros(1, 2)
    info = tfckpt.SaveSliceInfo("table", (3, 2), (1, 0), (1, 2))
    Saver([Variable(rows, "part", info)]).restore(path)
    assert rows.tolist() == [[2.0, 3.0]]


def test_reshape(path: str) -> None:
    """With reshape, values are reshaped to the variables' shapes here too."""
    kernel = torch.zeros(2, 1)
    Saver({"dense/kernel": kernel}, reshape=True).restore(path)
    assert kernel.tolist() == [[1.0], [2.0]]


class Remembering(SaveableObject):
    """Saveable that keeps the restored value."""

    value: Value | None = None

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        self.value = restored_tensors[0]


def test_a_custom_saveable(path: str) -> None:
    """The given object itself is restored, and its specs keep their names."""
    mine = Remembering(None, [SaveSpec(torch.zeros(1), "", "dense/bias")], "mine")
    Saver([mine]).restore(path)
    assert isinstance(mine.value, torch.Tensor) and mine.value.tolist() == [3.0]
    assert mine.specs[0].name == "dense/bias"


def test_a_custom_builder(path: str) -> None:
    """The custom builder receives the checkpoint's keys."""
    asked: list[str] = []

    class Builder(BaseSaverBuilder):
        def bulk_restore(self, reader: CheckpointReader, saveables: Saveables, *rest: object) -> list[Value]:
            asked.extend(spec.name for saveable in saveables for spec in saveable.specs)
            return super().bulk_restore(reader, saveables, 0, False)

    Saver({"dense/bias": torch.zeros(1)}, builder=Builder()).restore(path)
    assert asked == ["v1/.ATTRIBUTES/VARIABLE_VALUE"]


# Mismatches: nothing is changed, and the message contains the reason.


def test_missing_names(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """CASES 85: the error has three parts; matching variables are not assigned either."""
    tensors = {**blank(), "dense/kernel_1": torch.zeros(1), "new": torch.zeros(1)}
    del tensors["dense/kernel"]
    with pytest.raises(NotFoundError) as raised:
        Saver(tensors).restore(path)
    assert str(raised.value).startswith(
        "\n\nExisting variables not in the checkpoint: dense/kernel_1, new\n\n"
        "Variables names when this checkpoint was written which don't exist now: dense/kernel\n\n"
        "(2 variable name(s) did match)\n\n"
    )
    assert tensors["step"] == 0 and caplog.messages == []


def test_an_optimizer_is_missing(path: str) -> None:
    """An optimizer's state includes a string, which an object-based file does not store under that name."""
    bias = nn.Parameter(torch.zeros(1))
    with pytest.raises(NotFoundError, match=r"Existing variables not in the checkpoint: adam\n"):
        Saver({"dense/bias": bias, "adam": torch.optim.Adam([bias])}).restore(path)
    assert bias.item() == 0


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (torch.zeros((), dtype=torch.int32), "expected dtype int32 does not equal original dtype int64"),
        (torch.zeros(2, dtype=torch.int64), "incompatible tensor"),
    ],
    ids=["dtype", "shape"],
)
@pytest.mark.parametrize("sequentially", [False, True])
def test_a_mismatch_of_the_last_variable(path: str, wrong: torch.Tensor, text: str, sequentially: bool) -> None:
    """All values are checked before the first is assigned; the error has TensorFlow's wording."""
    tensors = {**blank(), "step": wrong}
    with pytest.raises(InvalidArgumentError, match=rf"(?s)a mismatch between the current graph.*{text}"):
        Saver(tensors, restore_sequentially=sequentially).restore(path)
    assert not any(tensor.any() for tensor in tensors.values())


def test_a_damaged_value(path: str) -> None:
    """A damaged value raises DataLossError, and nothing is assigned."""
    data = Path(f"{path}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    tensors = blank()
    with pytest.raises(DataLossError, match="checksum"):
        Saver(tensors).restore(path)
    assert values(tensors) == BLANK


def test_a_key_that_is_not_in_the_file(tmp_path: Path) -> None:
    """A key that the graph refers to but the file lacks raises NotFoundError with the key."""
    path = write_graph(tmp_path / "k", [TrackableObject(children(("v", 1))), variable("v", "v/gone")])
    with pytest.raises(NotFoundError, match=r"(?s)most likely due to a Variable name.*Key v/gone not found"):
        Saver({"v": torch.zeros(1)}).restore(path)


def test_two_names_for_one_key(tmp_path: Path) -> None:
    """If two names map to one key, both variables get its value."""
    nodes = [TrackableObject(children(("a", 1), ("b", 2))), variable("a", "k"), variable("b", "k")]
    a, b = torch.zeros(1), torch.zeros(1)
    Saver({"a": a, "b": b}).restore(write_graph(tmp_path / "k", nodes, {"k": torch.ones(1)}))
    assert a.item() == b.item() == 1


def test_a_damaged_graph(tmp_path: Path) -> None:
    """Names cannot be looked up in a damaged graph: DataLossError names the graph."""
    graph = np.array(b"no graph", dtype=object)
    path = tfckpt.save_file({"_CHECKPOINTABLE_OBJECT_GRAPH": graph}, tmp_path / "d")
    with pytest.raises(DataLossError, match='"_CHECKPOINTABLE_OBJECT_GRAPH": this is not an object graph'):
        Saver({"a": torch.zeros(1)}).restore(path)


def test_a_missing_data_file(path: str) -> None:
    """A missing data file raises NotFoundError for the file, or for the name if the graph is in that file."""
    Path(f"{path}.data-00000-of-00001").unlink()
    for name, text in (("v1/.ATTRIBUTES/VARIABLE_VALUE", "data-00000-of-00001"), ("dense/bias", "Key dense/bias")):
        with pytest.raises(NotFoundError, match=f"(?s)Restoring from checkpoint failed.*{text}"):
            Saver({name: torch.zeros(1)}).restore(path)


def test_a_name_based_checkpoint_that_lacks_a_name(tmp_path: Path) -> None:
    """CASES 83: a missing name in a name-based checkpoint is reported without mentioning an object graph."""
    path = tfckpt.save_file({"a": torch.zeros(1)}, tmp_path / "n")
    with pytest.raises(NotFoundError, match="Key b not found in checkpoint") as raised:
        Saver({"b": torch.zeros(1)}).restore(path)
    assert "OBJECT_GRAPH" not in str(raised.value)


# saver_from_object_based_checkpoint.


def test_a_saver_of_a_checkpoint(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """The saver restores this and similar checkpoints without a warning."""
    tensors = blank()
    saver = tfckpt.saver_from_object_based_checkpoint(path, tensors)
    saver.restore(path)
    assert values(tensors) == RESTORED and caplog.messages == []


def test_registered_variables(path: str) -> None:
    """CASES 85: without a var_list, the registered variables are used."""
    bias = torch.zeros(1)
    with tfckpt.Collections().as_default():
        tfckpt.add_to_collection(tfckpt.GraphKeys.GLOBAL_VARIABLES, Variable(bias, "dense/bias"))
        tfckpt.saver_from_object_based_checkpoint(path).restore(path)
    assert bias.item() == 3


def test_a_custom_mapping(path: str) -> None:
    """A given mapping replaces the checkpoint's; the path need not exist yet."""
    bias = torch.zeros(1)
    mapping = {"renamed": "v1/.ATTRIBUTES/VARIABLE_VALUE"}
    tfckpt.saver_from_object_based_checkpoint("nowhere", {"renamed": bias}, names_to_keys=mapping).restore(path)
    assert bias.item() == 3


def test_the_cached_saver_is_returned_if_the_names_match(path: str) -> None:
    """As in TensorFlow, the cached saver is returned after its names were checked."""
    cached = tfckpt.saver_from_object_based_checkpoint(path, blank())
    assert tfckpt.saver_from_object_based_checkpoint(path, blank(), cached_saver=cached) is cached
    with pytest.raises(NotFoundError, match=r"\(0 variable name"):
        tfckpt.saver_from_object_based_checkpoint(path, {"other": torch.zeros(1)}, cached_saver=cached)


def test_a_checkpoint_that_is_not_object_based(tmp_path: Path) -> None:
    """CASES 85: ValueError "not an object-based checkpoint", even if there is no checkpoint."""
    path = tfckpt.save_file({"a": torch.zeros(1)}, tmp_path / "n")
    for where in (path, f"{path}-gone"):
        with pytest.raises(ValueError, match=r"Checkpoint in .* not an object-based checkpoint") as raised:
            tfckpt.saver_from_object_based_checkpoint(where, {"a": torch.zeros(1)})
        assert isinstance(raised.value, InvalidArgumentError) and where in str(raised.value)


def test_a_given_builder_is_used(path: str) -> None:
    """A builder passed to the function restores the values."""

    class Builder(BaseSaverBuilder):
        def bulk_restore(self, reader: CheckpointReader, saveables: Saveables, *rest: object) -> list[Value]:
            return [torch.tensor([42.0])]

    bias = torch.zeros(1)
    tfckpt.saver_from_object_based_checkpoint(path, {"dense/bias": bias}, Builder()).restore(path)
    assert bias.item() == 42


def test_nothing_to_restore(path: str) -> None:
    """An empty var_list raises the same error as Saver."""
    with pytest.raises(ValueError, match="No variables to save"):
        tfckpt.saver_from_object_based_checkpoint(path, {})


def test_a_name_of_several_variables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If several variables have one name, the last is restored, as in TensorFlow, and the name is logged."""
    twins = [tfckpt.Variable(torch.full((2,), float(number)), "twin") for number in (1, 2)]
    path = tfckpt.Checkpoint(twins=twins, other=tfckpt.Variable(torch.ones(1), "other")).write(tmp_path / "m")
    tensor, other = torch.zeros(2), torch.zeros(1)
    tfckpt.Saver({"other": other}).restore(path)
    assert "several variables" not in caplog.text
    tfckpt.Saver({"twin": tensor, "other": other}).restore(path)
    assert tensor.tolist() == [2.0, 2.0]
    assert 'for each name the last one is restored, as in TensorFlow: "twin"' in caplog.text
