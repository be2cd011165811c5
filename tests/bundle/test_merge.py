"""merge_bundles, case by case from TensorFlow's tensor_bundle_test.cc."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL

Add = Callable[[BundleWriter], None]


def whole(name: str, value: float = 1.0) -> Add:
    return lambda writer: writer.add(name, torch.full((4, 2), value))


def rows(name: str, start: int, shape: tuple[int, int] = (4, 2)) -> Add:
    part = TensorSlice.parse(f"{start},2:-")
    return lambda writer: writer.add_slice(name, shape, part, torch.full((2, shape[1]), float(start)))


def write(prefix: Path, *additions: Add, num_shards: int = 1) -> str:
    with BundleWriter(LOCAL, str(prefix), num_shards=num_shards) as writer:
        for add in additions:
            add(writer)
    return str(prefix)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def test_all_tensors_of_both(tmp_path: Path) -> None:
    """CASES 117. foo_000..003 and bar_000..003 are in the merged checkpoint, with the right values."""
    sources = [
        write(tmp_path / name, *(whole(f"{name}_{i:03d}", i + offset) for i in range(4)))
        for name, offset in (("foo", 0), ("bar", 10))
    ]
    merge_bundles(LOCAL, sources, str(tmp_path / "merged"))
    loaded = tfckpt.load_file(tmp_path / "merged")
    assert list(loaded) == [f"{name}_{i:03d}" for name in ("bar", "foo") for i in range(4)]
    assert [float(value[0, 0]) for value in loaded.values()] == [10, 11, 12, 13, 0, 1, 2, 3]


def test_directory_structure(tmp_path: Path) -> None:
    """CASES 126. Merging one checkpoint renames it; merging two numbers their data files in the given order."""
    one = write(tmp_path / "worker0", whole("a"))
    assert set(files(tmp_path)) == {"worker0.index", "worker0.data-00000-of-00001"}
    merge_bundles(LOCAL, [one], str(tmp_path / "another"))
    assert set(files(tmp_path)) == {"another.index", "another.data-00000-of-00001"}
    two = write(tmp_path / "worker1", whole("b"))
    merge_bundles(LOCAL, [str(tmp_path / "another"), two], str(tmp_path / "merged"))
    assert set(files(tmp_path)) == {"merged.index", "merged.data-00000-of-00002", "merged.data-00001-of-00002"}


def test_empty_directories_are_removed(tmp_path: Path) -> None:
    """The directory is removed if it contained only the parts; otherwise it stays."""
    for directory in ("parts", "kept"):
        (tmp_path / directory).mkdir()
    (tmp_path / "kept" / "other").write_text("x")
    sources = [write(tmp_path / "parts" / "a", whole("a")), write(tmp_path / "kept" / "b", whole("b"))]
    merge_bundles(LOCAL, sources, str(tmp_path / "all"))
    assert not (tmp_path / "parts").exists()
    assert set(files(tmp_path / "kept")) == {"other"}


def test_slices_of_one_tensor_from_two_sources(tmp_path: Path) -> None:
    """CASES 133 (iii). The lists of slices are concatenated in merge order, and the tensor reads as a whole."""
    sources = [write(tmp_path / "p0", rows("w", 2)), write(tmp_path / "p1", rows("w", 0))]
    merge_bundles(LOCAL, sources, str(tmp_path / "all"))
    with tfckpt.load_checkpoint(tmp_path / "all") as reader:
        assert [str(part) for part in reader.slices("w")] == ["2,2:-", "0,2:-"]
        assert reader.get_tensor("w")[:, 0].tolist() == [0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (whole("t"), whole("t"), 'Duplicate tensor keyed by "t" encountered, when merging prefix'),
        (whole("t"), rows("t", 0), 'Duplicate tensor keyed by "t" encountered'),
        (rows("t", 0), whole("t"), 'Duplicate tensor keyed by "t"; attempting to merge in a non-slice bundle entry'),
        (rows("t", 0), rows("t", 0), "Duplicate tensor keyed by"),
        (rows("t", 0), rows("t", 2, (4, 3)), "have a different dtype or shape"),
    ],
    ids=["whole whole", "whole slice", "slice whole", "same slice", "other shape"],
)
def test_refusals_leave_the_sources_untouched(tmp_path: Path, first: Add, second: Add, text: str) -> None:
    """CASES 133. The error names what cannot be merged, and no file is changed."""
    sources = [write(tmp_path / "p0", first), write(tmp_path / "p1", second)]
    before = files(tmp_path)
    with pytest.raises(tfckpt.InvalidArgumentError, match=text):
        merge_bundles(LOCAL, sources, str(tmp_path / "all"))
    assert files(tmp_path) == before


def test_missing_sources(tmp_path: Path) -> None:
    """CASES 133. A missing source stops the merge, or is skipped; if none exists there is nothing to merge."""
    source, gone = write(tmp_path / "p0", whole("a")), str(tmp_path / "gone")
    with pytest.raises(
        tfckpt.InvalidArgumentError, match=r"allow_missing_files was set to false and .*gone\.index did"
    ):
        merge_bundles(LOCAL, [source, gone], str(tmp_path / "all"))
    with pytest.raises(tfckpt.InvalidArgumentError, match="At least one prefix checkpoint file must exist, but none"):
        merge_bundles(LOCAL, [gone], str(tmp_path / "all"), allow_missing_files=True)
    merge_bundles(LOCAL, [gone, source], str(tmp_path / "all"), allow_missing_files=True)
    assert list(tfckpt.load_file(tmp_path / "all")) == ["a"]


def test_a_source_without_its_data(tmp_path: Path) -> None:
    """A missing data file is detected before anything is moved."""
    sources = [write(tmp_path / "p0", whole("a")), write(tmp_path / "p1", whole("b"))]
    (tmp_path / "p1.data-00000-of-00001").unlink()
    before = files(tmp_path)
    with pytest.raises(tfckpt.NotFoundError, match=r"p1\.data-00000-of-00001: No such file or directory"):
        merge_bundles(LOCAL, sources, str(tmp_path / "all"))
    assert files(tmp_path) == before


@pytest.mark.parametrize("others", [(), ("other",)], ids=["alone", "with another"])
def test_merging_onto_one_of_the_sources(tmp_path: Path, others: tuple[str, ...]) -> None:
    """TensorFlow destroys the checkpoint here (it deletes its own index at the end). Ours contains everything."""
    base = write(tmp_path / "base", whole("a", 1.0))
    sources = [base, *(write(tmp_path / name, whole(name, 2.0)) for name in others)]
    merge_bundles(LOCAL, sources, base)
    assert set(tfckpt.load_file(base)) == {"a", *others}
    count = 1 + len(others)
    assert set(files(tmp_path)) == {"base.index", *(f"base.data-{i:05d}-of-{count:05d}" for i in range(count))}


def test_merging_over_an_older_checkpoint(tmp_path: Path) -> None:
    """The target's older data files, with a different count, are removed; the new ones get their usual names."""
    target = write(tmp_path / "all", whole("old"), num_shards=3)
    merge_bundles(LOCAL, [write(tmp_path / "p0", whole("a")), write(tmp_path / "p1", whole("b"))], target)
    assert set(tfckpt.load_file(target)) == {"a", "b"}
    assert set(files(tmp_path)) == {"all.index", "all.data-00000-of-00002", "all.data-00001-of-00002"}


def test_sources_may_be_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "p0", whole("a"))
    before = files(tmp_path)
    merge_bundles(LOCAL, [source], str(tmp_path / "all"), delete_sources=False)
    assert before.items() <= files(tmp_path).items()
    assert list(tfckpt.load_file(tmp_path / "all")) == ["a"]
