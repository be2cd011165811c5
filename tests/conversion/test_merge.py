"""merge(): checkpoints by any of their names become one."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.merge import merge
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.storage.names import AnyPath


def saved(folder: Path, name: str) -> str:
    """A directory with a `checkpoint` file, as Saver leaves it; the prefix of its newest checkpoint."""
    saver = tfckpt.Saver({name: torch.ones(2)})
    saver.save(folder / "model.ckpt", 1, write_meta_graph=False)
    path = saver.save(folder / "model.ckpt", 2, write_meta_graph=False)
    assert path is not None
    return path


@pytest.mark.parametrize("spelling", ["directory", "checkpoint", "prefix", "index", "data"])
def test_sources_by_any_name(tmp_path: Path, spelling: str) -> None:
    """A directory means the newest checkpoint in it."""
    for part in "ab":
        (tmp_path / part).mkdir()
    prefixes = [saved(tmp_path / part, part) for part in "ab"]
    spelled: dict[str, Sequence[AnyPath]] = {
        "directory": [tmp_path / part for part in "ab"],
        "checkpoint": [tmp_path / part / "checkpoint" for part in "ab"],
        "prefix": prefixes,
        "index": [f"{prefix}.index" for prefix in prefixes],
        "data": [f"{prefix}.data-00000-of-00001" for prefix in prefixes],
    }
    report = merge(spelled[spelling], tmp_path / "whole")
    assert report.sources == prefixes and report.target == str(tmp_path / "whole")
    assert str(report) == f"merged into {tmp_path}/whole: 2 tensors in 2 data files"
    assert set(tfckpt.load_file(tmp_path / "whole")) == {"a", "b"}
    assert not os.path.exists(f"{prefixes[0]}.index") and (tmp_path / "a" / "model.ckpt-1.index").exists()


def test_targets_by_any_name(tmp_path: Path) -> None:
    """The checkpoint that the name refers to is replaced."""
    (tmp_path / "run").mkdir()
    newest = saved(tmp_path / "run", "old")
    for target in (tmp_path / "run", f"{newest}.index", f"{newest}.data-00000-of-00001", newest):
        part = tfckpt.save_file({"new": torch.ones(1)}, tmp_path / "part")
        assert merge([part], target).target == newest
        assert list(tfckpt.load_file(tmp_path / "run")) == ["new"]
    part = tfckpt.save_file({"new": torch.ones(1)}, tmp_path / "part")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"empty is a directory without a checkpoint.*empty/model\.ckpt"):
        merge([part], tmp_path / "empty")


def test_sources_stay_on_demand(tmp_path: Path) -> None:
    parts = [tfckpt.save_file({name: torch.ones(1)}, tmp_path / name) for name in "ab"]
    merge(parts, tmp_path / "whole", delete_old_dirs=False)
    assert all(tfckpt.checkpoint_exists(part) for part in parts)


def test_missing_sources(tmp_path: Path) -> None:
    part = tfckpt.save_file({"a": torch.ones(1)}, tmp_path / "a")
    with pytest.raises(NotFoundError, match="absent"):
        merge([part, tmp_path / "absent"], tmp_path / "whole")
    report = merge([part, tmp_path / "absent"], tmp_path / "whole", allow_missing_files=True)
    assert report.missing == [str(tmp_path / "absent")] and "missing, and skipped:" in str(report)
    with pytest.raises(InvalidArgumentError, match="none existed"):
        merge([tmp_path / "absent"], tmp_path / "whole", allow_missing_files=True)


def test_what_cannot_be_merged(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="srcs must be a list of paths"):
        merge(str(tmp_path), tmp_path / "whole")
    with pytest.raises(InvalidArgumentError, match=r"is a version 1 checkpoint.*tfckpt convert"):
        merge([golden / "digits-v1" / "checkpoint-288"], tmp_path / "whole")
    with pytest.raises(InvalidArgumentError, match="none existed"):
        merge([], tmp_path / "whole")
    parts = [tfckpt.save_file({"a": torch.ones(1)}, tmp_path / name) for name in "ab"]
    with pytest.raises(InvalidArgumentError, match='Duplicate tensor keyed by "a"'):
        merge(parts, tmp_path / "whole")
    assert all(tfckpt.checkpoint_exists(part) for part in parts)


@pytest.mark.parametrize("spelling", ["./a", "{folder}/a", "link/a", "a.index", "a"])
def test_merging_into_a_source_by_any_spelling_keeps_the_result(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result must not be removed as a source; a source that is named twice counts once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(".")
    for name in ("a", "b"):
        tfckpt.save_file({name: torch.ones(1)}, name)
    report = tfckpt.merge([spelling.format(folder=tmp_path), "b", "./b"], "a")
    assert report.target == "a" and sorted(tfckpt.load_file("a")) == ["a", "b"]
    assert not Path("b.index").exists()
