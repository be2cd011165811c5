"""tfckpt run, compare-model, meta --run: values of graphs, what they need, exit status."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import GOLDEN
from small_modules import python_file

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main

Output = pytest.CaptureFixture[str]
META = str(GOLDEN / "digits-cnn" / "model.ckpt-216.meta")
PREFIX = str(GOLDEN / "digits-cnn" / "model.ckpt-216")
SAVED = str(GOLDEN / "digits-keras3-savedmodel")
MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return {"y": self.fc(x).relu()}

class Wrong(Net):
    def forward(self, x):
        return {"y": nn.functional.leaky_relu(self.fc(x))}
"""


def test_a_meta_graph_with_a_checkpoint(tmp_path: Path, capsys: Output) -> None:
    """Values as text, as JSON and as .npy files."""
    images = np.random.default_rng(0).random((2, 8, 8), np.float32)
    np.save(tmp_path / "images.npy", images)
    command = ["run", META, "--restore", PREFIX, "--feed", f"images:0={tmp_path / 'images.npy'}", "--fetch", "logits:0"]
    assert main([*command, "--feed", "dropout_rate:0=0.0"]) == 0
    assert capsys.readouterr().out.startswith("logits:0: float32 [2,10]\n[[")
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["logits:0"]
    assert (found["dtype"], found["shape"], np.shape(found["values"])) == ("float32", [2, 10], (2, 10))
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert np.load(tmp_path / "out" / "logits_0.npy").shape == (2, 10)
    imported = tfckpt.import_meta_graph(META)
    assert imported.saver is not None
    imported.saver.restore(PREFIX)
    expected = imported.run("logits:0", {"images:0": images})
    np.testing.assert_allclose(np.load(tmp_path / "out" / "logits_0.npy"), expected.numpy())
    np.testing.assert_allclose(found["values"], expected.numpy())


def test_a_signature(capsys: Output) -> None:
    """A SavedModel brings its values; all outputs are computed; names are the signature's."""
    imported = tfckpt.import_meta_graph(SAVED)
    (key,) = imported.signatures["serving_default"].inputs
    shape = imported.signatures["serving_default"].inputs[key].tensor_shape
    sizes = [max(1, each.size) for each in shape.dim]
    value = json.dumps(np.zeros(sizes).tolist())
    assert main(["run", SAVED, "--signature", "serving_default", "--feed", f"{key}={value}", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(imported.signatures["serving_default"].outputs)


def test_requirements(capsys: Output) -> None:
    """Inputs, likely outputs of a training graph; those of a SavedModel's signatures."""
    assert main(["meta", META, "--run"]) == 0
    text = capsys.readouterr().out
    assert "images:0" in text and "logits:0" in text and "save/" not in text and "gradients" not in text
    assert main(["meta", SAVED, "--run"]) == 0
    assert 'of signature "serving_default"' in capsys.readouterr().out


@pytest.fixture
def graph() -> Path:
    """A frozen graph: relu(x @ w + b)."""
    data = tfckpt.GraphDef()
    values: dict[str, Any] = {
        "w": np.arange(9, dtype=np.float32).reshape(3, 3) / 9,
        "b": np.array([-1, 0, 1], np.float32),
    }
    data.node.add(name="x", op="Placeholder").attr["dtype"].type = 1  # type: ignore[assignment]  # DT_FLOAT
    for name, value in values.items():
        node = data.node.add(name=name, op="Const")
        node.attr["dtype"].type = node.attr["value"].tensor.dtype = 1  # type: ignore[assignment]
        node.attr["value"].tensor.tensor_content = value.tobytes()
        for size in value.shape:
            node.attr["value"].tensor.tensor_shape.dim.add(size=size)
    for name, op, inputs in (("m", "MatMul", "xw"), ("a", "BiasAdd", "mb"), ("y", "Relu", "a")):
        data.node.add(name=name, op=op, input=list(inputs)).attr["T"].type = 1  # type: ignore[assignment]
    torch.save(
        {"fc.weight": torch.from_numpy(values["w"]).T.contiguous(), "fc.bias": torch.from_numpy(values["b"])}, "fc.pt"
    )
    path = Path("frozen.pb")
    path.write_bytes(data.SerializeToString())
    return path


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return python_file(tmp_path, MODULE, monkeypatch)


def test_a_module_is_compared(net: str, graph: Path, capsys: Output) -> None:
    """Exit status 0 if it is equal, 1 if it is not."""
    rest = [str(graph), "--weights", "fc.pt", "--inputs", "x:0=x", "--outputs", "y:0=y", "--shape", "x:0=4,3"]
    assert main(["compare-model", f"{net}:Net", *rest]) == 0
    assert "equal within 1e-05: 1 output, 4 samples" in capsys.readouterr().out
    assert main(["compare-model", f"{net}:Wrong", *rest, "--json", "--samples", "2"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["samples"], found["first_difference"]) == (False, 2, None)
    assert main(["compare-model", f"{net}:Wrong", *rest, "--tolerance", "10"]) == 0


def test_a_frozen_graph_runs(net: str, graph: Path, capsys: Output) -> None:
    assert main(["run", str(graph), "--feed", "x:0=[[1, 1, 1]]", "--fetch", "y:0"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "y:0: float32 [1,3]"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--fetch", "z:0"], 2, '"z"'),
        (["--fetch", "y:0"], 2, "x:0"),
        ([], 2, "--fetch"),
        (["--signature", "serving"], 2, "no signature"),
        (["--feed", "x", "--fetch", "y:0"], 2, "NAME=VALUE"),
        (["--feed", "x:0=no", "--fetch", "y:0"], 2, "neither"),
        (["--feed", "x:0=absent.npy", "--fetch", "y:0"], 1, "absent.npy"),
        (["--feed", "x:0=bad.npy", "--fetch", "y:0"], 1, "bad.npy.*another length"),
        (["--feed", "x:0=fc.npy", "--fetch", "y:0"], 1, "fc.npy.*magic"),
        (["--restore", "fc.pt", "--fetch", "y:0"], 2, "--restore"),
    ],
)  # fmt: skip
def test_wrong_arguments(
    arguments: list[str], status: int, message: str, net: str, graph: Path, capsys: Output
) -> None:
    """What is wrong, on stderr; a header that promises more than the file has reserves no memory."""
    Path("bad.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x80\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(128)
    )
    Path("fc.npy").write_bytes(b"PK")
    assert main(["run", str(graph), *arguments]) == status
    assert re.search(message, capsys.readouterr().err)


def test_variables_without_values_name_the_option(capsys: Output) -> None:
    zeros = json.dumps(np.zeros((1, 8, 8)).tolist())
    assert main(["run", META, "--feed", f"images:0={zeros}", "--fetch", "logits:0"]) == 1
    assert "--restore PREFIX" in capsys.readouterr().err
