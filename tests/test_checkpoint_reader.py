"""The reader that users see: both versions through one face."""

from pathlib import Path

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.indexing import Index
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.v1.writer import SlicesWriter

V0 = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
V1 = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]])


def save(prefix: Path, version: int, tensors: dict[str, torch.Tensor]) -> Path:
    if version == 2:
        tfckpt.save_file(tensors, prefix)
    else:
        with SlicesWriter(LOCAL, str(prefix)) as writer:
            for name, tensor in tensors.items():
                writer.add(name, tensor)
    return prefix


@pytest.mark.parametrize("version", [1, 2])
def test_debug_string(tmp_path: Path, version: int) -> None:
    """CASES 75. has_tensor, debug_string, shape map, get_tensor, and the words for a name that is not there."""
    with tfckpt.load_checkpoint(save(tmp_path / "m", version, {"v0": V0, "v1": V1})) as reader:
        assert reader.version == version
        assert reader.has_tensor("v0") and reader.has_tensor("v1") and not reader.has_tensor("v3")
        assert "v0 (DT_FLOAT) [2,3]" in reader.debug_string()
        assert "v1 (DT_FLOAT) [3,2,1]" in reader.debug_string()
        assert reader.get_variable_to_shape_map() == {"v0": [2, 3], "v1": [3, 2, 1]}
        assert reader.get_variable_to_dtype_map() == {"v0": DataType.DT_FLOAT, "v1": DataType.DT_FLOAT}
        for name, expected in (("v0", V0), ("v1", V1)):
            value = reader.get_tensor(name)
            assert isinstance(value, torch.Tensor)
            assert torch.equal(value, expected)
        with pytest.raises(tfckpt.NotFoundError, match="v3 not found in checkpoint"):
            reader.get_tensor("v3")
        with pytest.raises(LookupError, match=r'no tensor "v3": .*`tfckpt ls .*m` lists all 2\.'):
            reader.get_tensor("v3")


def test_debug_string_of_partitioned_tensors(tmp_path: Path) -> None:
    """One line under the tensor's own name, and how many slices it has; TensorFlow prints the binary keys here."""
    with BundleWriter(LOCAL, str(tmp_path / "m")) as writer:
        writer.add_slice("w", (4, 2), TensorSlice.parse("0,2:-"), torch.ones(2, 2))
        writer.add_slice("w", (4, 2), TensorSlice.parse("2,2:-"), torch.ones(2, 2))
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        assert reader.debug_string() == "w (DT_FLOAT) [4,2], 2 slices"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "index",
    [
        np.s_[1], np.s_[-1], np.s_[1:3], np.s_[:, 2], np.s_[..., 2:5], np.s_[1, ..., 0], np.s_[::2], np.s_[3:1],
        np.s_[1:, 3:9:4], np.s_[:], np.s_[...], np.s_[2, 3, 1], np.s_[100:],
    ],
)  # fmt: skip
def test_get_slice_is_indexing(tmp_path: Path, version: int, index: Index) -> None:
    """reader.get_slice(name)[i] equals get_tensor(name)[i], first and again."""
    tensor = torch.randn(5, 7, 3)
    with tfckpt.load_checkpoint(save(tmp_path / "m", version, {"x": tensor})) as reader:
        stored = reader.get_slice("x")
        assert (stored.get_shape(), stored.get_dtype()) == ([5, 7, 3], DataType.DT_FLOAT)
        for _ in range(2):
            value = stored[index]
            assert isinstance(value, torch.Tensor)
            assert torch.equal(value, tensor[index])


@pytest.mark.parametrize("index", [np.s_[5], np.s_[-6], np.s_[0, 0], np.s_[..., ...], np.s_[::-1], True, "a", None])
def test_what_is_no_index(tmp_path: Path, index: Index) -> None:
    """Out of range, too many, backwards, or no number: said before anything is read."""
    with tfckpt.load_checkpoint(save(tmp_path / "m", 2, {"x": torch.arange(5)})) as reader:
        with pytest.raises(tfckpt.InvalidArgumentError, match=r'tensor "x" of shape \[5\]'):
            reader.get_slice("x")[index]


