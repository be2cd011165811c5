"""Saver.save step by step, its arguments, and the saver as a SaverDef."""

import inspect
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from saver_files import VERSIONS, names_in

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver, SaverDef, Variable
from torch_tfckpt.format import saved_tensor_slices
from torch_tfckpt.storage.local import LOCAL


@pytest.mark.parametrize(
    ("step", "plain", "padded"),
    [
        (5, "-5", "-00000005"),
        (0, "-0", "-00000000"),
        (True, "-1", "-00000001"),
        (-1, "--1", "--0000001"),
        (123456789012, "-123456789012", "-123456789012"),
        (np.int32(5), "-5", "-00000005"),
        (torch.tensor(5), "-5", "-00000005"),
        (torch.tensor([[5]], dtype=torch.int32), "-5", "-00000005"),
        (Variable(torch.tensor(5), "global_step"), "-5", "-00000005"),
    ],
    ids=str,
)
def test_the_step_is_appended_to_the_path(tmp_path: Path, step: object, plain: str, padded: str) -> None:
    """CASES 29, 30: the step is a number or a tensor; pad_step_number pads it to eight digits."""
    for pad, suffix in ((False, plain), (True, padded)):
        folder = tmp_path / str(pad)
        folder.mkdir()
        saver = Saver({"v": torch.zeros(1)}, pad_step_number=pad)
        assert saver.save(folder / "m", global_step=step) == str(folder / f"m{suffix}")
        assert tfckpt.latest_checkpoint(folder) == str(folder / f"m{suffix}")
        assert (folder / f"m{suffix}.meta").is_file()


@pytest.mark.parametrize("step", [1.0, torch.tensor(1.0), torch.tensor([1, 2]), "global_step:0", [5]], ids=repr)
def test_a_step_that_is_not_an_integer(tmp_path: Path, step: object) -> None:
    """Another step is rejected, so that nothing is written under an unintended name."""
    with pytest.raises(ValueError, match=r"global_step is (a|of type)"):
        Saver({"v": torch.zeros(1)}).save(tmp_path / "m", global_step=step)
    assert names_in(tmp_path) == []


def test_the_state_file_has_no_directory(tmp_path: Path) -> None:
    """A latest_filename with a directory is rejected."""
    for name in ("sub/checkpoint", str(tmp_path / "state"), ""):
        with pytest.raises(ValueError, match="'latest_filename' must not contain path components"):
            Saver({"v": torch.zeros(1)}).save(tmp_path / "m", latest_filename=name)
    assert names_in(tmp_path) == []


def test_version_1_logs_a_deprecation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each save of version 1 logs a warning; version 2 logs none."""
    with caplog.at_level(logging.WARNING):
        Saver({"v": torch.zeros(1)}).save(tmp_path / "two")
        assert caplog.text == ""
        Saver({"v": torch.zeros(1)}, write_version=SaverDef.V1).save(tmp_path / "one")
    assert "version 1" in caplog.text


@pytest.mark.parametrize("sharded", [False, True])
def test_version_1_over_version_2(tmp_path: Path, sharded: bool) -> None:
    """Readers prefer version 2: version 1 of the same name would be saved, but never read. The other way is fine."""
    old, new = torch.ones(1), torch.zeros(1)
    path = Saver({"v": old}).save(tmp_path / "m", 1)
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    saver = Saver({"v": new}, write_version=SaverDef.V1, sharded=sharded)
    with pytest.raises(tfckpt.FailedPreconditionError, match="m-1 is a checkpoint of version 2, and all readers"):
        saver.save(tmp_path / "m", 1)
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before
    tfckpt.remove_checkpoint(path)
    assert torch.equal(torch.as_tensor(tfckpt.load_file(saver.save(tmp_path / "m", 1))["v"]), new)
    assert torch.equal(torch.as_tensor(tfckpt.load_file(Saver({"v": old}).save(tmp_path / "m", 1))["v"]), old)


@VERSIONS
@pytest.mark.parametrize("step", [None, 5])
def test_a_missing_directory(tmp_path: Path, version: int, step: int | None) -> None:
    """CASES 31: missing directories are created; a file in their place raises in TensorFlow's words."""
    (tmp_path / "actually_a_file").write_text("here")
    for asynchronously in (False, True):
        for folder in ("nonexisting_dir", "other/path1", "actually_a_file", "actually_a_file/deeper"):
            path = str(tmp_path / folder / "path")
            v0, v1 = torch.tensor(10.0), torch.tensor(20.0)
            saver = Saver({"v0": v0, "v1": v1}, write_version=version)
            try:
                saved = saver.save_async(path, step).result() if asynchronously else saver.save(path, step)
            except ValueError as error:
                assert str(error) == f"Parent directory of {path} doesn't exist, can't save."
                assert any("Remove the file at this path" in note for note in error.__notes__)
                assert folder.startswith("actually_a_file")
            else:
                assert not folder.startswith("actually_a_file")
                v0.zero_(), v1.zero_()
                saver.restore(saved)
                assert (v0.item(), v1.item()) == (10.0, 20.0)
                assert saver.last_checkpoints == [saved] == [tfckpt.latest_checkpoint(tmp_path / folder)]
                shutil.rmtree(tmp_path / folder.partition("/")[0])
    assert (tmp_path / "actually_a_file").read_text() == "here"


