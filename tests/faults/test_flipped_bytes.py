"""Every byte of small checkpoints, flipped one at a time.

Each flip must be refused, fail the tensor it hits, or be reported by `check()`. The only exceptions are the zeros
between aligned tensors, which no tensor uses; the tests list all of them.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from claims import Survey, assert_helps, assert_never_wrong, assert_right, same, survey
from samples import SAMPLES, Sample, v2_aligned

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.format.table import BLOCK_TRAILER, Footer
from torch_tfckpt.format.tensor_bundle import BundleEntry
from torch_tfckpt.storage.local import LOCAL

Range = tuple[int, int]
FLIPS = (0xFF, *(1 << bit for bit in range(8)))


def flipped(sample: Sample, file: Path) -> Iterator[tuple[int, Survey]]:
    """Yield (offset, result of reading) for every flip of every byte of `file`."""
    original = file.read_bytes()
    descriptor = os.open(file, os.O_WRONLY)
    try:
        for offset, byte in enumerate(original):
            for mask in FLIPS:
                os.pwrite(descriptor, bytes((byte ^ mask,)), offset)
                yield offset, survey(sample.path, sample.values)
            os.pwrite(descriptor, bytes((byte,)), offset)
    finally:
        os.close(descriptor)
    assert file.read_bytes() == original


def ranges(offsets: Iterable[int]) -> list[Range]:
    """Join consecutive offsets into ranges."""
    joined: list[Range] = []
    for offset in sorted(set(offsets)):
        if joined and joined[-1][1] == offset:
            joined[-1] = joined[-1][0], offset + 1
        else:
            joined.append((offset, offset + 1))
    return joined


def harmless(sample: Sample, file: Path) -> tuple[list[Range], list[Range]]:
    """Return the bytes of `file` that do not affect reading, and those of them that no check reports either."""
    unread: set[int] = set()
    unseen: set[int] = set()
    minded: set[int] = set()
    for offset, found in flipped(sample, file):
        assert_never_wrong(found, sample.values)
        if found.refused is None and not found.failed:
            assert_right(found.read, sample.values)
            unread.add(offset)
        else:
            minded.add(offset)
        if not found.detected:
            unseen.add(offset)
    return ranges(unread - minded), ranges(unseen)


def table_ranges_without_values(file: Path) -> list[Range]:
    """Return the metaindex block, which is always empty, and the zeros in the footer."""
    contents = file.read_bytes()
    start = len(contents) - Footer.SIZE
    footer = Footer.decode(contents[start:])
    handles = footer.metaindex.encode() + footer.index.encode()
    assert footer.metaindex.size == 8
    assert not any(contents[start + len(handles) : len(contents) - 8])
    return [
        (footer.metaindex.offset, footer.metaindex.offset + footer.metaindex.size + BLOCK_TRAILER.size),
        (start + len(handles), len(contents) - 8),
    ]


def gaps(sample: Sample) -> list[Range]:
    """Return the bytes of the data file that no entry uses."""
    files = BundleFiles(LOCAL, str(sample.path))
    try:
        claimed: set[int] = set()
        for _, value in files.table.items(start=b"\0"):
            entry = BundleEntry.decode(value)
            claimed |= set(range(entry.offset, entry.end))
    finally:
        files.close()
    return ranges(set(range(sample.files[1].stat().st_size)) - claimed)


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_flip_is_detected(kind: str, tmp_path: Path) -> None:
    """Each byte: refused, failed, or reported by check(); no value ever changes; check() agrees with reading.

    Only the metaindex block, which is always empty, and the padding of the footer do not affect reading; check()
    reports those too.
    """
    sample = SAMPLES[kind](tmp_path)
    for file in sample.files:
        unread, unseen = harmless(sample, file)
        print(f"{kind} {file.name}: {file.stat().st_size} bytes, unused by reads {unread}, undetected {unseen}")
        assert unseen == []
        is_table = file.suffix == ".index" or file == sample.path
        assert unread == (table_ranges_without_values(file) if is_table else [])


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", SAMPLES)
def test_every_error_after_a_flip_helps(kind: str, tmp_path: Path) -> None:
    """Every error that a flip causes names the file, the problem and the fix."""
    sample = SAMPLES[kind](tmp_path)
    for file in sample.files:
        for _, found in flipped(sample, file):
            for error in (found.refused, *found.failed.values()):
                if error is not None:
                    assert_helps(error, file.name, sample.path.name)


def test_only_the_gaps_of_an_aligned_checkpoint_are_harmless(tmp_path: Path) -> None:
    """In an aligned data file, flips of the zeros between tensors change no value, and all others are detected."""
    sample = v2_aligned(tmp_path)
    data = sample.files[1]
    unread, unseen = harmless(sample, data)
    assert unread == unseen == gaps(sample)
    assert unseen, "the sample has no gaps, so it tests nothing"
    assert not any(any(data.read_bytes()[begin:end]) for begin, end in unseen)


def test_a_flip_names_the_tensor_and_the_bytes(tmp_path: Path) -> None:
    """Each damage has the tensor, the file and a range that contains the flipped byte; the other tensors stay good."""
    sample = SAMPLES["v2_plain"](tmp_path)
    data = sample.files[1]
    hit: set[str] = set()
    for offset, found in flipped(sample, data):
        assert found.verification is not None
        [name] = found.verification.damaged
        hit.add(name)
        for damage in found.verification.damage:
            assert damage.file == str(data) and damage.start <= offset < damage.end
        assert set(found.failed) == {name}
        assert set(found.verification.good) == set(sample.values) - {name}
    assert hit == set(sample.values) - {"empty"}


def test_the_samples_are_valid(tmp_path: Path) -> None:
    """Unflipped, every sample reads and checks without an error, so the tests above start from valid files."""
    for make in (*SAMPLES.values(), v2_aligned):
        folder = tmp_path / make.__name__
        folder.mkdir()
        sample = make(folder)
        found = survey(sample.path, sample.values)
        assert not found.detected
        assert_right(found.read, sample.values)
        assert_right(tfckpt.load_file(sample.path), sample.values)


INDEXES = ((slice(0, 1),), (slice(-1, None),), (slice(None), slice(0, 1)), (-1, -1))


@pytest.mark.parametrize("kind", ["v2_plain", "v2_sharded"])
def test_a_flip_outside_the_slice_that_is_read_is_detected_too(kind: str, tmp_path: Path) -> None:
    """The checksum covers the whole stored piece: reading one row of it detects damage anywhere."""
    sample = SAMPLES[kind](tmp_path)
    matrix = sample.values["matrix"]
    assert isinstance(matrix, torch.Tensor)
    noticed = 0
    for file in sample.files[1:]:
        original = file.read_bytes()
        for offset, byte in enumerate(original):
            damaged = bytearray(original)
            damaged[offset] = byte ^ 0xFF
            file.write_bytes(damaged)
            for index in INDEXES:
                with tfckpt.load_checkpoint(sample.path) as reader:
                    try:
                        value = reader.get_slice("matrix")[index]
                    except tfckpt.DataLossError:
                        noticed += 1
                        with pytest.raises(tfckpt.DataLossError):
                            reader.get_slice("matrix")[index]  # also the second time
                    else:
                        assert same(matrix[index].clone(), value)
        file.write_bytes(original)
    assert noticed >= matrix.numel() * 4  # every byte of it, for at least one index


def test_a_flip_in_a_variant_is_detected(golden: Path, tmp_path: Path) -> None:
    """Values that torch cannot represent are copied as bytes, and those are verified as well."""
    for name in ("variant.index", "variant.data-00000-of-00001"):
        shutil.copy(golden / "tensorflow" / "variant" / name, tmp_path)
    path = tmp_path / "variant"
    with tfckpt.load_checkpoint(path) as reader:
        names = [name for name in reader.keys() if reader.dtype(name) == tfckpt.DataType.DT_VARIANT]
        stored = {name: reader.get_stored_bytes(name) for name in reader.keys()}
    assert names
    data = tmp_path / "variant.data-00000-of-00001"
    original = data.read_bytes()
    for offset, byte in enumerate(original):
        for mask in FLIPS:
            damaged = bytearray(original)
            damaged[offset] = byte ^ mask
            data.write_bytes(damaged)
            with tfckpt.load_checkpoint(path) as reader:
                assert reader.check().damage
                good = reader.check().good
                assert len(good) < len(stored)
                for name, value in stored.items():
                    if name in good:
                        assert reader.get_stored_bytes(name) == value
                    else:
                        with pytest.raises(tfckpt.DataLossError):
                            reader.get_stored_bytes(name)
