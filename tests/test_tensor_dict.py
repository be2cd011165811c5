"""load_file and save_file: dictionaries of tensors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.dtypes import STORED_AS
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.transfer.batching import RUN_BYTES, SMALL_BYTES
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.values import WritableValue


def tensors_of(
    values: dict[str, "torch.Tensor | np.ndarray[tuple[int, ...], np.dtype[np.object_]]"],
) -> dict[str, bytes]:
    """Name -> shape, dtype and bytes, in one comparable text."""
    return {
        name: f"{value.dtype} {tuple(value.shape)} ".encode() + bytes(byte_view(value.contiguous()))
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"verify": False}, {"mmap": True, "verify": False}])
def test_every_way_of_loading_gives_the_same(tmp_path: Path, options: dict[str, bool]) -> None:
    """All dtypes, scalars, empty, transposed, conjugated and expanded tensors, small and large, side by side."""
    values: dict[str, WritableValue] = {
        f"{dtype}".removeprefix("torch."): torch.arange(24).reshape(4, 6).to(dtype) for dtype in STORED_AS
    }
    values |= {
        "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "transposed": torch.randn(6, 4).t(),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2), "conj": torch.randn(3, dtype=torch.complex64).conj(),
        "neg": torch.randn(3, dtype=torch.complex64).conj().imag, "parameter": torch.nn.Parameter(torch.randn(3)),
        "large": torch.randn(700, 701), "numpy": np.arange(6, dtype=">i4").reshape(2, 3),
    }  # fmt: skip
    tfckpt.save_file(values, tmp_path / "m")
    loaded = tfckpt.load_file(tmp_path / "m", **options)  # type: ignore[arg-type]
    assert list(loaded) == sorted(values)
    expected = {
        name: value.detach().resolve_conj().resolve_neg()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    expected["numpy"] = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    assert tensors_of(loaded) == tensors_of(dict(sorted(expected.items())))


@given(st.lists(st.tuples(st.sampled_from(sorted(STORED_AS, key=str)), st.integers(0, 40)), max_size=30), st.randoms())
def test_travelling_together_changes_nothing(tmp_path_factory: pytest.TempPathFactory, kinds, random) -> None:  # type: ignore[no-untyped-def]
    """Fast path == general path: tensors read in runs equal those read one by one, and keep no memory of each other."""
    prefix = tmp_path_factory.mktemp("runs") / "m"
    values = {}
    for i, (dtype, count) in enumerate(kinds):
        numbers = torch.tensor([random.randrange(2) for _ in range(count)], dtype=torch.uint8)
        values[f"{i:03d}"] = numbers.to(dtype)
    tfckpt.save_file(values, prefix)
    with tfckpt.load_checkpoint(prefix) as reader:
        together = reader.get_tensors(values)
        assert tensors_of(together) == tensors_of({name: reader.get_tensor(name) for name in values})
        assert reader.check().good == sorted(values)
    for value in together.values():
        assert isinstance(value, torch.Tensor)
        assert value.untyped_storage().nbytes() == value.nbytes


def test_a_flipped_byte_in_a_run_is_found(tmp_path: Path) -> None:
    """Verification names the one tensor of many small ones whose byte was flipped."""
    tfckpt.save_file({f"{i:04d}": torch.full((10,), float(i)) for i in range(1000)}, tmp_path / "m")
    data = tmp_path / "m.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[40 * 321 + 5] ^= 1
    data.write_bytes(content)
    with pytest.raises(tfckpt.DataLossError, match='bytes 12840:12880: tensor "0321": Checksum does not match'):
        tfckpt.load_file(tmp_path / "m")
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        found = reader.check()
    assert (found.damaged, len(found.good)) == (["0321"], 999)


def test_sizes_around_those_of_a_run(tmp_path: Path) -> None:
    """Tensors at the bounds of what is small, and more of them than one run holds."""
    sizes = [SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, *([SMALL_BYTES] * (RUN_BYTES // SMALL_BYTES + 2)), 1, 0, 1]
    values = {f"{i:03d}": torch.randint(0, 255, (size,), dtype=torch.uint8) for i, size in enumerate(sizes)}
    tfckpt.save_file(values, tmp_path / "m")
    assert tensors_of(tfckpt.load_file(tmp_path / "m")) == tensors_of(dict(values))


def test_names_dtype_and_device(tmp_path: Path) -> None:
    """Some tensors in the order asked for; only floating ones are converted."""
    tfckpt.save_file({"a": torch.ones(2), "b": torch.tensor(7), "c": b"text"}, tmp_path / "m")
    loaded = tfckpt.load_file(tmp_path / "m", names=["b", "a", "c"], dtype=torch.bfloat16, device="cpu")
    assert list(loaded) == ["b", "a", "c"]
    assert [getattr(loaded[name], "dtype", None) for name in "ba"] == [torch.int64, torch.bfloat16]
    for wrong in (torch.int32, "bf16"):
        with pytest.raises(tfckpt.InvalidArgumentError, match="pass a floating-point torch dtype"):
            tfckpt.load_file(tmp_path / "m", dtype=wrong)  # type: ignore[arg-type]
    with pytest.raises(tfckpt.InvalidArgumentError, match='names="abc" is a single string'):
        tfckpt.load_file(tmp_path / "m", names="abc")
    with pytest.raises(tfckpt.InvalidArgumentError, match="device=nope"):
        tfckpt.load_file(tmp_path / "m", device="nope")


def test_mapped_tensors_are_private_and_outlive_the_file(tmp_path: Path) -> None:
    """Writing to one changes neither the file nor what is loaded next; deleting the file does not disturb it."""
    tfckpt.save_file({"a": torch.zeros(1000)}, tmp_path / "m")
    mapped = tfckpt.load_file(tmp_path / "m", mmap=True)["a"]
    assert isinstance(mapped, torch.Tensor)
    mapped.add_(1)
    again = tfckpt.load_file(tmp_path / "m")["a"]
    assert isinstance(again, torch.Tensor)
    assert not again.any()
    (tmp_path / "m.data-00000-of-00001").unlink()
    assert mapped.eq(1).all()


def test_misaligned_data_is_copied(tmp_path: Path) -> None:
    """A tensor that begins at no multiple of its element size cannot be a view; its values are right all the same."""
    with BundleWriter(LOCAL, str(tmp_path / "m")) as writer:
        writer.add("a", torch.tensor(True))
        writer.add("b", torch.arange(5.0))
    assert tensors_of(tfckpt.load_file(tmp_path / "m", mmap=True))["b"] == tensors_of({"b": torch.arange(5.0)})["b"]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (torch.zeros(2, device="meta"), tfckpt.InvalidArgumentError, 'tensor "x" is a meta tensor'),
        (torch.eye(3).to_sparse(), tfckpt.InvalidArgumentError, "is a torch.sparse_coo tensor"),
        (np.array([1, "a"], dtype=object), tfckpt.InvalidArgumentError, "int is neither a tensor nor bytes nor str"),
        (np.zeros(2, dtype="datetime64[s]"), tfckpt.UnimplementedError, "numpy dtype datetime64"),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, value: WritableValue, error: type[Exception], text: str) -> None:
    """Said with the tensor's name; nothing is left on disk, and an earlier checkpoint stays."""
    tfckpt.save_file({"x": torch.ones(1)}, tmp_path / "m")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=text):
        tfckpt.save_file({"w": torch.ones(2), "x": value}, tmp_path / "m")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


