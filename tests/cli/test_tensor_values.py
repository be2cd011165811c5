"""tfckpt show --json and --full: the values of one tensor, whole, for programs and for people."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import GOLDEN

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.cli import tensor_values
from torch_tfckpt.cli.main import main
from torch_tfckpt.storage.local import LOCAL

Output = pytest.CaptureFixture[str]
EVERY_DTYPE = str(GOLDEN / "tensorflow" / "every-dtype" / "every-dtype")


def refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def document(capsys: Output, *arguments: str, status: int = 0) -> dict[str, Any]:
    """The JSON document that a call prints, which must be JSON to the letter."""
    assert main(["show", "--json", *arguments]) == status
    content: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=refuse_constant)
    return content


@pytest.fixture
def path(tmp_path: Path) -> str:
    return tfckpt.save_file(
        {
            "matrix": torch.tensor([[1.5, float("nan")], [float("inf"), float("-inf")]]),
            "step": torch.tensor(7),
            "flags": torch.tensor([True, False]),
            "half": torch.tensor([0.1], dtype=torch.bfloat16),
            "wave": torch.tensor([1 + 2j, complex("nan")]),
            "big": torch.tensor([2**63 - 1]),
            "empty": torch.zeros(2, 0),
            "many": torch.arange(5000.0).reshape(5, 1000) / 3,
            "words": np.array([["ä", ""]], dtype=object),
            "bytes": np.array([b"\xff", b"a"], dtype=object),
            "state": np.array(b'{"lr": 0.1, "groups": [{"betas": [0.9, 0.999]}]}', dtype=object),
            "plain": np.array(b"two\nlines", dtype=object),
            "long": np.array([b"x" * 300], dtype=object),
        },
        tmp_path / "t",
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("matrix", {"dtype": "float32", "shape": [2, 2], "values": [[1.5, "NaN"], ["Infinity", "-Infinity"]]}),
        ("step", {"dtype": "int64", "shape": [], "values": 7}),
        ("flags", {"dtype": "bool", "values": [True, False]}),
        ("half", {"dtype": "bfloat16", "values": [0.10009765625]}),
        ("wave", {"dtype": "complex64", "values": [[1.0, 2.0], ["NaN", 0.0]]}),
        ("big", {"values": [2**63 - 1]}),
        ("empty", {"shape": [2, 0], "values": [[], []]}),
        ("words", {"dtype": "string", "shape": [1, 2], "encoding": "utf-8", "values": [["ä", ""]]}),
        ("bytes", {"encoding": "base64", "values": ["/w==", "YQ=="]}),
    ],
)
def test_values_as_json(path: str, name: str, expected: dict[str, Any], capsys: Output) -> None:
    """Nested lists; what JSON has no numbers for as strings; strings that are not UTF-8 as base64, which is said."""
    content = document(capsys, path, name)
    assert content["path"] == path and content["name"] == name
    assert {field: content[field] for field in expected} == expected
    assert ("encoding" in expected) == ("encoding" in content)


def test_json_has_every_value(path: str, capsys: Output) -> None:
    """None is cut, and each is exact; they take one line."""
    assert main(["show", "--json", path, "many"]) == 0
    text = capsys.readouterr().out
    assert torch.equal(torch.tensor(json.loads(text)["values"]), torch.arange(5000.0).reshape(5, 1000) / 3)
    assert len(text.splitlines()) < 20


@pytest.mark.parametrize("name", ["float8_e5m2", "bfloat16", "complex128", "int4", "uint4", "bool", "uint64", "qint8"])
def test_every_kind_of_number(name: str, capsys: Output) -> None:
    """The output has as many values as the shape has elements."""
    with tfckpt.load_checkpoint(EVERY_DTYPE) as reader:
        shape = list(reader.shape(name))
    values = np.array(document(capsys, EVERY_DTYPE, name)["values"], dtype=object)
    assert list(values.shape[: len(shape)]) == shape


def test_what_torch_lacks(capsys: Output) -> None:
    """The stored bytes are printed as base64."""
    content = document(capsys, EVERY_DTYPE, "float8_e4m3b11fnuz")
    assert content["encoding"] == "base64" and len(base64.b64decode(content["bytes"])) == 6
    assert "values" not in content


def test_statistics_as_json(path: str, capsys: Output) -> None:
    """In place of the values; null where there are no numbers; of all tensors with the summary."""
    content = document(capsys, path, "matrix", "--stats")
    assert content["statistics"] == {
        "minimum": "-Infinity", "maximum": "Infinity", "mean": 1.5, "std": 0.0, "nans": 1, "infinities": 2
    }  # fmt: skip
    assert "values" not in content
    assert document(capsys, path, "words", "--stats")["statistics"] is None
    assert document(capsys, path, "--stats")["statistics"]["step"]["maximum"] == 7.0


def test_summary_as_json(path: str, capsys: Output) -> None:
    """What the summary shows: files, types, totals."""
    content = document(capsys, path)
    assert content["format"] == "TensorFlow checkpoint, version 2" and content["object_based"] is False
    assert content["total"]["tensors"] == 13 and content["partitioned"] == 0 and content["skipped"] == {}
    assert [file["path"] for file in content["files"]] == [f"{path}.index", f"{path}.data-00000-of-00001"]
    assert all(file["nbytes"] == Path(file["path"]).stat().st_size for file in content["files"])
    assert {"dtype": "bool", "tensors": 1, "nbytes": 2} in content["dtypes"]
    assert document(capsys, str(GOLDEN / "digits-checkpoint"))["object_based"] is True


def test_full_values(path: str, capsys: Output) -> None:
    """No "..." in numbers or strings, and digits enough to tell each number from its neighbours."""
    assert main(["show", path, "many", "--full"]) == 0
    head, _, text = capsys.readouterr().out.partition("\n")
    assert head == '"many" float32 [5,1000], 20 kB' and "..." not in text
    numbers = torch.tensor([float(each) for each in text.replace("[", " ").replace("]", " ").split()])
    assert torch.equal(numbers, torch.arange(5000.0) / 3)
    assert main(["show", path, "long", "--full"]) == 0
    assert "x" * 300 in capsys.readouterr().out


def test_full_strings(path: str, capsys: Output) -> None:
    """One string as text; JSON indented, so that the state of an optimizer can be read."""
    assert main(["show", path, "state", "--full"]) == 0
    text = capsys.readouterr().out.partition("\n")[2]
    assert text.startswith('{\n  "lr": 0.1,\n  "groups": [\n') and json.loads(text)["groups"][0]["betas"] == [
        0.9,
        0.999,
    ]
    assert main(["show", path, "plain", "--full"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["two", "lines"]


def test_the_state_of_an_optimizer(tmp_path: Path, capsys: Output) -> None:
    """What Checkpoint stores of a torch optimizer can be read as JSON."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    path = tfckpt.Checkpoint(model=model, optimizer=optimizer).save(str(tmp_path / "c"))
    assert main(["show", path, "optimizer/.ATTRIBUTES/py_state", "--full"]) == 0
    assert "0.25" in json.dumps(json.loads(capsys.readouterr().out.partition("\n")[2]))


