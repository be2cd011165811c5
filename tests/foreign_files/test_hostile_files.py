"""Hostile .pt, .npz and .safetensors files: a few kB end within seconds, in an error that names the file."""

import io
import json
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.npy_header import decode_header
from torch_tfckpt.storage.zip_archive import name_fault

SECONDS = 20  # on a busy machine; each takes a fraction of one on an idle one


def refused(path: Path) -> str:
    """Open and read everything; return the error, which names the file and comes soon."""
    begin = time.monotonic()
    with pytest.raises((tfckpt.DataLossError, tfckpt.InvalidArgumentError, tfckpt.UnimplementedError)) as error:
        with closing(open_source(str(path))) as source:
            source.read(source.names())
    assert time.monotonic() - begin < SECONDS
    assert path.name in str(error.value)
    assert main(["convert", str(path), str(path.parent / "out.safetensors")]) in (1, 2)
    return str(error.value)


# Pickles.

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def tensor(offset: bytes, shape: bytes, strides: bytes, storage: bytes = STORAGE) -> bytes:
    """{"w": a tensor of the storage, which has 16 floats}."""
    return b"}X\x01\x00\x00\x00w" + REBUILD + b"(" + storage + offset + shape + strides + b"\x89}tRs."


def pt(directory: Path, pickled: bytes, order: str = "little") -> Path:
    with zipfile.ZipFile(directory / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled)
        archive.writestr("archive/byteorder", order)
        archive.writestr("archive/data/0", np.arange(16, dtype="<f4" if order == "little" else ">f4").tobytes())
    return directory / "m.pt"


def test_the_pickle_that_the_others_change_is_read(tmp_path: Path) -> None:
    """In both byte orders, with an offset and any strides."""
    for order in ("little", "big"):
        path = pt(tmp_path, tensor(b"K\x01", b"K\x02K\x03\x86", b"K\x01K\x02\x86"), order)
        with closing(open_source(str(path))) as source:
            assert torch.as_tensor(source.read(["w"])["w"]).tolist() == [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]


