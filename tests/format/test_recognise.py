"""Kinds of files, told by their bytes: real files of each kind, damaged ones, and bytes made to mislead."""

import itertools
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from other_files import OTHER_FILES
from tensorflow_process import TensorFlowProcess

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.file_kind import FileKind, Reading, not_wanted, promised_kind
from torch_tfckpt.format.recognise import recognise, recognise_bytes

TABLES = (FileKind.INDEX, FileKind.VERSION_1, FileKind.TABLE, FileKind.CUT_TABLE)
HERE = Path(__file__).resolve().parent.parent / "foreign_files" / "golden"
# What TensorFlow wrote, kept for machines without it. tests/support/tensorflow_other_files.py wrote them.
KEPT = {
    "model.keras": FileKind.KERAS,
    "model.h5": FileKind.KERAS_HDF5,
    "model.weights.h5": FileKind.KERAS_HDF5,
    "model.json": FileKind.KERAS_CONFIG,
    "frozen.pb": FileKind.GRAPH,
    "frozen.pbtxt": FileKind.GRAPH_TEXT,
    "model.tflite": FileKind.TFLITE,
    "data.tfrecord": FileKind.TFRECORD,
    "events.out.tfevents": FileKind.EVENTS,
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_each_kind(name: str, tmp_path: Path) -> None:
    """A file of each kind, written by that format's library, is recognised."""
    kind, write = OTHER_FILES[name]
    write(tmp_path / name)
    assert recognise_bytes((tmp_path / name).read_bytes()) is kind


@pytest.mark.parametrize("name", KEPT)
def test_kept_files_of_tensorflow(name: str) -> None:
    assert recognise_bytes((HERE / name).read_bytes()) is KEPT[name]


def test_files_that_tensorflow_writes_now(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The same files, from the TensorFlow and Keras that are installed."""
    expected = tensorflow.call("tensorflow_other_files.write", str(tmp_path))
    found = {name: recognise_bytes((tmp_path / name).read_bytes()).name for name in expected}
    assert found == expected == {name: kind.name for name, kind in KEPT.items()}


def test_golden_checkpoints(golden: Path) -> None:
    """Every file of every golden folder, by its name; data files have no structure, whatever their bytes are."""
    kinds = {
        ".index": FileKind.INDEX, ".meta": FileKind.META_GRAPH, "saved_model.pb": FileKind.SAVED_MODEL,
        "samples.npz": FileKind.NPZ, ".txt": FileKind.TEXT, "expected.json": FileKind.JSON,
    }  # fmt: skip
    seen = set()
    for path in sorted(golden.rglob("*")):
        expected = [kind for ending, kind in kinds.items() if path.name.endswith(ending)]
        if path.is_file() and expected:
            assert recognise_bytes(path.read_bytes()) is expected[0], path
            seen.add(expected[0])
    assert len(seen) == len(kinds)
    assert recognise_bytes((golden / "tensorflow/v1-scalar/v1-scalar").read_bytes()) is FileKind.VERSION_1
    assert recognise_bytes((golden / "digits-cnn/checkpoint").read_bytes()) is FileKind.STATE


def small_tables(golden: Path) -> list[bytes]:
    """Plain and compressed, of both versions."""
    paths = [path for path in golden.rglob("*") if path.is_file() and path.stat().st_size < 3000]
    found = [path.read_bytes() for path in sorted(paths)]
    return [content for content in found if recognise_bytes(content) in TABLES]


def test_a_damaged_checkpoint_is_never_another_kind_of_file(golden: Path) -> None:
    """Cut off anywhere, at either end, or with any byte changed: an index is damaged, and nothing else."""
    tables = small_tables(golden)
    assert len(tables) > 8
    assert {recognise_bytes(content) for content in tables} >= {FileKind.INDEX, FileKind.VERSION_1}
    for content in tables:
        for at in range(len(content)):
            for damaged in (content[:at], content[at:]):
                assert not recognise_bytes(damaged).is_foreign, (at, damaged[:40])
        for at, change in itertools.product([*range(100), *range(len(content) - 60, len(content))], (0xFF, 0x01, 0x80)):
            flipped = bytearray(content)
            flipped[at % len(content)] ^= change
            for damaged in (bytes(flipped), bytes(flipped[:-1])):
                assert not recognise_bytes(damaged).is_foreign, (at, damaged[:40])
        assert not recognise_bytes(bytes(100) + content[100:]).is_foreign
        assert not recognise_bytes(content[:100] + bytes(len(content) - 100)).is_foreign


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_damaged_file_of_another_kind_is_never_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Cut off, or with a byte changed, it is of its kind or of none; never a table."""
    kind, write = OTHER_FILES[name]
    write(tmp_path / name)
    content = (tmp_path / name).read_bytes()[:20_000]
    for at in range(0, len(content), 1 + len(content) // 400):
        flipped = bytearray(content)
        flipped[at] ^= 0xFF
        for damaged in (content[:at], bytes(flipped)):
            assert recognise_bytes(damaged) not in TABLES
    assert kind.is_foreign


def test_what_is_not_known() -> None:
    """Nothing, zeros, numbers, and a cut-off table, which is a checkpoint's by its first entry."""
    assert recognise_bytes(b"") is FileKind.EMPTY
    assert recognise_bytes(bytes(100)) is FileKind.ZEROS
    assert recognise_bytes(bytes(range(256))) is FileKind.UNKNOWN
    assert recognise_bytes(b"\0\0\x06\x08\x01\x1a\x02\x08\x01") is FileKind.CUT_TABLE
    assert recognise_bytes(b"\0\0\x06\x0a\x04\x0a\x02\x0a\x00") is FileKind.CUT_TABLE
    assert not any(
        recognise_bytes(bytes([byte])).is_foreign
        for byte in range(256)
        if not 0x20 <= byte < 0x7F and byte not in b"\t\n\r\v\f"
    )


@given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    """An answer for all of them, and reads inside the file only."""

    def read(offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= len(content)
        return content[offset : offset + size]

    assert isinstance(recognise(read, len(content)), FileKind)


LARGE = 1 << 40
HOSTILE = {
    "a safetensors header of a terabyte": (LARGE - 8).to_bytes(8, "little") + b"{",
    "a safetensors header of a megabyte": (1 << 20).to_bytes(8, "little") + b"{",
    "zip": b"PK\x03\x04" + b"\xff" * 60_000,
    "a node of a gigabyte": b"\x0a\x80\x80\x80\x80\x04\x0a\xff\xff\xff\xff\x03",
    "pickle": b"\x80\x04\x8e" + b"\xff" * 8,
    "gzip": b"\x1f\x8b\x08\x00" + b"\xff" * 60_000,
    "record": (LARGE).to_bytes(8, "little")
    + crc32c.mask(crc32c.value((LARGE).to_bytes(8, "little"))).to_bytes(4, "little"),
    "text": b"[" * 65_536,
    "zeros": b"\0",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("rest", [b"\0", b"a", b"\xff", b"PK\x05\x06" + b"\xff" * 18])
def test_reads_are_bounded(name: str, rest: bytes) -> None:
    """A file of a terabyte: at most 3 MiB of it are read, in at most 60 steps."""
    head = HOSTILE[name]
    steps: list[int] = []

    def read(offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= LARGE
        steps.append(size)
        filled = (rest * (1 + size // len(rest)))[:size] if offset + size > len(head) else b""
        return (head[offset : offset + size] + filled)[:size]

    assert isinstance(recognise(read, LARGE), FileKind)
    assert sum(steps) <= 3 << 20
    assert len(steps) <= 60


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    """Instructions that would run a program are listed, no more."""
    target = tmp_path / "made"
    program = b"\x80\x02cos\nmkdir\nX" + len(str(target)).to_bytes(4, "little") + str(target).encode() + b"\x85R."
    assert recognise_bytes(program) is FileKind.PICKLE
    assert not target.exists()


def test_messages_are_whole_sentences() -> None:
    """`what` can follow "is"; the hint begins like a sentence, and the caller adds the full stop."""
    for kind in FileKind:
        assert kind.what[0].islower() and not kind.what.endswith(".")
        assert kind.hint[0] in "`" or kind.hint[0].isupper() or kind.hint.split()[0].count(".") >= 1
        assert not kind.hint.endswith(".")
        assert ("Not supported" in kind.hint) <= (kind.reading is Reading.NOTHING)
    assert not_wanted("d/m.h5", FileKind.HDF5) == (
        "d/m.h5 is an HDF5 file, such as Keras's .h5 files, not a TensorFlow checkpoint. `tfckpt ls` lists it if it is "
        "one of Keras"
    )


def test_kinds_that_endings_promise() -> None:
    for name, kind in {
        "m.safetensors": FileKind.SAFETENSORS, "d.pt/m": None, "d/M.PT": FileKind.TORCH, ".pt": None, "d/.npz": None,
        "m.ckpt": None, "m": None, "model.pt-1000": None, "a.b.h5": FileKind.HDF5, "d\\m.keras": FileKind.KERAS,
    }.items():  # fmt: skip
        assert promised_kind(name) is kind, name


def test_large_headers_and_archives(tmp_path: Path) -> None:
    """A safetensors header of more than 1 MiB, an archive with 64-bit records, HDF5 after a block of its user."""
    header = ",".join(
        f'"t{number:060d}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(12_000)
    )
    encoded = f"{{{header}}}".encode()
    assert len(encoded) > 1 << 20
    assert recognise_bytes(len(encoded).to_bytes(8, "little") + encoded) is FileKind.SAFETENSORS
    with zipfile.ZipFile(tmp_path / "large.pt", "w") as archive:
        for number in range(66_000):
            archive.writestr("a/data.pkl" if number == 5_000 else f"a/{number}", b"")
    content = (tmp_path / "large.pt").read_bytes()
    assert b"PK\x06\x06" in content[-200:]
    assert recognise_bytes(content) is FileKind.TORCH
    assert recognise_bytes(bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(100)) is FileKind.HDF5


def test_errors_of_reading() -> None:
    """Those of the system are passed on; a file that became shorter has no known kind."""

    def refuse(offset: int, size: int) -> bytes:
        raise PermissionError("no")

    def shorter(offset: int, size: int) -> bytes:
        raise DataLossError("ends before")

    with pytest.raises(PermissionError):
        recognise(refuse, 100)
    assert recognise(shorter, 100) is FileKind.UNKNOWN
