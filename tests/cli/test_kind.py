"""tfckpt show on files that are not checkpoints, and what ls, verify and meta report about them."""

import json
from pathlib import Path

import pytest
import torch
from other_files import OTHER_FILES

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main
from torch_tfckpt.format.file_kind import FileKind, Reading

Output = pytest.CaptureFixture[str]
KEPT = Path(__file__).resolve().parent.parent / "foreign_files" / "golden"
LISTED = ("model.safetensors", "model.pt", "arrays.npz")  # formats whose tensors `show` lists


def shown(path: Path | str, capsys: Output) -> tuple[int, str, str]:
    status = main(["show", str(path)])
    captured = capsys.readouterr()
    return status, captured.out.replace(f"{path}: ", ""), captured.err


@pytest.mark.parametrize("name", sorted(set(OTHER_FILES) - {*LISTED, "module.pth", "checkpoint", "large.json"}))
def test_each_kind_of_file(name: str, tmp_path: Path, capsys: Output) -> None:
    """One line on stdout with the kind and what reads it; status 0 for what tfckpt shows, else 1."""
    kind, write = OTHER_FILES[name]
    write(tmp_path / name)
    status, out, err = shown(tmp_path / name, capsys)
    if kind is FileKind.SAFETENSORS_INDEX:
        assert (status, out) == (1, "") and "model-00001-of-00002.safetensors" in err  # its data files are missing
    else:
        assert (status, out, err) == (0 if kind.reading is Reading.GRAPH else 1, f"{kind.what}. {kind.hint}.\n", "")


@pytest.mark.parametrize("name", ["fingerprint.pb", "weights", "model.onnx", "short.onnx"])
def test_unknown_bytes(name: str, tmp_path: Path, capsys: Output) -> None:
    """A file that no format explains is not called a damaged checkpoint, unless its name says it must be one."""
    random = bytes(torch.randint(1, 255, (300,), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)))
    (tmp_path / name).write_bytes(random[: 8 if name.startswith("short") else 300])
    kind = FileKind.UNKNOWN
    assert shown(tmp_path / name, capsys) == (1, f"{kind.what}. {kind.hint}.\n", "")
    (tmp_path / f"{name}.index").write_bytes(random)
    status, out, err = shown(tmp_path / f"{name}.index", capsys)
    assert (status, out) == (1, "") and "not an sstable" in err


@pytest.mark.parametrize("name", LISTED)
def test_formats_that_are_read(name: str, tmp_path: Path, capsys: Output) -> None:
    OTHER_FILES[name][1](tmp_path / name)
    status, out, err = shown(tmp_path / name, capsys)
    assert (status, err) == (0, "") and "tensor" in out


@pytest.mark.parametrize(
    ("name", "kind"),
    [("frozen.pb", FileKind.GRAPH), ("model.tflite", FileKind.TFLITE)],
)
def test_files_of_tensorflow(name: str, kind: FileKind, capsys: Output) -> None:
    assert shown(KEPT / name, capsys) == (1, f"{kind.what}. {kind.hint}.\n", "")


def test_meta_graphs_are_shown_by_meta(golden: Path, tmp_path: Path, capsys: Output) -> None:
    """Meta graphs without a checkpoint are shown: a .meta file, and a saved_model.pb without variables."""
    (tmp_path / "m.meta").write_bytes((golden / "digits-cnn" / "model.ckpt-144.meta").read_bytes())
    status, out, _ = shown(tmp_path / "m.meta", capsys)
    assert status == 0 and "`tfckpt meta` shows it" in out
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes((golden / "digits-module" / "saved_model.pb").read_bytes())
    for path in (saved, saved / "saved_model.pb"):
        status, out, _ = shown(path, capsys)
        assert status == 0 and "`tfckpt meta` shows it" in out
        assert main(["meta", str(path)]) == 0
        capsys.readouterr()


def test_checkpoints_are_shown_as_before(tmp_path: Path, capsys: Output) -> None:
    """As before: a SavedModel's variables, a checkpoint with a .meta file, a directory of another format."""
    tfckpt.save_file({"x": torch.ones(3)}, tmp_path / "m")
    (tmp_path / "m.meta").write_bytes(b"")
    (tmp_path / "model.h5").write_bytes((KEPT / "model.h5").read_bytes())
    for path in (tmp_path / "m", tmp_path / "m.meta", tmp_path):
        status, out, _ = shown(path, capsys)
        assert status == 0 and "TensorFlow checkpoint, version 2" in out