@pytest.mark.parametrize(
    ("pickled", "text"),
    [
        (b"]q\x00h\x00a.", "nested more than 64 deep"),  # a list that contains itself
        (b"]q\x00(h\x00h\x00h\x00e.", "nested more than 64 deep"),
        (b"}q\x00X\x01\x00\x00\x00ah\x00s.", "nested more than 64 deep"),
        (b"]" + b"".join(b"q\x00]h\x00ah\x00a" for _ in range(40)) + b".", "share items so often"),
        (b"K\x01" + b"".join(b"q\x00h\x00\x86" for _ in range(40)) + b".", "share items so often"),
        (b"]" * 5000 + b"a" * 4999 + b".", "nested more than 64 deep"),
        (b"K\x01" + b"\x85" * 100_000 + b".", "nested more than 64 deep"),
        (b"}X\x00\x00\x04\x00" + b"k" * 2**18 + b"(" + b"K\x01" * 1000 + b"lq\x00s.", "unknown operation"),
        (b"}K\x01" + b"q\x00h\x00\x86" * 40 + b"K\x01s.", "a key of a dictionary is not a plain value: tuple"),
        (b"\x8b\xff\xff\xff\x7f1.", "an integer of 2147483647 bytes"),
        (b"\x8b\xff\xff\xff\xff1.", "an integer of 4294967295 bytes"),
        (b"X\xff\xff\xff\xffabc.", "expected 4,294,967,295 more bytes"),
        (b"\x8d" + b"\xff" * 8 + b".", "expected 18,446,744,073,709,551,615 more bytes"),
        (b"\x96" + b"\xff" * 8 + b".", "unknown operation 0x96"),
        (b"Nr\xff\xff\xff\xffj\x00\x00\x00\x01.", "damaged pickle"),
        (b"}" + b"2" * 1000 + b".", "unknown operation 0x32"),
        (b"", "damaged pickle"),
        (b"N", "damaged pickle"),
        (b".", "damaged pickle"),
        (b"Ns.", "damaged pickle"),
        (b"\x87.", "a tuple of values that are missing"),
        (b"e.", "damaged pickle"),
        (b"t.", "damaged pickle"),
        (b"NNR.", "it calls something that is not a function"),
        (
            b"cbuiltins\nbytearray\n" + b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85Rq\x00]h\x00a" + b"h\x00R.",
            "that is not a function",
        ),
        (b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "could run arbitrary code: builtins.eval"),
        (b"cposix\nsystem\nX\x01\x00\x00\x001\x85R.", "could run arbitrary code: posix.system"),
        (b"ctorch.hub\nload\n)R.", "could run arbitrary code: torch.hub.load"),
        (b"X\x08\x00\x00\x00builtinsX\x04\x00\x00\x00exec\x93.", "could run arbitrary code: builtins.exec"),
        (b"c" + b"x" * 2000 + b"\ny\n.", "damaged pickle"),
        (b"ctorch\nSize\n]\x85R.", "expected a tuple, but found a different value"),
        (b"ccollections\nOrderedDict\n](K\x01K\x02K\x03ea\x85R.", "damaged pickle"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(" + b"cbuiltins\nset\nN)NtR.", "without a function that makes it"),
        (tensor(b"J\xff\xff\xff\xff", b"K\x02\x85", b"K\x01\x85"), "without its storage"),
        (tensor(b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "invalid shape or invalid strides"),
        (tensor(b"K\x00", b"K\x11\x85", b"K\x01\x85"), 'tensor "w" needs 68 bytes of its storage, which has 64'),
        (tensor(b"K\x0f", b"K\x02\x85", b"K\x01\x85"), 'tensor "w" needs 68 bytes of its storage, which has 64'),
        (tensor(b"K\x00", b"K\x02\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"), "of its storage, which has 64"),
        (tensor(b"K\x00", b"K\x02K\x02\x86", b"K\x01\x85"), "the strides of a tensor do not match"),
        (tensor(b"K\x00", b"\x88\x85", b"K\x01\x85"), "invalid shape or invalid strides"),
        (tensor(b"K\x00", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", b"K\x00\x85"), "but the file has only"),
        (
            tensor(b"K\x00", b"(" + b"K\x01" * 1000 + b"t", b"(" + b"K\x01" * 1000 + b"t"),
            "invalid shape or invalid strides",
        ),
        (
            tensor(b"K\x00", b"K\x02\x85", b"K\x01\x85", STORAGE.replace(b"\x000X", b"\x001X")),
            "of its storage, which has 0",
        ),
        (tensor(b"K\x00", b"K\x02\x85", b"K\x01\x85", b"N"), "without its storage"),
    ],
)
def test_hostile_pickles(tmp_path: Path, pickled: bytes, text: str) -> None:
    assert text in refused(pt(tmp_path, pickled))


def test_many_views_of_one_storage(tmp_path: Path) -> None:
    """Each fits into the file; all together would be gigabytes."""
    whole = torch.ones(100_000)
    torch.save({str(number): whole.view(1, -1) for number in range(1000)}, tmp_path / "m.pt")
    assert "views of the same storages" in refused(tmp_path / "m.pt")


def test_tied_weights_are_still_read(tmp_path: Path) -> None:
    whole = torch.ones(100_000)
    torch.save({str(number): whole for number in range(10)}, tmp_path / "m.pt")
    with closing(open_source(str(tmp_path / "m.pt"))) as source:
        assert len(source.read(source.names())) == 10


def test_what_torch_saves_is_read_as_torch_loads_it(tmp_path: Path) -> None:
    """Parameters, hooks, attributes, optimizers, numbers of other protocols, subclasses: as torch.load returns them."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    attributed = torch.ones(3)
    attributed.note = "x"  # type: ignore[attr-defined]
    views = [torch.arange(24).view(2, 3, 4).permute(2, 0, 1), torch.arange(10)[3:7:2], torch.ones(1).expand(5)]
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "attributed": attributed,
        "views": views,
        "empty": torch.ones(0, 3),
        "conjugate": torch.tensor([1 + 2j]),
        "big": 2**70,
        "bytes": b"abc",
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "set": {1, 2},
    }
    for protocol in (2, 3, 4):
        torch.save(state, tmp_path / "m.pt", pickle_protocol=protocol)
        with closing(open_source(str(tmp_path / "m.pt"))) as source:
            values = source.read(source.names())
            skipped = dict(source.skipped)
        expected = {f"model.{name}": value for name, value in model.state_dict().items()} | {
            "parameter": state["parameter"],
            "attributed": attributed,
            "empty": state["empty"],
            "conjugate": state["conjugate"],
        }
        expected |= {f"views.{number}": view for number, view in enumerate(views)}
        for index, moments in optimizer.state_dict()["state"].items():
            expected |= {f"optimizer.state.{index}.{name}": value for name, value in moments.items()}
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            assert isinstance(value, torch.Tensor) and torch.equal(torch.as_tensor(values[name]), value), name
        assert skipped["big"] == f"int {2**70}" and skipped["set"] == "set" and skipped["size.1"] == "int 2"


# Zip archives.


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


GOOD = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(8))


def npz(directory: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(directory / "m.npz", "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, method
            archive.writestr(info, content)
    return directory / "m.npz"


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), ",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
        "{}",
        "",
        "(" * 9000,
        "[" * 9000,
        "{" * 9000,
        "{'descr': " + "[" * 9000,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 65 + ")}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}",
        "{'descr': 3, 'fortran_order': True, 'shape': ()}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, None)}",
        "'''",
        "\\",
        "\x00",
        "{'descr': '\\x00'}",
        "\xff\xfe",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
        "__import__('os').system('true')",
        "{'descr' '<f4'}",
        "{'descr': '<f4' 'fortran_order': False, 'shape': (2,)}",
        "{'descr': [('a', '<f4'), 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 2}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}",
        "{'shape': (0x2,), 'descr': 'f4', 'fortran_order': True}",
    ],
)
def test_hostile_npy_headers(tmp_path: Path, header: str) -> None:
    """What made numpy's parser raise TokenError, TypeError, SystemError, MemoryError, or run for long."""
    assert 'array "x"' in refused(npz(tmp_path, ("x.npy", npy(header, bytes(8)))))


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("{'descr': '<U0', 'fortran_order': False, 'shape': (1099511627776,)}", "is larger than its zip member"),
        ("{'descr': '|S0', 'fortran_order': False, 'shape': (4294967296,)}", "is larger than its zip member"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}", "is larger than its zip member"),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807, 9223372036854775807)}",
            "cannot hold",
        ),
    ],
)
def test_hostile_shapes(tmp_path: Path, header: str, text: str) -> None:
    """No memory is taken for a shape that the member cannot have."""
    assert text in refused(npz(tmp_path, ("x.npy", npy(header))))


