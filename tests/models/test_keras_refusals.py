"""save_model(like=): what does not agree with the Keras model is refused by name, and an earlier file stays as it is.

The Keras file is the CNN of docs/keras.md. h5py, which writes the target, is the oracle of its contents.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from golden_files import KERAS_FILES
from hdf5_files import h5py, keras_weights
from torch import nn

import torch_tfckpt as tfckpt

CNN: Final = KERAS_FILES / "cnn.keras"


class Digits(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3, bias=settings.get("head_bias", True))
        self.norm = nn.BatchNorm2d(4, eps=1e-5, affine=settings.get("affine", True))
        self.stem = nn.Conv2d(1, settings.get("filters", 4), 3, stride=2, bias=settings.get("stem_bias", False))


def _contents(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        found[name] = item[()].tolist() if hasattr(item, "shape") else dict(item.attrs)

    with h5py().File(path) as file:
        file.visititems(visit)
    return found


def test_the_file_has_the_structure_that_keras_gave_it(tmp_path: Path) -> None:
    """Groups, names of layers and numbers of variables are those of the .keras file; the optimizer is omitted."""
    model = Digits()
    tfckpt.save_model(model, tmp_path / "m.weights.h5", like=CNN)
    tfckpt.save_model(model, tmp_path / "again.weights.h5", like=CNN)
    tfckpt.save_model(model, tmp_path / "like.weights.h5", like=tmp_path / "m.weights.h5")

    contents = _contents(tmp_path / "m.weights.h5")
    assert contents["layers/conv2d/vars"] == {"name": "stem"}
    assert contents["layers/conv2d/vars/0"] == model.stem.weight.permute(2, 3, 1, 0).tolist()
    assert contents["layers/batch_normalization/vars/2"] == [0.0] * 4
    assert contents["layers/re_lu/vars"] == {"name": "re_lu"}
    assert _contents(tmp_path / "like.weights.h5") == contents
    assert (tmp_path / "again.weights.h5").read_bytes() == (tmp_path / "m.weights.h5").read_bytes()
    back = Digits()
    tfckpt.load_model(back, tmp_path / "m.weights.h5")
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))


Prepare = Callable[[], nn.Module]


def _scaled() -> nn.Module:
    return Digits(affine=False)


def _renamed() -> nn.Module:
    model = Digits()
    model.top, model.head = model.head, None  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Digits(stem_bias=True), r'"stem.bias" of the module has no variable.*\n.*such as use_bias'),
        (lambda: Digits(head_bias=False), r'"head/bias" \[3\], of the Dense layer "head", .* has no tensor'),
        (
            lambda: Digits(filters=5),
            r'"stem.weight" is \[5,1,3,3\].*but "stem/kernel" .* is \[3,3,1,4\], in layout conv2d',
        ),
        (_scaled, r'"norm/gamma" \[4\], of the BatchNormalization layer "norm"'),
        (_renamed, r'"top.weight" of the module[\s\S]*"head/kernel"[\s\S]*KeyMapper.infer'),
        (lambda: Digits().to("meta"), "meta device"),
        (lambda: nn.ModuleDict({"stem": nn.LazyConv2d(4, 3)}), "has no shape yet"),
    ],
    ids=["more", "fewer", "shape", "affine", "name", "meta", "lazy"],
)
@pytest.mark.parametrize("naming", ["torch", "keras"])
def test_modules_that_do_not_agree(tmp_path: Path, make: Prepare, message: str, naming: str) -> None:
    target = tmp_path / ("m.weights.h5" if naming == "torch" else "m")
    with pytest.raises(tfckpt.InvalidArgumentError, match=message):
        tfckpt.save_model(make(), target, naming=naming, like=CNN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"naming": "tf"}, tfckpt.InvalidArgumentError, 'naming="tf" is for checkpoints'),
        ({"extra": {"step": 1}}, tfckpt.InvalidArgumentError, "cannot store extra="),
        ({"optimizer": True, "naming": "keras"}, tfckpt.UnimplementedError, "does not store an optimizer"),
        ({"like": None}, tfckpt.InvalidArgumentError, r"pass like= with the \.keras file"),
        ({"path": "m.keras"}, tfckpt.InvalidArgumentError, r"end the name with \.weights\.h5"),
        ({"path": "m.h5"}, tfckpt.InvalidArgumentError, r"end the name with \.weights\.h5"),
        ({"path": "m"}, tfckpt.InvalidArgumentError, 'like= is for naming="keras"'),
        ({"path": "memory://b/m.weights.h5"}, tfckpt.InvalidArgumentError, "written locally only"),
        ({"like": "absent.keras"}, tfckpt.NotFoundError, r"absent\.keras"),
        ({"like": KERAS_FILES / "weights.h5"}, tfckpt.InvalidArgumentError, r"model\.save\(.*pass that file as `like`"),
        ({"mapper": {"stem/kernel": "trunk.weight"}}, tfckpt.InvalidArgumentError, "do not agree"),
    ],
)
def test_arguments(tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = Digits()
    given = {"like": CNN, **arguments}
    path = given.pop("path", "m.weights.h5")
    if "optimizer" in given:
        given["optimizer"] = torch.optim.SGD(model.parameters())
    target = path if "://" in path else tmp_path / path
    with pytest.raises(kind, match=message):
        tfckpt.save_model(model, target, **given)
    assert not list(tmp_path.iterdir())


def test_further_values_are_children_of_the_root(tmp_path: Path) -> None:
    prefix = tfckpt.save_model(Digits(), tmp_path / "m", naming="keras", like=CNN, extra={"step": 7})
    assert int(tfckpt.load_variable(prefix, "step")) == 7
    back = Digits()
    assert tfckpt.load_model(back, prefix, mapper=tfckpt.KeyMapper.infer(prefix, back)).missing == []


def test_a_checkpoint_is_not_a_keras_file(tmp_path: Path) -> None:
    prefix = tfckpt.save_model(Digits(), tmp_path / "m")
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"not a file of Keras. Pass the \.keras file"):
        tfckpt.save_model(Digits(), tmp_path / "m.weights.h5", like=prefix)


def test_h5py_is_needed_only_to_write_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"needs h5py.*pip install torch-tfckpt\[keras\]"):
        tfckpt.save_model(Digits(), tmp_path / "m.weights.h5", like=CNN)
    assert not list(tmp_path.iterdir())
    tfckpt.save_model(Digits(), tmp_path / "m", naming="keras", like=CNN)


def _half(path: Path) -> Path:
    """Weights of a Dense layer `fc` in float16."""

    def change(file: Any) -> None:
        for number in ("0", "1"):
            value = file[f"layers/dense/vars/{number}"][()]
            del file[f"layers/dense/vars/{number}"]
            file[f"layers/dense/vars/{number}"] = value.astype("f2")

    return keras_weights(path, change)


def test_values_beyond_the_range_leave_the_earlier_file(tmp_path: Path) -> None:
    """The first variable has been written when the second one fails."""
    like, file = _half(tmp_path / "like.weights.h5"), tmp_path / "m.weights.h5"
    fc = nn.Linear(2, 3)
    model = nn.ModuleDict({"fc": fc})
    tfckpt.save_model(model, file, like=like)
    before = file.read_bytes()
    with torch.no_grad():
        fc.bias[1] = 1e6

    with pytest.raises(tfckpt.InvalidArgumentError, match=r'"m/fc/bias" has 1 value beyond the range of float16'):
        tfckpt.save_model(model, file, like=like)

    assert file.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"like.weights.h5", "m.weights.h5"}


_LIMITED = """
import resource, signal, sys
import torch
import torch_tfckpt as tfckpt
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 3)})
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
try:
    tfckpt.save_model(model, sys.argv[2], like=sys.argv[1])