OTHER_ENDINGS = [
    ("model.safetensors", "safetensors.torch.save_file writes .safetensors files. torch_tfckpt.convert converts"),
    ("MODEL.PT", "torch.save writes .PT files. torch_tfckpt.convert converts a checkpoint to such a file"),
    ("pytorch_model.bin", "torch.save writes .bin files"),
    ("a.npz", "numpy.savez writes .npz files"),
    ("m.weights.h5", "To write weights for Keras, end the name with .weights.h5, and pass like="),
    ("m.keras", "To write weights for Keras, end the name with .weights.h5, and pass like="),
    ("m.onnx", ". For a checkpoint, use a different prefix, such as {0}/m.ckpt"),
]


@pytest.mark.parametrize(("name", "text"), OTHER_ENDINGS)
def test_names_that_promise_another_format_are_refused(tmp_path: Path, name: str, text: str) -> None:
    """By every function that writes a checkpoint under exactly the name given; nothing is written."""
    values = {"a": torch.ones(1)}
    calls: dict[str, Callable[[Path], str]] = {
        "save_file": lambda path: tfckpt.save_file(values, path),
        "save_model": lambda path: tfckpt.save_model(torch.nn.Linear(1, 1), path),
    }
    for function, call in calls.items():
        with pytest.raises(tfckpt.InvalidArgumentError) as error:
            call(tmp_path / name)
        assert f"{function} writes a TensorFlow checkpoint" in str(error.value)
        assert text.format(tmp_path) in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.ckpt", "model.pt-1000", "m.pt.d", ".pt", "v1.2", "m.index", "safetensors"])
def test_other_names_are_taken(tmp_path: Path, name: str) -> None:
    assert list(tfckpt.load_file(tfckpt.save_file({"a": torch.ones(1)}, tmp_path / name))) == ["a"]


def test_a_saver_takes_the_names_that_tensorflow_takes(tmp_path: Path) -> None:
    """Its names are stems, to which the step is appended, and programs that moved from TensorFlow have any."""
    saver = tfckpt.Saver({"a": torch.ones(1)})
    assert saver.save(tmp_path / "model.pt", global_step=7) == str(tmp_path / "model.pt-7")
    assert saver.save(tmp_path / "model.pt") == str(tmp_path / "model.pt")
    assert list(tfckpt.load_file(tmp_path / "model.pt")) == ["a"]


def test_a_device_that_is_not_available(tmp_path: Path) -> None:
    """Said before anything is read, not by torch's assertion afterwards."""
    if torch.cuda.is_available():
        pytest.skip("CUDA is available")
    with pytest.raises(tfckpt.InvalidArgumentError, match="CUDA is not available in this process"):
        tfckpt.load_file(tmp_path / "absent", device="cuda")


@pytest.mark.parametrize("device", ["xpu", "mps", "mtia", "hpu", "xla", "privateuseone"])
def test_any_device_that_is_not_available(device: str, tmp_path: Path) -> None:
    """Torch raises an error of another class for each; the message names the device and says what to pass."""
    try:
        torch.empty(0, device=device)
    except Exception:
        pass
    else:
        pytest.skip(f"{device} is available")
    with pytest.raises(tfckpt.InvalidArgumentError, match=f"device={device}: not available .*Pass device='cpu'"):
        tfckpt.load_file(tmp_path / "absent", device=device)