@pytest.mark.parametrize("order", "<>")
def test_code_points_that_are_not_characters(tmp_path: Path, order: str) -> None:
    """numpy alone raises SystemError for 0x110000."""
    header = f"{{'descr': '{order}U1', 'fortran_order': False, 'shape': (2,)}}"
    for code, right in ((0x10FFFF, True), (0x110000, False), (0x6200, True)):
        path = npz(tmp_path, ("x.npy", npy(header, np.array([97, code], f"{order}u4").tobytes())))
        if right:
            with closing(open_source(str(path))) as source:
                value = source.read(["x"])["x"]
            assert isinstance(value, np.ndarray) and list(value) == [b"a", chr(code).encode()]
        else:
            assert 'array "x": 1114112 is not a character' in refused(path)


@pytest.mark.parametrize(
    ("descr", "kind"),
    [
        ("'|O'", "Python objects, which are never unpickled"),
        ("'O'", "Python objects, which are never unpickled"),
        ("[('a', '<f4'), ('b', [('c', '|O')])]", "numpy [('a', '<f4'), ('b', [('c', '|O')])]"),
        ("'<M8[ns]'", "numpy datetime64[ns]"),
        ("'|V8'", "numpy |V8"),
        ("'<f16'", "numpy <f16"),
        ("'f4,i4'", "numpy f4,i4"),
        ("'nonsense'", "numpy nonsense"),
        ("'<U99999999999999999999'", "numpy <U99999999999999999999"),
        ("'\x1b[31m'", "numpy \\x1b[31m"),
    ],
)
def test_types_that_are_not_tensors(descr: str, kind: str) -> None:
    """They are listed as skipped; numpy is not asked what they are."""
    header = decode_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': (2,), }}".encode())
    assert header.dtype is None and header.type_name == kind


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../x", "..", "/x", "C:/x", "C:\\x", "a\\x", "a\nb", "a\x1bb", "", "a\u202eb", "\x00", "a\x00b", "\x7f"],
)
def test_names_that_are_not_plain(tmp_path: Path, name: str) -> None:
    """They are refused in an archive, and never written into one."""
    assert name_fault(name) is not None
    assert "its name is invalid" in refused(npz(tmp_path, (f"{name}.npy", GOOD)))
    tfckpt.save_file({name or "..": torch.ones(2)}, tmp_path / "t")
    report = tfckpt_convert(tmp_path / "t", tmp_path / "n.npz")
    assert report == ["n.npz", "n.npz.tfckpt.json"]
    with zipfile.ZipFile(tmp_path / "n.npz") as archive:
        assert archive.namelist() == []


