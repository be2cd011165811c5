"""tfckpt ls and show."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.cli.main import main
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.table import Table, TableBuilder
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL

Output = pytest.CaptureFixture[str]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    target = str(tmp_path / "t")
    with BundleWriter(LOCAL, target) as writer:
        writer.add("dense/bias", torch.tensor([1.0, float("nan"), 3.0]))
        writer.add_stored("iterator", DataType.DT_VARIANT, (), b"\x00\x01\x02\x03\x04", 7)
        writer.add_slice("dense/kernel", (4, 500), TensorSlice.parse("0,2:-"), torch.zeros(2, 500))
        writer.add_slice("dense/kernel", (4, 500), TensorSlice.parse("2,2:-"), torch.ones(2, 500))
        writer.add("words", np.array([b"hello", b"\xff" * 300], dtype=object))
    return target


def test_ls(prefix: str, capsys: Output) -> None:
    """Aligned columns, the same each time, and totals of all tensors and of each kind."""
    assert main(["ls", prefix]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name          dtype    shape     size  note",
        "dense/bias    float32  [3]       12 B",
        "dense/kernel  float32  [4,500]   8 kB  partitioned: 2 slices",
        "iterator      variant  []         5 B  torch has no such type",
        "words         string   [2]      312 B",
        "4 tensors, 2,006 elements, 8.33 kB",
        "  weights: 3 tensors, 2,004 elements, 8.02 kB",
        "  other: 1 tensor, 2 elements, 312 B",
    ]


def test_ls_selects_and_sorts(prefix: str, capsys: Output) -> None:
    main(["ls", prefix, "dense/*", "w*", "--sort", "size"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["name", "dense/kernel", "words", "dense/bias", "3"]
    main(["ls", prefix, "nothing*"])
    assert capsys.readouterr().out.splitlines()[-1] == "0 tensors, 0 elements, 0 B"


def test_ls_json(prefix: str, capsys: Output) -> None:
    assert main(["ls", prefix, "--json", "--sort", "name"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["path"] == prefix and content["format"] == "TensorFlow checkpoint, version 2"
    assert content["total"] == {
        "tensors": 4,
        "elements": 2006,
        "nbytes": 8329,
        "kinds": {
            "weights": {"tensors": 3, "elements": 2004, "nbytes": 8017},
            "other": {"tensors": 1, "elements": 2, "nbytes": 312},
        },
    }
    assert content["tensors"][1] == {
        "name": "dense/kernel",
        "dtype": "float32",
        "shape": [4, 500],
        "nbytes": 8000,
        "slices": 2,
    }


def test_ls_distinguishes_weights_optimizer_state_and_counters(golden: Path, capsys: Output) -> None:
    """The kinds are those of load_model and add up to the total."""
    assert main(["ls", str(golden / "digits-cnn" / "model.ckpt-216")]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "27 tensors, 10,977 elements, 43.9 kB",
        "  weights: 8 tensors, 3,658 elements, 14.6 kB",
        "  optimizer state: 18 tensors, 7,318 elements, 29.3 kB",
        "  counters: 1 tensor, 1 element, 8 B",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["a", "layer_2/w", "layer_10/w"]),
        (["--sort", "name"], ["a", "layer_2/w", "layer_10/w"]),
        (["--sort", "stored"], ["a", "layer_10/w", "layer_2/w"]),
        (["--sort", "size"], ["layer_10/w", "a", "layer_2/w"]),
    ],
)
def test_ls_order(tmp_path: Path, options: list[str], expected: list[str], capsys: Output) -> None:
    """Natural order by default; --sort selects the stored order or the size."""
    tensors = {"layer_10/w": torch.zeros(3), "layer_2/w": torch.zeros(1), "a": torch.zeros(2)}
    prefix = tfckpt.save_file(tensors, tmp_path / "t")
    main(["ls", prefix, *options])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]] == expected


def test_ls_json_keeps_the_stored_order(tmp_path: Path, capsys: Output) -> None:
    """JSON has the order of names() unless another one is requested."""
    prefix = tfckpt.save_file({"layer_10": torch.zeros(1), "layer_2": torch.zeros(1)}, tmp_path / "t")
    for options, expected in (([], ["layer_10", "layer_2"]), (["--sort", "name"], ["layer_2", "layer_10"])):
        main(["ls", prefix, "--json", *options])
        assert [row["name"] for row in json.loads(capsys.readouterr().out)["tensors"]] == expected


@pytest.mark.parametrize("form", ["m.safetensors", "m.pt", "m.npz"])
def test_ls_lists_the_other_formats_too(prefix: str, tmp_path: Path, form: str, capsys: Output) -> None:
    """Values from the sidecar are listed too."""
    convert(prefix, tmp_path / form, exclude=["iterator"])
    assert main(["ls", str(tmp_path / form), "--sort", "name"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["name", "dense/bias", "dense/kernel", "words", "3"]


def test_ls_lists_values_that_are_not_tensors(tmp_path: Path, capsys: Output) -> None:
    torch.save({"w": torch.zeros(1), "epoch": 3}, tmp_path / "m.pt")
    assert main(["ls", str(tmp_path / "m.pt")]) == 0
    assert capsys.readouterr().err == 'omitted, because they are not tensors: "epoch"\n'
    main(["ls", str(tmp_path / "m.pt"), "--quiet"])
    assert capsys.readouterr().err == ""


def damage_entry(prefix: str, name: str) -> None:
    """Damage the index entry of one tensor, with valid checksums of the index."""
    path = Path(f"{prefix}.index")
    content = path.read_bytes()
    table = Table(lambda offset, size: content[offset : offset + size], len(content))
    parts: list[bytes] = []
    builder = TableBuilder(parts.append)
    for key, value in table.items():
        builder.add(key, b"\xff\xff" if key == name.encode() else value)
    builder.finish()
    path.write_bytes(b"".join(parts))


def test_one_unreadable_tensor_does_not_hide_the_others(prefix: str, capsys: Output) -> None:
    """Its row reports the damage, and the status is 1."""
    damage_entry(prefix, "dense/bias")
    assert main(["ls", prefix]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("dense/bias    ?") and "unreadable: " in lines[1] and '"dense/bias"' in lines[1]
    assert lines[2].startswith("dense/kernel  float32") and lines[-1].endswith("; 1 unreadable")
    assert main(["ls", prefix, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["tensors"]
    assert sorted(rows[0]) == ["error", "name"] and rows[1]["shape"] == [4, 500]


def test_show_summary(golden: Path, capsys: Output) -> None:
    """Version, files with their sizes, dtypes."""
    source = golden / "tensorflow" / "sharded" / "sharded"
    assert main(["show", str(source)]) == 0
    text = capsys.readouterr().out
    assert f"{source}: TensorFlow checkpoint, version 2" in text
    assert f"{source}.index" in text and f"{source}.data-00002-of-00003" in text
    assert any(line.split() == ["dtype", "tensors", "size"] for line in text.splitlines())


def test_show_summary_of_version_1(golden: Path, capsys: Output) -> None:
    assert main(["show", str(golden / "digits-v1" / "checkpoint-288"), "--stats"]) == 0
    text = capsys.readouterr().out
    assert "TensorFlow checkpoint, version 1" in text and "layer2/weight " in text


def test_show_values(prefix: str, capsys: Output) -> None:
    """Values are printed as by numpy, with minimum, maximum, mean, deviation and number of NaNs."""
    assert main(["show", prefix, "dense/bias"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        '"dense/bias" float32 [3], 12 B',
        "[ 1. nan  3.]",
        "min 1, max 3, mean 2, std 1, 1 NaN",
    ]
    assert main(["show", prefix, "dense/kernel:0", "--stats"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        '"dense/kernel" float32 [4,500], 8 kB, 2 slices',
        "min 0, max 1, mean 0.5, std 0.5, 0 NaN",
    ]


def test_show_strings(prefix: str, capsys: Output) -> None:
    """Long strings are shortened."""
    assert main(["show", prefix, "words"]) == 0
    text = capsys.readouterr().out
    assert "b'hello'" in text and "... (300 bytes)" in text


@pytest.mark.parametrize("name", ["float8_e5m2", "bfloat16", "complex128", "int4", "bool", "uint64", "string"])
def test_show_every_kind(golden: Path, name: str, capsys: Output) -> None:
    assert main(["show", str(golden / "tensorflow/every-dtype/every-dtype"), name]) == 0
    assert capsys.readouterr().out.startswith(f'"{name}" {name} ')


def test_show_a_dtype_that_torch_lacks(golden: Path, capsys: Output) -> None:
    assert main(["show", str(golden / "tensorflow/every-dtype/every-dtype"), "float8_e4m3b11fnuz"]) == 0
    assert "6 bytes that torch has no type for" in capsys.readouterr().out


def test_show_a_missing_name(prefix: str, capsys: Output) -> None:
    assert main(["show", prefix, "dense/kernle"]) == 1
    assert capsys.readouterr().err == (
        f'tfckpt: {prefix}: no tensor "dense/kernle". Closest: "dense/kernel". '
        f"`tfckpt ls {prefix}` lists all 4 tensors\n"
    )


def test_show_statistics_of_all(prefix: str, capsys: Output) -> None:
    assert main(["show", prefix, "--stats"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dense/bias", "1", "3", "2", "1", "1", "0"] in lines
    assert ["dense/kernel", "0", "1", "0.5", "0.5", "0", "0"] in lines


def test_missing_shard_in_the_summary(golden: Path, capsys: Output) -> None:
    """Listing needs only the index."""
    assert main(["ls", str(golden / "missing-shard" / "model.ckpt-0")]) == 0
    assert main(["show", str(golden / "missing-shard" / "model.ckpt-0")]) == 0
    assert tfckpt.DataType.DT_BFLOAT16.short_name in capsys.readouterr().out


@pytest.mark.parametrize("command", [["ls"], ["show"], ["ls", "--json"], ["show", "--json"]])
def test_missing_data_files_are_named(tmp_path: Path, command: list[str], capsys: Output) -> None:
    """A warning for each missing file, with the number of its tensors; nothing else changes."""
    prefix = str(tmp_path / "t")
    with BundleWriter(LOCAL, prefix, num_shards=3) as writer:
        for name, shard in (("a", 0), ("b", 1), ("c", 1), ("d", 2)):
            writer.add(name, torch.ones(3), shard=shard)
    assert main([*command, prefix]) == 0
    assert capsys.readouterr().err == ""
    missing = [f"{prefix}.data-0000{shard}-of-00003" for shard in (1, 2)]
    for path in missing:
        Path(path).unlink()
    assert main([*command, prefix]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"tfckpt: warning: {missing[0]}: the data file is missing; it has 2 tensors",
        f"tfckpt: warning: {missing[1]}: the data file is missing; it has 1 tensor",
    ]
    if command == ["ls", "--json"]:
        assert json.loads(captured.out)["missing_files"] == missing
    elif command == ["show", "--json"]:
        files = json.loads(captured.out)["files"]
        assert [file["path"] for file in files if file["nbytes"] is None] == missing
    elif command == ["show"]:
        assert [line.split()[0] for line in captured.out.splitlines() if line.endswith("  missing")] == missing


def test_ls_of_missing_names(prefix: str, capsys: Output) -> None:
    """A message on stderr with the closest name; status 1, and an empty JSON list."""
    assert main(["ls", prefix, "dense/kernel:0", "nothing"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "0 tensors, 0 elements, 0 B"
    assert captured.err == (
        'tfckpt: none of 4 tensors matches "dense/kernel:0" or "nothing". Closest: "dense/kernel".\n'
    )
    assert main(["ls", prefix, "nothing", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["tensors"] == [] and "A * matches any characters" in captured.err


def test_show_of_a_name_without_a_similar_one(prefix: str, capsys: Output) -> None:
    assert main(["show", prefix, "Q"]) == 1
    assert capsys.readouterr().err == f'tfckpt: {prefix}: no tensor "Q". `tfckpt ls {prefix}` lists all 4 tensors\n'


def test_statistics_of_strings(prefix: str, capsys: Output) -> None:
    assert main(["show", prefix, "words", "--stats"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["its elements are not numbers"]


@pytest.mark.parametrize(("name", "expected"), [("dense", "dense/bias, dense/kernel"), ("den", "")])
def test_names_below_a_scope_are_listed(prefix: str, name: str, expected: str, capsys: Output) -> None:
    """The name of a layer is answered by its tensors."""
    assert main(["show", prefix, name]) == 1
    listed = ", ".join(f'"{each}"' for each in expected.split(", ")) if expected else ""
    err = capsys.readouterr().err
    assert (f"There are {listed}." in err) == bool(expected)