@pytest.mark.parametrize(
    "spell", [str, Path, os.fsencode, lambda path: f"file://{path}"], ids=["str", "Path", "bytes", "URI"]
)
def test_spellings_of_a_path(tmp_path: Path, spell: Callable[[str], Any]) -> None:
    """CASES 32: PathLike, bytes and file:// are accepted; the returned path is a plain str."""
    saver = Saver({"v": torch.ones(1)})
    path = str(tmp_path / "uri")
    assert saver.save(spell(path)) == path
    saver.restore(spell(path))
    saver.recover_last_checkpoints([spell(path)])
    assert saver.last_checkpoints == [path]


def test_a_save_without_state(tmp_path: Path) -> None:
    """write_state=False writes no state file, does not count the checkpoint and deletes nothing."""
    saver = Saver({"v": torch.zeros(1)}, max_to_keep=1)
    first = saver.save(tmp_path / "m", 0)
    for step in (1, 2, 3):
        saver.save(tmp_path / "m", step, write_state=False, write_meta_graph=False)
    assert saver.last_checkpoints == [first] == [tfckpt.latest_checkpoint(tmp_path)]
    assert [name for name in names_in(tmp_path) if name.endswith(".index")] == [f"m-{i}.index" for i in range(4)]


def test_names_of_the_state_file_and_of_the_meta_graph(tmp_path: Path) -> None:
    """latest_filename and meta_graph_suffix are used both for writing and for deleting."""
    saver = Saver({"v": torch.zeros(1)}, max_to_keep=1)
    for step in (0, 1):
        saver.save(tmp_path / "m", step, latest_filename="newest", meta_graph_suffix="graph")
    assert names_in(tmp_path) == ["m-1.data-00000-of-00001", "m-1.graph", "m-1.index", "newest"]
    assert tfckpt.latest_checkpoint(tmp_path, "newest") == str(tmp_path / "m-1")
    assert tfckpt.latest_checkpoint(tmp_path) is None


def test_the_meta_graph_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is checkpoint, state file, deletion, meta graph."""
    order: list[str] = []
    kind = type(LOCAL)
    replace, link, remove = kind.replace, kind.link, kind.remove

    def replacing(self: Any, source: str, target: str) -> None:
        order.append(f"+{Path(target).name}")
        replace(self, source, target)

    def linking(self: Any, source: str, target: str) -> None:
        order.append(f"+{Path(target).name}")
        link(self, source, target)

    def removing(self: Any, path: str) -> None:
        if Path(path).exists():
            order.append(f"-{Path(path).name}")
        remove(self, path)

    saver = Saver({"v": torch.zeros(1)}, max_to_keep=1)
    saver.save(tmp_path / "m", 0)
    monkeypatch.setattr(kind, "replace", replacing)
    monkeypatch.setattr(kind, "link", linking)
    monkeypatch.setattr(kind, "remove", removing)
    saver.save(tmp_path / "m", 1)
    final = [step for step in order if "tempstate" not in step]
    assert final[:3] == ["+m-1.data-00000-of-00001", "+m-1.index", "+checkpoint"]
    assert set(final[3:-1]) == {"-m-0.meta", "-m-0.data-00000-of-00001", "-m-0.tfckpt-unlisted"}
    assert final[-1] == "+m-1.meta"
    assert [name for name in names_in(tmp_path) if "m-0" in name] == []


@pytest.mark.parametrize("asynchronously", [False, True])
def test_debug_info_is_rejected(tmp_path: Path, asynchronously: bool) -> None:
    """save_debug_info raises because it cannot be honoured."""
    saver = Saver({"v": torch.zeros(1)})
    with pytest.raises(NotImplementedError, match="save_debug_info"):
        (saver.save_async if asynchronously else saver.save)(tmp_path / "m", save_debug_info=True)
    assert names_in(tmp_path) == []


def test_save_and_save_async_take_the_same_arguments() -> None:
    """save_async has two more arguments; save has those of tf.train.Saver first, in the same order."""
    plain, beside = inspect.signature(Saver.save).parameters, inspect.signature(Saver.save_async).parameters
    assert [str(each) for name, each in beside.items() if name in plain] == [str(each) for each in plain.values()]
    assert [name for name in beside if name not in plain] == ["if_busy", "block_until_staged"]
    assert " ".join(list(plain)[1:9]) == (
        "save_path global_step latest_filename meta_graph_suffix write_meta_graph write_state strip_default_attrs "
        "save_debug_info"
    )
    assert " ".join(list(inspect.signature(Saver).parameters)[:15]) == (
        "var_list reshape sharded max_to_keep keep_checkpoint_every_n_hours name restore_sequentially saver_def "
        "builder defer_build allow_empty write_version pad_step_number save_relative_paths filename"
    )


def test_a_slice_too_large_for_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 86: raised before anything is published; the test lowers the limit from 2 GiB."""
    monkeypatch.setattr(saved_tensor_slices, "MAX_MESSAGE_BYTES", 2000)
    saver = Saver({"var": torch.zeros(2, 10, 10, 10, dtype=torch.bool)}, write_version=SaverDef.V1)
    with pytest.raises(tfckpt.InvalidArgumentError, match="Tensor slice is too large to serialize"):
        saver.save(tmp_path / "large")
    assert names_in(tmp_path) == []