def tfckpt_convert(source: Path, target: Path) -> list[str]:
    assert main(["convert", str(source), str(target)]) == 0
    return sorted(path.name for path in target.parent.iterdir() if path.name.startswith(target.name))


@pytest.mark.parametrize("name", ["w", "layer/kernel:0", "a.b", "a//b", "..a", "a..", "ü", "a b", "C:x"])
def test_plain_names(name: str) -> None:
    assert name_fault(name) is None


def changed(path: Path, change: Callable[[bytearray], None]) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def set_directory(field: int, size: int, value: int, member: int = 0) -> Callable[[bytearray], None]:
    """Change a field of an entry in the archive's directory (APPNOTE.TXT 4.3.12)."""

    def change(content: bytearray) -> None:
        at = -1
        for _ in range(member + 1):
            at = content.index(b"PK\x01\x02", at + 1)
        content[at + field : at + field + size] = value.to_bytes(size, "little")

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (set_directory(8, 2, 1), "is encrypted"),
        (set_directory(10, 2, 12), "is compressed by method 12"),
        (set_directory(10, 2, 99), "is compressed by method 99"),
        (set_directory(20, 4, 2**31), "damaged zip archive"),  # compressed size
        (set_directory(24, 4, 2**32 - 2), "damaged zip archive"),  # size
        (set_directory(42, 4, 0, member=1), "in another member"),  # offset
        (set_directory(42, 4, 40, member=1), "in another member"),
        (set_directory(42, 4, 2**32 - 2), "damaged zip archive"),
        (set_directory(46, 1, ord("z")), "damaged zip archive"),  # another name than at its offset
        (set_directory(28, 2, 2**16 - 1), "m.npz"),  # size of the name
        (set_directory(30, 2, 2**16 - 1), "damaged zip archive"),  # size of the extra field
    ],
)
def test_directories_that_lie(tmp_path: Path, change: Callable[[bytearray], None], text: str) -> None:
    assert text in refused(changed(npz(tmp_path, ("a.npy", GOOD), ("b.npy", GOOD)), change))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    """Tools disagree about which of them counts."""
    assert '"a.npy" is stored twice' in refused(npz(tmp_path, ("a.npy", GOOD), ("a.npy", GOOD)))