def test_damaged_checkpoints_keep_their_error(tmp_path: Path, capsys: Output) -> None:
    """Nothing on stdout, the damage on stderr; empty, zeroed and unknown files are named as such."""
    tfckpt.save_file({"x": torch.ones(3)}, tmp_path / "m")
    index = tmp_path / "m.index"
    whole = index.read_bytes()
    for content in (whole[:-1], whole[:-8] + bytes(8), whole[:60], whole[:3] + b"\xff" + whole[4:]):
        index.write_bytes(content)
        for path in (tmp_path / "m", index):
            status, out, err = shown(path, capsys)
            assert (status, out) == (1, "") and "The file is damaged, partly copied" in err
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 20)
    assert "and so does a damaged file" in shown(tmp_path / "noise", capsys)[1]
    (tmp_path / "nothing").write_bytes(b"")
    assert shown(tmp_path / "nothing", capsys)[:2] == (1, "an empty file. Copy it again.\n")
    (tmp_path / "zeros").write_bytes(bytes(1000))
    assert shown(tmp_path / "zeros", capsys)[1].startswith(
        "a file that begins and ends with zero bytes, probably from an interrupted copy"
    )


def test_directories_with_damaged_checkpoints_keep_their_error(tmp_path: Path, capsys: Output) -> None:
    """Such as a single one, one named by a state file, a SavedModel, and a damaged safetensors file."""
    folder = tmp_path / "one"
    tfckpt.save_file({"x": torch.ones(3)}, folder / "m-1")
    index = folder / "m-1.index"
    index.write_bytes(index.read_bytes()[:-1])
    saved = tmp_path / "saved" / "variables"
    saved.mkdir(parents=True)
    (saved / "variables.index").write_bytes(index.read_bytes())
    (saved.parent / "saved_model.pb").write_bytes(b"")
    for path in (folder, saved.parent, saved):
        status, out, err = shown(path, capsys)
        assert (status, out) == (1, "") and "The file is damaged, partly copied" in err
    tfckpt.save_file({"x": torch.ones(3)}, folder / "m-2")
    (folder / "checkpoint").write_text('model_checkpoint_path: "m-3"\n')
    status, out, err = shown(folder, capsys)
    assert (status, out) == (1, "") and 'names "m-3", which does not exist' in err
    other = tmp_path / "other"
    other.mkdir()
    OTHER_FILES["model.safetensors"][1](other / "model.safetensors")
    content = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(content[:-1])
    status, out, err = shown(other, capsys)
    assert (status, out) == (1, "") and "the tensors end at byte" in err


def test_directories(tmp_path: Path, capsys: Output) -> None:
    """Each kind of directory has its own message: checkpoints, TensorFlow.js, Keras, safetensors, empty."""
    for step in (1, 2):
        tfckpt.save_file({"x": torch.ones(3)}, tmp_path / "runs" / f"m-{step}")
    status, out, _ = shown(tmp_path / "runs", capsys)
    assert status == 0 and out.splitlines() == [
        "a directory with 2 checkpoints and no `checkpoint` file that names the newest:",
        f"  {tmp_path}/runs/m-1",
        f"  {tmp_path}/runs/m-2",
        "`tfckpt show` and `tfckpt ls` accept any of these names.",
    ]
    web = tmp_path / "web"
    web.mkdir()
    OTHER_FILES["model.json"][1](web / "model.json")
    (web / "group1-shard1of1.bin").write_bytes(bytes(range(1, 256)))
    status, out, _ = shown(web, capsys)
    assert status == 1 and out.startswith("the directory of a TensorFlow.js model. Not supported. Convert it")
    status, out, _ = shown(web / "group1-shard1of1.bin", capsys)
    assert status == 1 and out.startswith("weights of the TensorFlow.js model in model.json. Not supported. Convert")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "model.keras").write_bytes((KEPT / "model.keras").read_bytes())
    (mixed / "notes.txt").write_text("hello")
    status, out, _ = shown(mixed, capsys)
    assert status == 0 and out.splitlines() == [
        "a directory with 2 files and no `checkpoint` file:",
        f"  model.keras: {FileKind.KERAS.what}",
        "  notes.txt: a text file",
        "`tfckpt show FILE` shows how to read one of them.",
    ]
    for name in ("a.safetensors", "b.safetensors"):
        OTHER_FILES["model.safetensors"][1](mixed / name)
    status, out, _ = shown(mixed, capsys)
    assert status == 0 and "  a.safetensors: a safetensors file" in out.splitlines()
    (tmp_path / "empty").mkdir()
    status, out, err = shown(tmp_path / "empty", capsys)
    assert (status, out) == (1, "") and "There is no checkpoint in this directory" in err