class TestOut:
    """`out=` is filled, whatever its strides, and left unchanged if it does not fit."""

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("out", [torch.zeros(2, 3), torch.zeros(3, 2).t(), torch.zeros(2, 6)[:, ::2]])
    def test_filled(self, tmp_path: Path, version: int, out: torch.Tensor) -> None:
        with tfckpt.load_checkpoint(save(tmp_path / "m", version, {"x": V0})) as reader:
            assert reader.get_tensor("x", out=out) is out
            assert torch.equal(out, V0)

    def test_a_parameter(self, tmp_path: Path) -> None:
        """A leaf that requires grad is filled in place and stays one."""
        parameter = torch.nn.Parameter(torch.zeros(2, 3))
        with tfckpt.load_checkpoint(save(tmp_path / "m", 2, {"x": V0})) as reader:
            reader.get_tensor("x", out=parameter)
        assert torch.equal(parameter, V0)
        assert parameter.requires_grad and parameter.is_leaf

    @pytest.mark.parametrize(
        ("out", "text"),
        [
            (torch.zeros(3, 2), r"`out` is torch.float32 \[3,2\], but the stored tensor is torch.float32 \[2,3\]"),
            (torch.zeros(2, 3, dtype=torch.float64), "`out` is torch.float64"),
            (torch.zeros(1, 3).expand(2, 3), "is expanded"),
            (torch.zeros(2, 3, device="meta"), "meta device"),
        ],
    )
    def test_refused(self, tmp_path: Path, out: torch.Tensor, text: str) -> None:
        with tfckpt.load_checkpoint(save(tmp_path / "m", 2, {"x": V0})) as reader:
            with pytest.raises(tfckpt.InvalidArgumentError, match=text):
                reader.get_tensor("x", out=out)
        if out.device.type != "meta":
            assert not out.any()

    @pytest.mark.parametrize("count", [2, 50_000])
    def test_whose_memory_is_not_its_values(self, tmp_path: Path, count: int) -> None:
        """A conjugate, and its imaginary part, are views with a flag: they are filled with the values, too."""
        stored = {"z": torch.tensor([1 + 2j, 3 - 4j] * count), "x": torch.tensor([1.0, 2.0] * count)}
        with tfckpt.load_checkpoint(save(tmp_path / "m", 2, stored)) as reader:
            for read in (lambda out: {k: reader.get_tensor(k, out=v) for k, v in out.items()},
                         lambda out: reader.get_tensors(list(out), out)):  # fmt: skip
                conjugate = torch.zeros(2 * count, dtype=torch.complex64).conj()
                negated = torch.zeros(2 * count, dtype=torch.complex64).conj().imag
                assert conjugate.is_conj() and negated.is_neg()
                found = read({"z": conjugate, "x": negated})
                assert found["z"] is conjugate and found["x"] is negated
                assert torch.equal(conjugate, stored["z"]) and torch.equal(negated, stored["x"])

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_a_device(self, tmp_path: Path) -> None:
        out = torch.zeros(2, 3, device="cuda")
        with tfckpt.load_checkpoint(save(tmp_path / "m", 2, {"x": V0})) as reader:
            reader.get_tensor("x", out=out)
        assert torch.equal(out.cpu(), V0)


def test_list_and_load_variables(tmp_path: Path) -> None:
    """Names sorted, shapes as lists, a trailing ":0" dropped, as tf.train has it."""
    prefix = save(tmp_path / "m", 2, {"b": V1, "a/x": V0})
    assert tfckpt.list_variables(prefix) == [("a/x", [2, 3]), ("b", [3, 2, 1])]
    value = tfckpt.load_variable(prefix, "a/x:0")
    assert isinstance(value, torch.Tensor)
    assert torch.equal(value, V0)


def test_one_undecodable_tensor_does_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A variant raises for itself, is listed under its type, and is left out, with a word, of load_file."""
    with BundleWriter(LOCAL, str(tmp_path / "m")) as writer:
        writer.add("x", V0)
        writer.add_stored("state", DataType.DT_VARIANT, (), b"\0" * 8, 0)
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        assert reader.keys() == ["state", "x"]
        assert reader.dtype("state") is DataType.DT_VARIANT
        with pytest.raises(tfckpt.UnimplementedError, match='tensor "state": element type DT_VARIANT'):
            reader.get_tensor("state")
    assert list(tfckpt.load_file(tmp_path / "m")) == ["x"]
    assert '"state" (DT_VARIANT)' in caplog.text
    with pytest.raises(tfckpt.UnimplementedError):
        tfckpt.load_file(tmp_path / "m", names=["state"])


@pytest.mark.parametrize("version", [1, 2])
def test_get_tensors_into_given_tensors(tmp_path: Path, version: int) -> None:
    """Small and large, contiguous or not; the others are new. A tensor that does not fit is refused."""
    large = torch.arange(2.0**18).view(512, 512)
    path = save(tmp_path / "m", version, {"v0": V0, "v1": V1, "large": large, "turned": large})
    out = {"v0": torch.zeros(2, 3), "large": torch.zeros(512, 512), "turned": torch.zeros(512, 512).t()}
    with tfckpt.load_checkpoint(path) as reader:
        values = reader.get_tensors(["turned", "v0", "v1", "large"], out)
        assert list(values) == ["turned", "v0", "v1", "large"]
        assert all(values[name] is tensor for name, tensor in out.items())
        expected = {"v0": V0, "v1": V1, "large": large, "turned": large}
        assert all(torch.equal(values[name], tensor) for name, tensor in expected.items())
        for name in ("v0", "large"):
            with pytest.raises(tfckpt.InvalidArgumentError, match=name):
                reader.get_tensors([name], {name: torch.zeros(7)})


@pytest.mark.parametrize("version", [1, 2])
def test_check_tensors(tmp_path: Path, version: int) -> None:
    """Only the named tensors are verified; those in slices, too."""
    path = tmp_path / "m"
    values = torch.rand(64, 1024)
    if version == 2:
        with BundleWriter(LOCAL, str(path)) as writer:
            writer.add("whole", values)
            for start in (0, 32):
                part = TensorSlice.parse(f"{start},32:-")
                writer.add_slice("parts", (64, 1024), part, values[start : start + 32])
    else:
        save(path, 1, {"parts": values, "whole": values})
    [data] = [file for file in tmp_path.iterdir() if not file.name.endswith(".index")]
    with tfckpt.load_checkpoint(path) as reader:
        reader.check_tensors(reader.keys())
    content = bytearray(data.read_bytes())
    content[len(content) * 3 // 4] ^= 1  # in the second tensor
    data.write_bytes(content)
    second, first = ("parts", "whole") if version == 2 else ("whole", "parts")
    with tfckpt.load_checkpoint(path) as reader:
        reader.check_tensors([first])
        with pytest.raises(tfckpt.DataLossError, match=f'"{second}"' if version == 2 else "block"):
            reader.check_tensors([first, second])
        with pytest.raises(tfckpt.NotFoundError):
            reader.check_tensors(["none"])
