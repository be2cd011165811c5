"""Accepted spellings of a checkpoint's path, and the errors when none matches."""

import os
from pathlib import Path

import pytest
import torch
from other_files import OTHER_FILES

import torch_tfckpt as tfckpt
from torch_tfckpt.directory.locate import find_checkpoint
from torch_tfckpt.format.file_kind import FileKind
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.v1.writer import SlicesWriter


def save(prefix: Path, value: float = 1.0) -> Path:
    tfckpt.save_file({"x": torch.tensor(value)}, prefix)
    return prefix


def save_v1(path: Path, name: str = "x", value: float = 1.0) -> Path:
    with SlicesWriter(LOCAL, str(path)) as writer:
        writer.add(name, torch.tensor(value))
    return path


def value_at(path: Path | str | bytes) -> float:
    with tfckpt.load_checkpoint(path) as reader:
        return float(reader.get_tensor("x"))


class TestVersion2:
    @pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001", ".meta"])
    def test_prefix_and_files(self, tmp_path: Path, suffix: str) -> None:
        prefix = save(tmp_path / "model.ckpt-1000")
        (tmp_path / "model.ckpt-1000.meta").write_bytes(b"")
        assert value_at(f"{prefix}{suffix}") == 1.0
        assert value_at(f"file://{prefix}{suffix}") == 1.0

    @pytest.mark.parametrize("name", ["run[200]/m", "a*b", "what?", "cp-{epoch:04d}.ckpt", "größe", "x.index"])
    def test_names_that_look_like_patterns(self, tmp_path: Path, name: str) -> None:
        """An existing prefix is never treated as a pattern, although TensorFlow cannot find it."""
        save(tmp_path / "run2" / "m" if "/" in name else tmp_path / "other", 9.0)
        prefix = save(tmp_path / name)
        assert value_at(prefix) == 1.0
        assert value_at(f"{prefix}.index") == 1.0

    def test_non_utf8_names(self, tmp_path: Path) -> None:
        prefix = os.fsencode(tmp_path) + b"/mod\xffel"
        tfckpt.save_file({"x": torch.tensor(2.0)}, prefix)
        assert os.path.exists(prefix + b".index")
        assert value_at(prefix) == 2.0
        with tfckpt.load_checkpoint(prefix) as reader:
            reader.path.encode("utf-8")

    def test_a_pattern_of_one(self, tmp_path: Path) -> None:
        save(tmp_path / "model-7")
        assert value_at(tmp_path / "model-*") == 1.0

    def test_path_kinds(self, tmp_path: Path) -> None:
        prefix = save(tmp_path / "m")
        assert value_at(prefix) == value_at(str(prefix)) == value_at(os.fsencode(prefix)) == 1.0
        for number in (None, 3):
            with pytest.raises(tfckpt.InvalidArgumentError, match="expected a path"):
                tfckpt.load_checkpoint(number)  # type: ignore[arg-type]
        for text in ("", "a\0b"):
            with pytest.raises(tfckpt.InvalidArgumentError, match="is not a path"):
                tfckpt.load_checkpoint(text)


class TestVersion1:
    @pytest.mark.parametrize("name", ["model.ckpt", "checkpoint-7", "checkpoint", "a[1]"])
    def test_file(self, tmp_path: Path, name: str) -> None:
        """A version 1 file may even have the name of the state file."""
        assert value_at(save_v1(tmp_path / name)) == 1.0

    @pytest.mark.parametrize(
        "spelling", ["export-?????-of-00002", "export-?????-of-?????", "export", "export.meta", "export-*"]
    )
    def test_shards(self, tmp_path: Path, spelling: str) -> None:
        save_v1(tmp_path / "export-00000-of-00002")
        save_v1(tmp_path / "export-00001-of-00002", "y", 2.0)
        (tmp_path / "export.meta").write_bytes(b"")
        with tfckpt.load_checkpoint(tmp_path / spelling) as reader:
            assert reader.version == 1
            assert reader.keys() == ["x", "y"]

    def test_one_shard(self, tmp_path: Path) -> None:
        """The path of a single shard reads only that shard."""
        save_v1(tmp_path / "export-00000-of-00002")
        save_v1(tmp_path / "export-00001-of-00002", "y", 2.0)
        with tfckpt.load_checkpoint(tmp_path / "export-00001-of-00002") as reader:
            assert reader.keys() == ["y"]

    def test_two_sets_of_shards(self, tmp_path: Path) -> None:
        for name in ("export-00000-of-00001", "export-00000-of-00002"):
            save_v1(tmp_path / name)
        with pytest.raises(tfckpt.InvalidArgumentError, match=r"there are sets of 00001 and of 00002 shards"):
            tfckpt.load_checkpoint(tmp_path / "export")