@pytest.mark.parametrize("content", [b"\xff\x1b[2J", b"[" * 100_000, b"{", b"7", b"\x1b[2J"])
def test_strings_do_no_harm(content: bytes, tmp_path: Path, capsys: Output) -> None:
    """What is not JSON, or too deep for it, is printed as it is; control characters are escaped."""
    path = tfckpt.save_file({"s": np.array(content, dtype=object)}, tmp_path / "s")
    assert main(["show", path, "s", "--full"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert document(capsys, path, "s")["encoding"] == ("base64" if content.startswith(b"\xff") else "utf-8")


@pytest.mark.parametrize("option", ["--full", "--json"])
def test_huge_tensors_are_refused(tmp_path: Path, option: str, capsys: Output) -> None:
    """Before they are read: with the size, and what to use. Statistics of them are shown."""
    path = tfckpt.save_file({"w": torch.zeros(1001, 1000), "hollow": torch.zeros(10**9, 0)}, tmp_path / "h")
    for name in ("w", "hollow"):
        assert main(["show", path, name, option]) == 1
        said = capsys.readouterr()
        assert said.out == "" and f'tensor "{name}"' in said.err and "tfckpt convert" in said.err
    assert main(["show", path, "w"]) == 0 and "..." in capsys.readouterr().out
    assert document(capsys, path, "w", "--stats")["statistics"]["maximum"] == 0


def test_long_strings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """Their size in bytes counts."""
    monkeypatch.setattr(tensor_values, "_MOST_BYTES", 1000)
    with BundleWriter(LOCAL, str(tmp_path / "b")) as writer:
        writer.add("s", np.array(b"x" * 2000, dtype=object))
    assert main(["show", str(tmp_path / "b"), "s", "--full"]) == 1
    assert "at most 1,000,000 elements and 1 kB are printed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--full"], "--full prints the values of one tensor"),
        (["step", "--full", "--json"], "--json always prints all values"),
        (["step", "--full", "--stats"], "not allowed with argument"),
    ],
)
def test_options_that_do_not_go_together(path: str, arguments: list[str], text: str, capsys: Output) -> None:
    """Exit status 2, and the message explains what to do."""
    assert main(["show", path, *arguments]) == 2
    assert text in capsys.readouterr().err


def test_numbers_that_json_lacks() -> None:
    """At any depth, and nothing else is changed."""
    given = {"a": [1, [math.inf, -math.inf]], "b": math.nan, "c": "x", "d": None, "e": True}
    assert tensor_values.json_numbers(given) == {
        "a": [1, ["Infinity", "-Infinity"]], "b": "NaN", "c": "x", "d": None, "e": True
    }  # fmt: skip
