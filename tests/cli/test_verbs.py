"""tfckpt verify, convert, diff and merge."""

import json
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.cli.main import main
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.storage.local import LOCAL

Output = pytest.CaptureFixture[str]


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """Return a checkpoint whose second of three tensors has one flipped bit, at byte 100."""
    prefix = tfckpt.save_file({name: torch.arange(20.0) for name in ("a", "b", "c")}, tmp_path / "t")
    data = Path(f"{prefix}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[100] ^= 4
    data.write_bytes(content)
    return prefix


def test_verify_a_valid_checkpoint(golden: Path, capsys: Output) -> None:
    source = str(golden / "digits-transformer")
    assert main(["verify", source]) == 0
    assert capsys.readouterr().out == "no damage found: 250 tensors\n"
    assert main(["verify", source, "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 251 and lines[0].startswith("good: ")


def test_verify_names_tensor_shard_range_and_sums(damaged: str, capsys: Output) -> None:
    """Tensor, file, byte range and both checksums are printed, and the number of good tensors; status 1."""
    assert main(["verify", damaged, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] is False and content["good"] == ["a", "c"]
    [found] = content["damage"]
    assert (found["name"], found["start"], found["end"]) == ("b", 80, 160)
    assert found["file"] == f"{damaged}.data-00000-of-00001"
    assert main(["verify", damaged]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f'{damaged}.data-00000-of-00001, bytes 80:160: tensor "b": Checksum does not match: stored '
        f"{found['stored']:#010x}, computed {found['computed']:#010x}",
        "damaged: 1 of 3 tensors; good: 2",
    ]
    assert found["stored"] != found["computed"] and "convert --skip-damaged" in captured.err
    assert main(["verify", damaged, "-q", "-v"]) == 1
    captured = capsys.readouterr()
    assert "good: a\ngood: c\n" in captured.out and captured.err == ""


def test_the_suggested_command_saves_good_tensors(damaged: str, tmp_path: Path, capsys: Output) -> None:
    """The command that verify suggests writes the good tensors."""
    assert main(["convert", damaged, str(tmp_path / "m.safetensors")]) == 1
    assert 'tensor "b": Checksum does not match' in capsys.readouterr().err
    assert main(["convert", damaged, str(tmp_path / "m.safetensors"), "--exclude", "^b$"]) == 0


@pytest.mark.parametrize("name", ["missing-shard/model.ckpt-0", "git-lfs-pointer/weights"])
def test_verify_an_incomplete_checkpoint(golden: Path, name: str, capsys: Output) -> None:
    assert main(["verify", str(golden / name)]) == 1
    text = capsys.readouterr().out
    assert "the data file is missing" in text or "git-lfs pointer" in text


def test_verify_version_1(golden: Path, capsys: Output) -> None:
    assert main(["verify", str(golden / "digits-v1" / "checkpoint-288")]) == 0
    assert capsys.readouterr().out == "no damage found: 9 tensors\n"


def test_verify_is_for_checkpoints(tmp_path: Path, capsys: Output) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "m.pt")
    assert main(["verify", str(tmp_path / "m.pt")]) == 2
    assert "other formats have no checksums to verify" in capsys.readouterr().err


def test_convert_then_diff(golden: Path, tmp_path: Path, capsys: Output) -> None:
    """The usual calls; diff finds a changed element, and a tolerance accepts it."""
    source, target = str(golden / "digits-transformer"), str(tmp_path / "m.safetensors")
    assert main(["convert", source, target]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "converted 250 tensors, 360 kB, to safetensors:",
        f"  {target}",
        "note: names and layouts are still TensorFlow's: a kernel is [in, out] or [height, width, in, out]. To turn "
        "them into torch's, convert the checkpoint with --to-torch and `--preset`, `--map` or `--infer`",
    ]
    assert main(["diff", source, target]) == 0
    assert capsys.readouterr().out == "identical: 250 tensors\n"
    content = bytearray(Path(target).read_bytes())
    content[-1] ^= 1
    Path(target).write_bytes(content)
    assert main(["diff", source, target, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["identical"] is False and len(found["values"]) == 1 and len(found["equal"]) == 249
    assert main(["diff", source, target, "--atol", "inf"]) == 0


def test_convert_options(golden: Path, tmp_path: Path, capsys: Output) -> None:
    source = str(golden / "digits-transformer")
    options = ["--include", "^transformer/", "--rename", "^transformer/", "", "--rename", "/", ".", "--dtype", "bf16"]
    arguments = ["convert", source, str(tmp_path / "out"), "--to", "safetensors", "--max-shard-size", "20KB", *options]
    assert main([*arguments, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["dry_run"] and list(tmp_path.iterdir()) == []
    assert main([*arguments, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["converted"] == planned["converted"] and len(done["files"]) > 2
    assert {item["dtype"] for item in done["converted"]} == {"bfloat16"}
    assert all("/" not in item["new_name"] for item in done["converted"])
    assert len(done["filtered"]) + len(done["converted"]) == 250
    assert main(["ls", str(tmp_path / "out"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == len(done["converted"])


def test_back_to_tensorflow(golden: Path, tmp_path: Path, capsys: Output) -> None:
    source = str(golden / "tensorflow/object/object")
    assert main(["convert", source, str(tmp_path / "m.npz"), "-q"]) == 0
    assert '"_CHECKPOINTABLE_OBJECT_GRAPH" string []' in capsys.readouterr().out, (
        "named even where notes are not wanted"
    )
    assert main(["convert", str(tmp_path / "m.npz"), str(tmp_path / "ckpt-1"), "--to", "tf"]) == 0
    assert main(["diff", source, str(tmp_path / "ckpt-1")]) == 0


def test_diff_of_different_names(tmp_path: Path, capsys: Output) -> None:
    a = tfckpt.save_file({"x": torch.zeros(1), "y": torch.zeros(1)}, tmp_path / "a")
    b = tfckpt.save_file({"x": torch.zeros(1, dtype=torch.float64)}, tmp_path / "b")
    assert main(["diff", a, b]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f'only in {a}: "y"',
        'dtype of "x": float32 | float64',
        "equal: 0 tensors; different: 1; only in the first: 1; only in the second: 0",
    ]
    assert main(["diff", a, b, "--exclude", "y", "--ignore-dtype"]) == 0


def test_merge(tmp_path: Path, capsys: Output) -> None:
    """Sources are deleted unless kept; missing or duplicate tensors are status 1 and change nothing."""
    one = tfckpt.save_file({"x": torch.zeros(1)}, tmp_path / "part1")
    two = tfckpt.save_file({"y": torch.ones(1)}, tmp_path / "part2")
    target = str(tmp_path / "whole")
    assert main(["merge", one, two, str(tmp_path / "absent"), target]) == 1
    assert "absent" in capsys.readouterr().err and not Path(f"{target}.index").exists()
    assert (
        main(["merge", one, f"{two}.index", str(tmp_path / "absent"), target, "--allow-missing", "--keep-sources"]) == 0
    )
    out = f"merged into {target}: 2 tensors in 2 data files\nmissing, and skipped: {tmp_path}/absent\n"
    assert capsys.readouterr().out == out
    assert Path(f"{one}.index").exists() and diff(one, target, include=["x"]).identical
    assert main(["merge", one, target, target]) == 1
    assert '"x"' in capsys.readouterr().err
    assert main(["merge", one, two, target]) == 0
    assert not Path(f"{one}.index").exists() and main(["verify", target]) == 0


def test_json_escapes_paths_that_are_not_utf8(tmp_path: Path, capsys: Output) -> None:
    """As in `ls` and `verify`, since JSON readers reject lone surrogates."""
    prefix = tfckpt.save_file({"a": torch.zeros(2)}, tmp_path / "caf\udce9")
    target = str(tmp_path / "caf\udce9.pt")
    assert main(["convert", prefix, target, "--json"]) == 0
    converted = json.loads(capsys.readouterr().out)
    assert main(["diff", prefix, target, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    shown = [f"{tmp_path}/caf\\xe9", f"{tmp_path}/caf\\xe9.pt"]
    assert [converted["source"], converted["target"]] == shown == [compared["a"], compared["b"]]
    assert converted["files"] == shown[1:]


def test_convert_skip_damaged(damaged: str, tmp_path: Path, capsys: Output) -> None:
    """The good tensors are written, the report has the reason, and the status is 1."""
    target = str(tmp_path / "m.safetensors")
    assert main(["convert", damaged, target]) == 1
    assert "--skip-damaged" in capsys.readouterr().err and not Path(target).exists()
    assert main(["convert", damaged, target, "--skip-damaged"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "damaged and omitted: 1 tensor" and lines[3].startswith('  "b": ') and "Checksum" in lines[3]
    assert main(["convert", damaged, target, "--skip-damaged", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report["damaged"]) == ["b"] and report["complete"] is False
    assert main(["diff", damaged, target, "--exclude", "^b$"]) == 0
    assert main(["convert", damaged, target, "--skip-damaged", "--exclude", "^b$"]) == 0, "nothing is missing"


def test_a_missing_data_file_is_reported_once(tmp_path: Path, capsys: Output) -> None:
    """One line with the number of its tensors and some of their names; JSON and the report have them all."""
    prefix = str(tmp_path / "t")
    with BundleWriter(LOCAL, prefix, num_shards=2) as writer:
        writer.add("good", torch.ones(3), shard=0)
        for number in range(7):
            writer.add(f"w{number}", torch.ones(3), shard=1)
    lost = f"{prefix}.data-00001-of-00002"
    Path(lost).unlink()
    names = '"w0", "w1", "w2", "w3", "w4" and 2 more'
    assert main(["verify", prefix]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{lost}: the data file is missing; it has 7 tensors: {names}",
        "damaged: 7 of 8 tensors; good: 1",
    ]
    assert main(["verify", prefix, "--json"]) == 1
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["damage"]] == [f"w{n}" for n in range(7)]
    assert main(["convert", prefix, str(tmp_path / "m.npz"), "--skip-damaged"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "damaged and omitted: 7 tensors",
        f"  7 tensors, {names}: {prefix}: {lost}: No such file or directory. Copy shard 1 next to the index",
    ]


@pytest.mark.parametrize("verb", ["convert", "diff"])
def test_patterns_that_match_nothing(tmp_path: Path, verb: str, capsys: Output) -> None:
    """Include and rename raise with the closest name; exclude is reported once, beside JSON on stderr."""
    prefix = tfckpt.save_file({"encoder/w": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "a")
    paths = [prefix, str(tmp_path / "m.npz")]
    assert main(["convert", *paths]) == 0
    capsys.readouterr()
    for option in (["--include", "b", "--include", "^encodr/"], ["--rename", "^encodr/", "x"]):
        assert main([verb, *paths, *option]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and '"^encodr/" matches none of 2 tensors. The closest is "encoder/w"' in captured.err
    assert main([verb, *paths, "--exclude", "Adam", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == 'tfckpt: warning: --exclude "Adam" matched nothing\n'
    assert json.loads(captured.out)["unmatched_excludes"] == ["Adam"]
    assert main([verb, *paths, "--exclude", "Adam"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count('exclude "Adam" matched nothing') == 1


def test_diff_follows_convert_rename(golden: Path, tmp_path: Path, capsys: Output) -> None:
    """diff accepts the same --rename as convert, including for object-based checkpoints with an edited graph."""
    source, target = str(golden / "tensorflow/object/object"), str(tmp_path / "t")
    with tfckpt.load_checkpoint(source) as reader:
        first = next(name for name in reader.keys() if "/" in name).partition("/")[0]
    rename = ["--rename", f"^{first}/", "renamed/"]
    assert main(["convert", source, target, "--to", "tf", *rename]) == 0
    assert "the object graph was edited to match the tensors" in capsys.readouterr().out
    assert main(["diff", source, target]) == 1
    assert main(["diff", source, target, *rename]) == 0


def test_merge_takes_directories(tmp_path: Path, capsys: Output) -> None:
    """Directories and any file of a checkpoint are accepted, as by the other commands."""
    for name in ("a", "b"):
        tfckpt.Saver({name: torch.ones(1)}).save(tmp_path / name / "model.ckpt", 1, write_meta_graph=False)
    target = str(tmp_path / "whole")
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "b" / "model.ckpt-1.index"), target]) == 0
    assert capsys.readouterr().out == f"merged into {target}: 2 tensors in 2 data files\n"
    assert main(["merge", str(tmp_path / "absent"), target]) == 1