class TestDirectories:
    def state(self, directory: Path, path: str) -> None:
        (directory / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n')

    @pytest.mark.parametrize("stored", ["m-2", "./m-2", "{dir}/m-2", "/no/such/place/m-2"])
    def test_the_state_file_names_the_newest(self, tmp_path: Path, stored: str) -> None:
        """Relative, absolute, and absolute from before the directory was moved."""
        save(tmp_path / "m-1", 1.0)
        save(tmp_path / "m-2", 2.0)
        self.state(tmp_path, stored.format(dir=tmp_path))
        assert value_at(tmp_path) == value_at(tmp_path / "checkpoint") == 2.0

    def test_the_state_file_names_a_missing_checkpoint(self, tmp_path: Path) -> None:
        """No other checkpoint is used instead; the error lists the existing ones."""
        save(tmp_path / "m-1")
        self.state(tmp_path, "m-2")
        with pytest.raises(tfckpt.NotFoundError) as error:
            tfckpt.load_checkpoint(tmp_path)
        assert 'names "m-2", which does not exist. There are m-1.' in str(error.value)

    @pytest.mark.parametrize(
        "content", [b"", b"\xff\xfe", b"nonsense", b'unknown_field: "x"', b"model_checkpoint_path: 3"]
    )
    def test_a_bad_state_file(self, tmp_path: Path, content: bytes) -> None:
        save(tmp_path / "m-1")
        (tmp_path / "checkpoint").write_bytes(content)
        with pytest.raises(tfckpt.DataLossError, match="checkpoint: "):
            tfckpt.load_checkpoint(tmp_path)

    def test_a_state_file_that_names_its_directory(self, tmp_path: Path) -> None:
        for stored in (".", "checkpoint", str(tmp_path)):
            self.state(tmp_path, stored)
            with pytest.raises(tfckpt.NotFoundError, match="which does not exist"):
                tfckpt.load_checkpoint(tmp_path)

    def test_saved_model(self, tmp_path: Path) -> None:
        (tmp_path / "variables").mkdir()
        save(tmp_path / "variables" / "variables")
        (tmp_path / "saved_model.pb").write_bytes(b"")
        for path in (tmp_path, tmp_path / "saved_model.pb", tmp_path / "variables"):
            assert value_at(path) == 1.0

    def test_saved_model_of_version_1(self, golden: Path) -> None:
        with tfckpt.load_checkpoint(golden / "savedmodel-of-tensorflow-0") as reader:
            assert reader.version == 1
            assert len(reader.keys()) == 2

    def test_one_checkpoint_and_no_state_file(self, tmp_path: Path) -> None:
        save(tmp_path / "m-1")
        assert value_at(tmp_path) == 1.0

    def test_one_sharded_checkpoint_of_version_1(self, tmp_path: Path) -> None:
        save_v1(tmp_path / "export-00000-of-00001")
        assert value_at(tmp_path) == 1.0

    def test_several_and_no_state_file(self, tmp_path: Path) -> None:
        save(tmp_path / "m-1")
        save(tmp_path / "m-2")
        with pytest.raises(tfckpt.InvalidArgumentError, match=r"has 2 checkpoints, .* There are m-1, m-2\. Pass one"):
            tfckpt.load_checkpoint(tmp_path)

    def test_an_empty_directory(self, tmp_path: Path) -> None:
        with pytest.raises(tfckpt.NotFoundError, match="Couldn't find 'checkpoint' file or checkpoints in given dir"):
            tfckpt.load_checkpoint(tmp_path)


class TestMissing:
    def test_nonexistent_path(self, tmp_path: Path) -> None:
        """CASES 76: TensorFlow's words, the reason, and the missing directory."""
        with pytest.raises(tfckpt.NotFoundError, match="Unsuccessful TensorSliceReader") as error:
            tfckpt.load_checkpoint(tmp_path / "no" / "such" / "m")
        assert "there is no directory" in str(error.value)

    def test_a_directory_without_checkpoints(self, tmp_path: Path) -> None:
        """The path may mean a file or directory: similar names are listed, and nothing is said about the directory."""
        (tmp_path / "training").mkdir()
        with pytest.raises(tfckpt.NotFoundError) as error:
            tfckpt.load_checkpoint(tmp_path / "trainng")
        assert str(error.value).endswith(
            '/trainng: no such file or directory, and there is no trainng.index. Closest: "training".'
        )
        with pytest.raises(tfckpt.NotFoundError, match=r"/x\.index: no such file or directory\.$"):
            tfckpt.load_checkpoint(tmp_path / "x.index")

    def test_near_misses(self, tmp_path: Path) -> None:
        for step in (999, 2000):
            save(tmp_path / f"model.ckpt-{step}")
        with pytest.raises(tfckpt.NotFoundError) as error:
            tfckpt.load_checkpoint(tmp_path / "model.ckpt-1000")
        assert "there is no model.ckpt-1000.index. There are model.ckpt-2000, model.ckpt-999." in str(error.value)

    def test_data_without_index(self, tmp_path: Path) -> None:
        prefix = save(tmp_path / "m")
        Path(f"{prefix}.index").unlink()
        with pytest.raises(
            tfckpt.NotFoundError, match=r"m\.data-00000-of-00001. exists, but cannot be read without its index"
        ):
            tfckpt.load_checkpoint(prefix)

    def test_meta_alone(self, tmp_path: Path) -> None:
        (tmp_path / "m.meta").write_bytes(b"x")
        with pytest.raises(tfckpt.NotFoundError, match=r"A \.meta file has only the graph"):
            tfckpt.load_checkpoint(tmp_path / "m.meta")

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (b"", "too short to be an sstable"),
            (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, such as Keras's"),
            (b"PK\x03\x04" + bytes(100), "a zip archive"),
            (b"\x80\x02}q\x00" + bytes(100), "a pickle file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
            (bytes(100), "bad magic number"),
        ],
        ids=["empty", "hdf5", "zip", "pickle", "git-lfs", "zeros"],
    )
    @pytest.mark.parametrize("name", ["model.h5", "model.index"])
    def test_other_files(self, tmp_path: Path, name: str, content: bytes, text: str) -> None:
        """The error names other common kinds of files."""
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(tfckpt.DataLossError) as error:
            tfckpt.load_checkpoint(path)
        assert str(path) in str(error.value)
        # As an index, a file of another format is only reported as not a table.
        assert text in str(error.value) or (name == "model.index" and "bad magic number" in str(error.value))


def test_the_result_of_find_checkpoint(tmp_path: Path) -> None:
    """The result has the version, the prefix and the files of version 1."""
    save(tmp_path / "m")
    save_v1(tmp_path / "n-00000-of-00001")
    assert find_checkpoint(LOCAL, str(tmp_path / "m.index")).prefix == str(tmp_path / "m")
    found = find_checkpoint(LOCAL, str(tmp_path / "n"))
    assert (found.version, found.paths) == (1, (str(tmp_path / "n-00000-of-00001"),))


class TestFilesOfOtherKinds:
    """Errors of load_file and similar functions for files that are not checkpoints."""

    @pytest.mark.parametrize("name", sorted(set(OTHER_FILES) - {"checkpoint", "saved_model.pbtxt"}))
    def test_the_kind_is_named(self, tmp_path: Path, name: str) -> None:
        """The error has the kind of the file and the function that reads it, and does not call it damaged."""
        kind, write = OTHER_FILES[name]
        path = tmp_path / name
        write(path)
        for call in (tfckpt.load_file, tfckpt.load_checkpoint, tfckpt.CheckpointReader, tfckpt.list_variables):
            with pytest.raises(tfckpt.DataLossError) as error:
                call(path)
            assert "damaged" not in str(error.value) and str(path) in str(error.value)
            if kind is FileKind.LFS_POINTER:
                assert "Run `git lfs pull`" in str(error.value)
            else:
                assert str(error.value) == f"{path} is {kind.what}, not a TensorFlow checkpoint. {kind.hint}"

    def test_the_error_for_safetensors(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        OTHER_FILES["model.safetensors"][1](path)
        with pytest.raises(tfckpt.DataLossError) as error:
            tfckpt.Saver(torch.nn.Linear(2, 2)).restore(path)
        assert str(error.value).endswith(
            "model.safetensors is a safetensors file, not a TensorFlow checkpoint. safetensors.torch.load_file reads "
            "it; `tfckpt ls` lists it, and `tfckpt convert` converts it to a checkpoint"
        )

    @pytest.mark.parametrize("name", ["login.ckpt", "model.safetensors", "notes.txt"])
    def test_instead_of_an_index(self, tmp_path: Path, name: str) -> None:
        """The error contains TensorFlow's words, which programs look for."""
        kind, write = OTHER_FILES[name]
        save(tmp_path / "m")
        write(tmp_path / "m.index")
        with pytest.raises(tfckpt.DataLossError) as error:
            tfckpt.load_checkpoint(tmp_path / "m")
        assert f"m.index is {kind.what}, not the index of a TensorFlow checkpoint" in str(error.value)
        assert "not an sstable (bad magic number)" in str(error.value)

    def test_instead_of_a_state_file(self, tmp_path: Path) -> None:
        """A file written by torch.save may be called `checkpoint` too."""
        OTHER_FILES["model.pt"][1](tmp_path / "checkpoint")
        for path in (tmp_path, tmp_path / "checkpoint"):
            with pytest.raises(tfckpt.DataLossError, match=r"checkpoint is a PyTorch file .* not a `checkpoint` state"):
                tfckpt.load_checkpoint(path)

    def test_a_directory_of_other_files(self, tmp_path: Path) -> None:
        for name in ("model.safetensors", "config.json"):
            OTHER_FILES[name][1](tmp_path / name)
        with pytest.raises(tfckpt.NotFoundError) as error:
            tfckpt.load_checkpoint(tmp_path)
        assert "There are files of other formats: model.safetensors. `tfckpt show` shows how" in str(error.value)

    @pytest.mark.parametrize("version", [1, 2])
    def test_damage_is_reported_as_damage(self, tmp_path: Path, version: int) -> None:
        """Truncated anywhere, or zeroed at either end, a checkpoint is reported as damaged."""
        path = save_v1(tmp_path / "v1") if version == 1 else Path(f"{save(tmp_path / 'm')}.index")
        whole = path.read_bytes()
        damaged = [whole[:at] for at in range(len(whole))]
        damaged += [whole[:-8] + bytes(8), bytes(50) + whole[50:-1], whole[:-1] + b"!"]
        for content in damaged:
            path.write_bytes(content)
            with pytest.raises(tfckpt.DataLossError, match="The file is damaged, partly copied"):
                tfckpt.load_checkpoint(path)


class TestMissingShards:
    """A version 1 checkpoint is read whole or not at all."""

    @pytest.mark.parametrize("name", ["m", "m-?????-of-00002", "m.meta", ""])
    def test_a_missing_shard_is_an_error(self, tmp_path: Path, name: str) -> None:
        """By prefix, pattern, meta graph and directory; the values of the other shards are not returned in silence."""
        save_v1(tmp_path / "m-00000-of-00002")
        (tmp_path / "m.meta").write_bytes(b"")
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{tmp_path}/m-?????-of-00002"\n')
        for open_ in (tfckpt.load_file, tfckpt.verify):
            with pytest.raises(tfckpt.NotFoundError, match="1 of 2 shards exist"):
                open_(tmp_path / name)
        save_v1(tmp_path / "m-00001-of-00002", name="y")
        assert set(tfckpt.load_file(tmp_path / name)) == {"x", "y"}

    def test_one_shard_can_be_read_by_its_own_name(self, tmp_path: Path) -> None:
        """As TensorFlow restores single shards."""
        assert value_at(save_v1(tmp_path / "m-00000-of-00002")) == 1.0
