"""Files truncated at every length, files with trailing bytes, files of zeros, missing files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from claims import Survey, assert_helps, assert_never_wrong, assert_right, survey
from samples import SAMPLES, Sample

import torch_tfckpt as tfckpt


def is_table(sample: Sample, file: Path) -> bool:
    """Return whether `file` is an index or a version 1 file rather than plain data."""
    return ".data-" not in file.name


def truncated(sample: Sample, file: Path) -> Iterator[tuple[int, Survey]]:
    """Yield (length, result of reading) for every length shorter than the file's, longest first."""
    original = file.read_bytes()
    for length in range(len(original) - 1, -1, -1):
        os.truncate(file, length)
        yield length, survey(sample.path, sample.values)
    file.write_bytes(original)


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_truncated_table_cannot_be_opened(kind: str, tmp_path: Path) -> None:
    """Whatever is missing at the end of an index or version 1 file, opening it fails."""
    sample = SAMPLES[kind](tmp_path)
    for file in filter(lambda file: is_table(sample, file), sample.files):
        for length, found in truncated(sample, file):
            assert found.refused is not None, f"{file.name} truncated to {length} bytes was opened"


@pytest.mark.parametrize("kind", SAMPLES)
def test_truncated_data_affects_only_missing_tensors(kind: str, tmp_path: Path) -> None:
    """Tensors before the end are read; the others raise and are reported; none has a wrong value."""
    sample = SAMPLES[kind](tmp_path)
    for file in sample.files:
        if is_table(sample, file):
            continue
        for length, found in truncated(sample, file):
            assert found.refused is None
            assert_never_wrong(found, sample.values)
            assert found.verification is not None
            assert found.failed, f"{file.name} truncated to {length} bytes: not detected"
            assert set(found.failed) == set(found.verification.damaged)
            assert set(found.verification.good) == set(found.read)


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_error_about_a_truncated_file_helps(kind: str, tmp_path: Path) -> None:
    """Place, finding and hint, at every length, including an empty file."""
    sample = SAMPLES[kind](tmp_path)
    for file in sample.files:
        for _, found in truncated(sample, file):
            for error in (found.refused, *found.failed.values()):
                if error is not None:
                    assert_helps(error, file.name, sample.path.name)


@pytest.mark.parametrize("garbage", [b"\0", b"x", bytes(48), bytes(4096), b"\xff" * 70_000], ids=len)
@pytest.mark.parametrize("kind", SAMPLES)
def test_trailing_garbage_is_refused_or_harmless(kind: str, garbage: bytes, tmp_path: Path) -> None:
    """A table is found from its end, so it is refused; data is found by offsets, so every value is right."""
    sample = SAMPLES[kind](tmp_path)
    for file in sample.files:
        original = file.read_bytes()
        file.write_bytes(original + garbage)
        found = survey(sample.path, sample.values)
        assert_never_wrong(found, sample.values)
        if is_table(sample, file):
            assert found.refused is not None
        else:
            assert_right(found.read, sample.values)
        file.write_bytes(original)


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_table_appended_to_itself_is_reported(kind: str, tmp_path: Path) -> None:
    """The second copy's footer refers to the first copy: values are right, and check() reports unused bytes."""
    sample = SAMPLES[kind](tmp_path)
    for file in filter(lambda file: is_table(sample, file), sample.files):
        file.write_bytes(file.read_bytes() * 2)
        found = survey(sample.path, sample.values)
        assert_right(found.read, sample.values)
        assert found.verification is not None
        assert "belong to no block" in str(found.verification.damage[0])


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_file_of_zeros_is_refused_or_fails_its_tensors(kind: str, tmp_path: Path) -> None:
    """As left by a copy that reserved the space and then stopped: right size, no contents."""
    sample = SAMPLES[kind](tmp_path)
    for file in sample.files:
        original = file.read_bytes()
        file.write_bytes(bytes(len(original)))
        found = survey(sample.path, sample.values)
        assert found.detected
        assert_never_wrong(found, sample.values)
        for error in (found.refused, *found.failed.values()):
            if error is not None:
                assert_helps(error, file.name, sample.path.name)
        file.write_bytes(original)


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_missing_file_is_named(kind: str, tmp_path: Path) -> None:
    """Without its index nothing opens; without a data file the tensors of the other shards can still be read."""
    sample = SAMPLES[kind](tmp_path)
    for file in sample.files:
        original = file.read_bytes()
        file.unlink()
        found = survey(sample.path, sample.values)
        assert_never_wrong(found, sample.values)
        errors = [error for error in (found.refused, *found.failed.values()) if error is not None]
        assert errors
        for error in errors:
            assert isinstance(error, tfckpt.NotFoundError)
            assert_helps(error, file.name)
        if not is_table(sample, file):
            assert found.verification is not None
            assert set(found.verification.damaged) == set(found.failed)
        file.write_bytes(original)


def test_a_file_truncated_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    """A file overwritten in place, as copying programs do but no writer, shrinks under an open reader."""
    sample = SAMPLES["v2_plain"](tmp_path)
    for way in ("get_tensor", "map_tensor", "get_stored_bytes"):
        original = sample.files[1].read_bytes()
        with tfckpt.load_checkpoint(sample.path) as reader:
            os.truncate(sample.files[1], 3)
            for name in sample.values:
                if name != "empty":
                    with pytest.raises(tfckpt.DataLossError) as raised:
                        getattr(reader, way)(name)
                    assert_helps(raised.value, sample.files[1].name)
        sample.files[1].write_bytes(original)