def test_all_files_of_a_directory_are_in_json(tmp_path: Path, capsys: Output) -> None:
    """The list for people is cut after 30 lines; a file behind them still decides whether anything can be read."""
    for number in range(40):
        (tmp_path / f"notes-{number:02}.txt").write_text("hello")
    OTHER_FILES["model.safetensors"][1](tmp_path / "z.bin")
    (tmp_path / "sub").mkdir()
    status, out, _ = shown(tmp_path, capsys)
    lines = out.splitlines()
    assert status == 0 and lines[0] == "a directory with 41 files and no `checkpoint` file:"
    assert lines[1] == "  notes-00.txt: a text file" and lines[30] == "  notes-29.txt: a text file"
    assert lines[31:] == ["  and 11 more", "`tfckpt show FILE` shows how to read one of them."]
    assert main(["show", str(tmp_path), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert len(files) == 41 and files[-1] == "z.bin: a safetensors file"


@pytest.mark.parametrize("path", ["", "m", "m.data-00000-of-00001"])
@pytest.mark.parametrize("verb", ["show", "ls", "verify"])
def test_a_data_file_without_its_index(tmp_path: Path, verb: str, path: str, capsys: Output) -> None:
    """The message names the index to copy, whichever way the checkpoint is named; zeros are not a kind of file."""
    tfckpt.save_file({"x": torch.zeros(3)}, tmp_path / "m")
    (tmp_path / "m.index").unlink()
    assert main([verb, str(tmp_path / path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith(
        '"m.data-00000-of-00001" exists, but cannot be read without its index. Copy m.index to the same directory.\n'
    )
    assert "There is no checkpoint" not in captured.err


def test_missing_files_and_names_of_tensors_are_errors(tmp_path: Path, capsys: Output) -> None:
    assert shown(tmp_path / "nowhere", capsys)[:2] == (1, "")
    assert main(["show", str(KEPT / "model.tflite"), "weights"]) == 1
    captured = capsys.readouterr()
    assert (
        captured.out == "" and "is a TensorFlow Lite model (a flatbuffer), not a TensorFlow checkpoint" in captured.err
    )


@pytest.mark.parametrize("verb", ["ls", "verify", "meta"])
@pytest.mark.parametrize("name", ["frozen.pb", "model.tflite"])
def test_other_verbs(verb: str, name: str, capsys: Output) -> None:
    """Each command names the kind of the file on stderr."""
    assert main([verb, str(KEPT / name)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert any(word in captured.err for word in ("a GraphDef", "(GraphDef)", "a TensorFlow Lite model"))


def test_convert_rejects_other_kinds(tmp_path: Path, capsys: Output) -> None:
    """An HTML page is rejected under any file name."""
    for name in ("model.pt", "model.npz", "model.safetensors", "model"):
        OTHER_FILES["login.ckpt"][1](tmp_path / name)
        assert main(["convert", str(tmp_path / name), str(tmp_path / "out.npz")]) == 1
        assert f"{name} is an HTML page" in capsys.readouterr().err
        assert not (tmp_path / "out.npz").exists()


def test_a_kind_as_json(tmp_path: Path, capsys: Output) -> None:
    """With --json the answer is a JSON document, for files and directories."""
    (tmp_path / "notes").write_text("hello")
    assert main(["show", str(tmp_path / "notes"), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["path"] == str(tmp_path / "notes") and content["kind"] == "a text file"
    assert content["supported"] is False and content["files"] == [] and "Not supported" in content["hint"]
    assert main(["show", str(tmp_path), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["kind"].startswith("a directory with 1 file") and content["files"] == ["notes: a text file"]