# The saver as a SaverDef.


def test_the_names_of_a_scope() -> None:
    """from_proto adds a scope, to_proto removes it and returns None for names in another scope."""
    saver_def = Saver({"v": torch.zeros(1)}, name="mine", max_to_keep=3, keep_checkpoint_every_n_hours=0.1).to_proto()
    assert saver_def is not None
    assert text_format.MessageToString(saver_def) == (
        'filename_tensor_name: "mine/Const:0"\nsave_tensor_name: "mine/control_dependency:0"\n'
        'restore_op_name: "mine/restore_all"\nmax_to_keep: 3\nkeep_checkpoint_every_n_hours: 0.1\nversion: V2\n'
    )
    assert saver_def.keep_checkpoint_every_n_hours == float(np.float32(0.1)) != 0.1
    imported = Saver.from_proto(saver_def, "new_model", var_list={"v": torch.zeros(1)})
    assert imported.as_saver_def().restore_op_name == "new_model/mine/restore_all"  # type: ignore[union-attr]
    assert imported.to_proto("new_model") == saver_def == imported.to_proto("new_model/")
    assert imported.to_proto("other") is None and imported.to_proto("new") is None
    assert saver_def.restore_op_name == "mine/restore_all"  # the given message is not changed
    odd = SaverDef()
    odd.CopyFrom(saver_def)
    odd.save_tensor_name = "elsewhere/save:0"
    assert Saver.from_proto(odd, var_list={"v": torch.zeros(1)}).to_proto("mine") is None


def test_settings_of_a_saver_def_override_arguments(tmp_path: Path) -> None:
    """max_to_keep, sharded and version of the SaverDef are used."""
    there = Saver({"a": torch.zeros(1)}, sharded=True, max_to_keep=1, write_version=SaverDef.V1).as_saver_def()
    var_list = [Variable(torch.ones(1), "a", device="/cpu:0"), Variable(torch.ones(1), "b", device="/cpu:1")]
    saver = Saver(var_list, sharded=False, max_to_keep=5, write_version=SaverDef.V2, saver_def=there)
    for step in (1, 2):
        assert saver.save(tmp_path / "m", step) == str(tmp_path / f"m-{step}-?????-of-00002")
    assert names_in(tmp_path) == ["checkpoint", "m-2-00000-of-00002", "m-2-00001-of-00002", "m-2.meta"]


@pytest.mark.parametrize(
    ("sharded", "version", "operation"),
    [
        (False, SaverDef.V2, "control_dependency"),
        (False, SaverDef.V1, "control_dependency"),
        (True, SaverDef.V2, "Identity"),
        (True, SaverDef.V1, "ShardedFilespec"),
    ],
)
def test_saver_def(sharded: bool, version: int, operation: str) -> None:
    """CASES 41: `sharded` is recorded, names are those of TensorFlow's operations, and "no limit" is stored as 0."""
    saver_def = Saver({"v": torch.zeros(1)}, sharded=sharded, write_version=version, max_to_keep=None).as_saver_def()
    assert saver_def is not None
    assert (saver_def.sharded, saver_def.version, saver_def.max_to_keep) == (sharded, version, 0)
    assert saver_def.save_tensor_name == f"save/{operation}:0"


def test_the_default_filename() -> None:
    """CASES 11: the SaverDef names the default filename, as an eager saver of TensorFlow does."""
    saver_def = Saver({"v": torch.zeros(1)}, filename="somerandomfilename").as_saver_def()
    assert saver_def is not None and saver_def.filename_tensor_name == "somerandomfilename"


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001", "../x", "a/b"])
def test_a_meta_graph_overwrites_no_file_of_the_checkpoint(tmp_path: Path, suffix: str) -> None:
    """Such a suffix is rejected before anything is written; it is ignored without a meta graph."""
    saver = Saver({"v": torch.ones(2)})
    with pytest.raises(
        tfckpt.InvalidArgumentError, match="would overwrite a file of the checkpoint, or write to another directory"
    ):
        saver.save(tmp_path / "m", meta_graph_suffix=suffix)
    assert list(tmp_path.iterdir()) == []
    saver.save(tmp_path / "m", meta_graph_suffix=suffix, write_meta_graph=False)
