"""Pins are written at once, so that they persist when a run ends right afterwards."""

from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt


def names(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".index") for path in folder.glob("*.index"))


@pytest.fixture
def saver(tmp_path: Path) -> tfckpt.Saver:
    """Return a saver that has saved m-1 and keeps one checkpoint."""
    saver = tfckpt.Saver({"x": torch.zeros(2)}, max_to_keep=1)
    saver.save(tmp_path / "m", global_step=1)
    return saver


def test_a_pin_outlives_a_run_that_ends_right_after(tmp_path: Path, saver: tfckpt.Saver) -> None:
    """Nothing is saved between the pin and the end; the next run's saves keep the checkpoint."""
    saver.pin(tmp_path / "m-1")
    again = tfckpt.Saver({"x": torch.zeros(2)}, max_to_keep=1, recover=True)
    for step in (2, 3):
        again.save(tmp_path / "m", global_step=step)
    assert names(tmp_path) == ["m-1", "m-3"]


def test_an_unpin_in_a_later_run(tmp_path: Path, saver: tfckpt.Saver) -> None:
    """The next save deletes it like any other old checkpoint."""
    saver.pin(tmp_path / "m-1")
    saver.save(tmp_path / "m", global_step=2)
    again = tfckpt.Saver({"x": torch.zeros(2)}, max_to_keep=1, recover=True)
    again.unpin(tmp_path / "m-1")
    again.save(tmp_path / "m", global_step=3)
    assert names(tmp_path) == ["m-3"]


def test_a_missing_checkpoint_cannot_be_pinned(tmp_path: Path, saver: tfckpt.Saver) -> None:
    """A mistyped path raises an error and is not recorded."""
    with pytest.raises(tfckpt.NotFoundError, match="m-7: there is no such checkpoint to pin"):
        saver.pin(tmp_path / "m-7")


def test_pins_are_stored_in_the_directory_of_the_state_file(tmp_path: Path) -> None:
    """Pins are found even if the state file has another name."""
    saver = tfckpt.Saver({"x": torch.zeros(2)}, max_to_keep=1)
    path = saver.save(tmp_path / "m", global_step=1, latest_filename="newest")
    assert path is not None
    saver.pin(path)
    assert (tmp_path / "newest.retention.json").exists()
    assert not (tmp_path / "checkpoint.retention.json").exists()


def test_settings_of_an_old_meta_graph_restore_and_save_version_1(tmp_path: Path) -> None:
    """A SaverDef without a version comes from a time when version 1 was the only one."""
    old = tfckpt.SaverDef(save_tensor_name="save/control_dependency:0", restore_op_name="save/restore_all")
    x = torch.arange(3.0)
    saver = tfckpt.Saver({"x": x}, saver_def=old)
    path = saver.save(tmp_path / "m", write_meta_graph=False)
    x.zero_()
    saver.restore(path)
    assert x.tolist() == [0.0, 1.0, 2.0]
    with tfckpt.load_checkpoint(tmp_path / "m") as reader:
        assert reader.version == 1