def test_a_bomb_takes_the_memory_that_its_header_needs(tmp_path: Path) -> None:
    """A thousand zeros for each byte: valid if the header says so, else refused before they are unpacked."""
    size = 8 * 1024 * 1024
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }"
    path = npz(tmp_path, ("x.npy", npy(head % size, bytes(size))), method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with closing(open_source(str(path))) as source:
        assert torch.as_tensor(source.read(["x"])["x"]).shape == (size,)
    path = npz(tmp_path, ("x.npy", npy(head % 8, bytes(size))), method=zipfile.ZIP_DEFLATED)
    assert "is followed by extra bytes" in refused(path)


def test_compressed_tensors_of_a_pt_file(tmp_path: Path) -> None:
    """torch would map the compressed bytes as values."""
    path = pt(tmp_path, tensor(b"K\x00", b"K\x02\x85", b"K\x01\x85"))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    assert "is compressed" in refused(tmp_path / "z.pt")


def test_a_pickle_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """The size in the directory is a lie, or larger than the limit: neither is unpacked."""
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = raw.compress(b"\x80\x02" + b"N" * 2**20) + raw.flush()
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N" * 2**20)
    assert len(packed) < 2000
    assert refused(changed(tmp_path / "m.pt", set_directory(24, 4, 2**30)))


# safetensors.


def safetensors(directory: Path, header: bytes, size: int = 8) -> Path:
    (directory / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return directory / "m.safetensors"


ENTRY = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    "header",
    [
        b'{"w":%s,"w":%s}' % (ENTRY, ENTRY),
        b"[" * 100_000,
        b'{"w":' * 100_000,
        b'{"w":%s}' % (b"[" * 900 + b"]" * 900),
        b'{"w":{"dtype":"F32","shape":%s,"data_offsets":[0,8]}}' % (b"[" * 900 + b"]" * 900),
        b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,Infinity]}}',
        b'{"w":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % (b"9" * 5000),
        b'{"w":{"dtype":"F32","shape":[%s1],"data_offsets":[0,8]}}' % (b"9223372036854775807," * 40_000),
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"dtype":"F32"}}',
        b'{"w":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[8,0]}}',
        b" " * 1_000_000,
        b"\xff\xfe",
        b"",
        b"null",
        b'"\\ud800"',
        b'{"a":{"dtype":"NEW","shape":[0,%s],"data_offsets":[0,8]}}' % (b"9" * 30),
    ],
)
def test_hostile_safetensors_headers(tmp_path: Path, header: bytes) -> None:
    assert refused(safetensors(tmp_path, header))


@pytest.mark.parametrize(
    "shard", ["../m.safetensors", "/m.safetensors", "a\\b", "", ".", "..", "a\x1bb", 3, [[[]]], None, "a\0b"]
)
def test_an_index_names_files_of_its_directory_only(tmp_path: Path, shard: object) -> None:
    safetensors(tmp_path, b'{"w":%s}' % ENTRY)
    home = tmp_path / "home"
    home.mkdir()
    (home / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    assert "is not a plain file name" in refused(home / "m.safetensors.index.json")


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "[" * 10**5, "9" * 10**4, "NaN", '"x"', '{"a": 1, "a": 2}'])
def test_hostile_json_next_to_files(tmp_path: Path, text: str) -> None:
    """As an index, in the place of a weight map, as a sidecar, and in its fields."""
    (tmp_path / "m.safetensors.index.json").write_text(text)
    refused(tmp_path / "m.safetensors.index.json")
    (tmp_path / "m.safetensors.index.json").write_text(f'{{"weight_map": {text}}}')
    refused(tmp_path / "m.safetensors.index.json")
    os.unlink(tmp_path / "m.safetensors.index.json")
    path = safetensors(tmp_path, b'{"w":%s}' % ENTRY)
    size = path.stat().st_size
    head = '{"format": "torch_tfckpt sidecar", "version": '
    tensor_of_shape = f'{{"t": {{"dtype": "DT_FLOAT", "shape": {text}}}}}'
    for content in (
        text,
        f"{head}{text}}}",
        f'{head}1, "bytes": {text}}}',
        f'{head}1, "bytes": {size}, "types": {text}, "tensors": {{}}}}',
        f'{head}1, "bytes": {size}, "types": {{}}, "tensors": {tensor_of_shape}}}',
    ):
        Path(f"{path}.tfckpt.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"m\.safetensors\.tfckpt\.json"):
            open_source(str(path))


def test_the_content_of_an_archive_is_used_after_it_was_replaced(tmp_path: Path) -> None:
    """The file that was opened is read to its end."""
    path = npz(tmp_path, ("a.npy", GOOD))
    with closing(open_source(str(path))) as source:
        replacement = io.BytesIO()
        np.savez(replacement, a=np.ones(2, "f4"))
        (tmp_path / "new").write_bytes(replacement.getvalue())
        (tmp_path / "new").replace(path)
        assert torch.as_tensor(source.read(["a"])["a"]).tolist() == [0.0, 0.0]
