"""Reading and writing .npz files: numpy reads ours, we read numpy's, and nothing is ever unpickled."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.values import FileValue


def values_of(path: Path) -> dict[str, FileValue]:
    source = open_source(str(path))
    try:
        return source.read(source.names())
    finally:
        source.close()


def test_numpys_own_files(tmp_path: Path) -> None:
    """Every numeric type, either byte order, either memory order, compressed or not, fixed-width strings."""
    arrays = {
        name: np.arange(6).astype(name).reshape(2, 3)
        for name in (
            "bool",
            "u1",
            "u2",
            "u4",
            "u8",
            "i1",
            "i2",
            "i4",
            "i8",
            "f2",
            "f4",
            "f8",
            "c8",
            "c16",
            ">i4",
            ">c8",
        )
    } | {
        "fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        "scalar": np.array(7.5),
        "empty": np.zeros((0, 3)),
        "layer/kernel:0": np.ones(2),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "m.npz", **arrays)  # type: ignore[arg-type]
        read = values_of(tmp_path / "m.npz")
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            value = read[name]
            assert isinstance(value, torch.Tensor) and value.is_contiguous()
            assert value.dtype == torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).dtype, name
            assert np.array_equal(value.numpy(), array), name


def test_strings_of_fixed_width(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", bytes=np.array([[b"a"], [b"bcd"]]), text=np.asfortranarray([["ü", "x"], ["", "yz"]]))
    read = {name: np.asarray(value).tolist() for name, value in values_of(tmp_path / "m.npz").items()}
    assert read == {"bytes": [[b"a"], [b"bcd"]], "text": [["ü".encode(), b"x"], [b"", b"yz"]]}
    convert(tmp_path / "m.npz", tmp_path / "t", to="tf")
    assert diff(tmp_path / "m.npz", tmp_path / "t").identical


def test_objects_are_named_and_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", good=np.ones(1), bad=np.array([{}], dtype=object), when=np.zeros(1, "M8[s]"))
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.writestr("notes.txt", "hello")
    report = convert(tmp_path / "m.npz", tmp_path / "m.pt")
    assert [item.name for item in report.converted] == ["good"]
    assert report.skipped == {
        "bad": "Python objects, which are never unpickled",
        "when": "numpy datetime64[s]",
        "notes.txt": "not a .npy file",
    }


def test_what_we_write_is_what_numpy_writes(tmp_path: Path) -> None:
    """Each member is the .npy file that numpy.save makes, its data aligned for mapping."""
    tfckpt.save_file({"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}, tmp_path / "t")
    convert(tmp_path / "t", tmp_path / "m.npz")
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        assert archive.testzip() is None
        for name, array in (("w", np.arange(6, dtype="f4").reshape(2, 3)), ("n", np.array(3))):
            buffer = io.BytesIO()
            np.save(buffer, array)
            assert archive.read(f"{name}.npy") == buffer.getvalue()
    assert (tmp_path / "m.npz").read_bytes().index(np.arange(6, dtype="f4").tobytes()) % 64 == 0


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (npy(f"({2**40},)"), "is larger than its zip member"),
        (npy(f"({2**62}, {2**62})"), "is larger than its zip member"),
        (npy("(-1,)"), "invalid .npy header"),
        (npy("(4,)", bytes(12)), "ends after 12 of 16 bytes"),
        (npy("(1,)", bytes(12)), "is followed by extra bytes"),
        (npy("nonsense"), 'array "x"'),
        (b"no magic here, at all", 'array "x"'),
        (b"\x93NUMPY\x07\x00", r'array "x": .*version'),
    ],
)
def test_members_that_cannot_be(tmp_path: Path, member: bytes, text: str) -> None:
    """Sizes in the file are compared with its own size before memory is allocated."""
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(tfckpt.DataLossError, match=text) as refused:
        values_of(tmp_path / "m.npz")
    assert "m.npz" in str(refused.value)


def test_every_flipped_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    """Damage never changes a value: the archive has checksums."""
    np.savez(tmp_path / "m.npz", x=np.arange(4.0), y=np.arange(3, dtype="i2"))
    whole = (tmp_path / "m.npz").read_bytes()
    expected = ([0.0, 1.0, 2.0, 3.0], [0, 1, 2])
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        (tmp_path / "d.npz").write_bytes(damaged)
        try:
            read = values_of(tmp_path / "d.npz")
        except tfckpt.CheckpointError:
            continue
        # Names are not summed; what is read under them is, and a changed directory may leave one out.
        assert all(np.asarray(value).tolist() in expected for value in read.values())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(tfckpt.NotFoundError, match=r"m\.npz: no such file"):
        open_source(str(tmp_path / "m.npz"))
