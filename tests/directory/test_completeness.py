"""Which checkpoints count as complete, and in which order those of a directory are tried."""

import os
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.directory.completeness import candidates, check_complete
from torch_tfckpt.directory.state_file import update_checkpoint_state
from torch_tfckpt.format.table import Table
from torch_tfckpt.format.tensor_bundle import BundleHeader, encode_index
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.v1.writer import SlicesWriter


def save(prefix: Path) -> Path:
    tfckpt.save_file({"x": torch.arange(100.0), "y": torch.ones(3)}, prefix)
    return prefix


def save_v1(path: Path) -> Path:
    with SlicesWriter(LOCAL, str(path)) as writer:
        writer.add("x", torch.arange(100.0))
    return path


def cut(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def error_of(path: Path | str) -> str:
    with pytest.raises(tfckpt.CheckpointError) as error:
        check_complete(LOCAL, str(path))
    return str(error.value)


class TestVersion2:
    def test_whole(self, tmp_path: Path) -> None:
        """A complete checkpoint passes; damage inside the data is not checked, as documented."""
        data = Path(f"{save(tmp_path / 'm[1]')}.data-00000-of-00001")
        check_complete(LOCAL, str(tmp_path / "m[1]"))
        data.write_bytes(bytes(data.stat().st_size))
        check_complete(LOCAL, str(tmp_path / "m[1]"))

    def test_short_data(self, tmp_path: Path) -> None:
        """Data one byte short: the error has the tensor, the file and both sizes."""
        data = Path(f"{save(tmp_path / 'm')}.data-00000-of-00001")
        cut(data, 1)
        assert f'{data}: tensor "y" ends at byte 412, but the file ends at 411' in error_of(tmp_path / "m")

    @pytest.mark.parametrize("by", [1, 40, 100])
    def test_short_index(self, tmp_path: Path, by: int) -> None:
        """A truncated index does not parse."""
        cut(Path(f"{save(tmp_path / 'm')}.index"), by)
        assert "m.index" in error_of(tmp_path / "m")

    def test_missing_files(self, tmp_path: Path) -> None:
        """A missing data file (even one without bytes), a missing index, and no file at all."""
        tfckpt.save_file({"x": torch.empty(0)}, tmp_path / "a")
        tfckpt.save_file({"y": torch.ones(2)}, tmp_path / "b")
        merge_bundles(LOCAL, [str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "m"))
        check_complete(LOCAL, str(tmp_path / "m"))
        (tmp_path / "m.data-00000-of-00002").unlink()
        assert "m.data-00000-of-00002: No such file" in error_of(tmp_path / "m")
        (tmp_path / "m.index").unlink()
        assert "cannot be read without its index" in error_of(tmp_path / "m")
        assert "Failed to find any matching files" in error_of(tmp_path / "n")

    def test_a_missing_file_without_tensors(self, tmp_path: Path) -> None:
        """It is not required: a checkpoint that kept its claimed names has fewer files than its header declares."""
        index = Path(f"{save(tmp_path / 'm')}.index")
        stored = index.read_bytes()
        table = Table(lambda offset, size: stored[offset : offset + size], len(stored))
        index.write_bytes(encode_index(BundleHeader(2), dict(table.items(start=b"\0"))))
        os.rename(tmp_path / "m.data-00000-of-00001", tmp_path / "m.data-00000-of-00002")
        check_complete(LOCAL, str(tmp_path / "m"))
        os.rename(tmp_path / "m.data-00000-of-00002", tmp_path / "m.data-00001-of-00002")
        assert "m.data-00000-of-00002: No such file" in error_of(tmp_path / "m")

    def test_zero_bytes(self, tmp_path: Path) -> None:
        """Zeroed files, as after a power cut without fsync, are incomplete."""
        save(tmp_path / "m")
        os.truncate(tmp_path / "m.index", 0)
        assert "too short to be an sstable" in error_of(tmp_path / "m")

    def test_a_directory(self, tmp_path: Path) -> None:
        """A directory of that name is not a checkpoint, even if it contains one."""
        (tmp_path / "m").mkdir()
        save(tmp_path / "m" / "n")
        assert "is a directory" in error_of(tmp_path / "m")


class TestVersion1:
    def test_shards(self, tmp_path: Path) -> None:
        """All shards in the count of the name must exist and open."""
        pattern = tmp_path / "m-?????-of-00002"
        save_v1(tmp_path / "m-00000-of-00002")
        assert "1 of 2 shards exist" in error_of(pattern)
        other = save_v1(tmp_path / "m-00001-of-00002")
        check_complete(LOCAL, str(pattern))
        cut(other, 1)
        assert "Unable to open table file" in error_of(pattern)

    def test_one_file(self, tmp_path: Path) -> None:
        """The end of the file must be valid."""
        path = save_v1(tmp_path / "m")
        check_complete(LOCAL, str(path))
        cut(path, 8)
        assert "bad magic number" in error_of(path)


class TestCandidates:
    def test_order(self, tmp_path: Path) -> None:
        """First the state file's newest, then its list in reverse, then the others by age, each once."""
        for number, name in enumerate(["a-9", "b", "a-10", "v1", "x-1", "x-2"]):
            (save_v1 if name == "v1" else save)(tmp_path / name)
            file = tmp_path / (name if name == "v1" else f"{name}.index")
            os.utime(file, (1000, 1000 + (0 if name.startswith("a") else number)))
        (tmp_path / "other.txt").write_text("no checkpoint")
        update_checkpoint_state(tmp_path, tmp_path / "x-2", ["b", tmp_path / "x-1", tmp_path / "x-2"])
        found = [os.path.basename(path) for path in candidates(LOCAL, str(tmp_path))]
        # The files have the same time, so the number decides: a-10 before a-9.
        assert found == ["x-2", "x-1", "b", "v1", "a-10", "a-9"]

    @pytest.mark.parametrize("content", [b"", b"nonsense", b'model_checkpoint_path: "\\000"', None])
    def test_without_a_valid_state_file(self, tmp_path: Path, content: bytes | None) -> None:
        """Checkpoints are found without a state file and with a damaged one."""
        save(tmp_path / "m")
        save_v1(tmp_path / "n-00000-of-00001")
        if content is not None:
            (tmp_path / "checkpoint").write_bytes(content)
        assert set(candidates(LOCAL, str(tmp_path))) == {str(tmp_path / "m"), str(tmp_path / "n-?????-of-00001")}