except tfckpt.IncompleteSaveError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; HDF5 notices it only when it closes the file."""
    like, file = keras_weights(tmp_path / "like.weights.h5"), tmp_path / "m.weights.h5"
    file.write_bytes(b"earlier")
    command = [sys.executable, "-c", _LIMITED, str(like), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "File too large" in done.stdout and "Nothing was published" in done.stdout
    assert file.read_bytes() == b"earlier"
    assert {each.name for each in tmp_path.iterdir()} == {"like.weights.h5", "m.weights.h5"}


def test_a_variable_that_a_rule_omits_keeps_its_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Digits(affine=False)
    model.gain = nn.Parameter(torch.full((4,), 2.0))
    tfckpt.save_model(model, tmp_path / "m.weights.h5", like=CNN, mapper={"norm/gamma": "gain", "norm/beta": None})
    assert "keep their values" in caplog.text and "norm/beta" in caplog.text
    assert tfckpt.load_variable(tmp_path / "m.weights.h5", "norm/gamma").tolist() == [2.0] * 4
    assert torch.equal(
        tfckpt.load_variable(tmp_path / "m.weights.h5", "norm/beta"), tfckpt.load_variable(CNN, "norm/beta")
    )


def test_settings_that_differ_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Digits()
    model.norm.eps = 1e-3
    tfckpt.save_model(model, tmp_path / "m.weights.h5", like=CNN)
    assert "eps=0.001" in caplog.text and "epsilon=1e-05" in caplog.text


class Flattened(nn.Module):
    """Flattens a feature map in torch's order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 2)
        self.fc = nn.Linear(4 * 2 * 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.stem(x).flatten(1))
        return result


def test_a_linear_layer_after_a_flattened_map_needs_a_layout(tmp_path: Path) -> None:
    """Its inputs have another order in Keras."""

    def change(file: Any) -> None:
        weights = file.create_group("layers/conv2d/vars")
        weights.attrs["name"] = "stem"
        weights["0"], weights["1"] = torch.zeros(2, 2, 1, 4).numpy(), torch.zeros(4).numpy()
        del file["layers/dense/vars/0"], file["layers/dense/vars/1"]
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = torch.zeros(24, 2).numpy(), torch.zeros(2).numpy()

    like, file = keras_weights(tmp_path / "like.weights.h5", change), tmp_path / "m.weights.h5"
    model = Flattened()
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"dense_after_flatten[\s\S]*pass mapper="):
        tfckpt.save_model(model, file, like=like)

    tfckpt.save_model(model, file, like=like, mapper={"m/fc/kernel": ("fc.weight", "dense")})
    assert torch.equal(tfckpt.load_variable(file, "m/fc/kernel").T, model.fc.weight)

    layout = {"kind": "dense_after_flatten", "height": 2, "width": 3, "channels": 4}
    tfckpt.save_model(model, file, like=like, mapper={"m/fc/kernel": ("fc.weight", layout)})

    kernel = tfckpt.load_variable(file, "m/fc/kernel")
    assert torch.equal(kernel, model.fc.weight.reshape(2, 4, 2, 3).permute(2, 3, 1, 0).reshape(24, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight


def test_tied_weights_are_in_every_variable_of_keras(tmp_path: Path) -> None:
    def change(file: Any) -> None:
        del file["layers/dense"]
        for number, name in enumerate(("first", "second")):
            weights = file.create_group(f"layers/dense{'_1' * number}/vars")
            weights.attrs["name"] = name
            weights["0"], weights["1"] = torch.zeros(2, 2).numpy(), torch.zeros(2).numpy()

    like, model = keras_weights(tmp_path / "like.weights.h5", change), Tied()
    tfckpt.save_model(model, tmp_path / "m.weights.h5", like=like)
    for name in ("first", "second"):
        assert torch.equal(tfckpt.load_variable(tmp_path / "m.weights.h5", f"m/{name}/kernel").T, model.first.weight)


def test_a_second_bias_is_added_to_the_first(tmp_path: Path) -> None:
    """Keras's LSTM has one bias, torch's two."""

    def change(file: Any) -> None:
        del file["layers/dense"]
        file.create_group("layers/lstm/vars").attrs["name"] = "memory"
        cell = file.create_group("layers/lstm/cell/vars")
        cell.attrs["name"] = "lstm_cell"
        cell["0"], cell["1"] = torch.zeros(2, 12).numpy(), torch.zeros(3, 12).numpy()
        cell["2"] = torch.zeros(12).numpy()

    like = keras_weights(tmp_path / "like.weights.h5", change)
    memory = nn.LSTM(2, 3)
    model = nn.ModuleDict({"memory": memory})
    tfckpt.save_model(model, tmp_path / "m.weights.h5", like=like)
    bias = tfckpt.load_variable(tmp_path / "m.weights.h5", "m/memory/lstm_cell/bias")
    assert torch.equal(bias, sum(getattr(memory, f"bias_{part}_l0") for part in ("ih", "hh")))
