"""SaverCheckpoint: named tensors with the interface of tf.train.Checkpoint."""

from pathlib import Path

import pytest
import torch
from saver_files import names_in

import torch_tfckpt as tfckpt
from torch_tfckpt import BaseSaverBuilder, Saver, SaverCheckpoint, SaverDef


def test_saves_are_counted(tmp_path: Path) -> None:
    """Each save writes prefix-N and the state file, creates directories, and deletes nothing."""
    v = torch.tensor(0.0)
    checkpoint = SaverCheckpoint({"v": v})
    folder = tmp_path / "a" / "b"
    for number in (1, 2, 3):
        v.fill_(float(number))
        assert checkpoint.save(folder / "ck") == str(folder / f"ck-{number}")
    state = tfckpt.get_checkpoint_state(folder)
    assert state is not None and list(state.all_model_checkpoint_paths) == [str(folder / "ck-3")]
    assert 'model_checkpoint_path: "ck-3"' in (folder / "checkpoint").read_text()
    assert names_in(folder) == [
        "checkpoint",
        *(f"ck-{n}.{end}" for n in (1, 2, 3) for end in ("data-00000-of-00001", "index")),
    ]
    fresh = torch.tensor(-1.0)
    again = SaverCheckpoint({"v": fresh})
    again.restore(tfckpt.latest_checkpoint(folder) or "")
    assert (fresh.item(), again.save_counter.item()) == (3.0, 3)
    assert again.save(folder / "ck") == str(folder / "ck-4")


def test_write_counts_nothing(tmp_path: Path) -> None:
    """`write` uses the prefix as given, writes no state file and includes the counter unchanged."""
    checkpoint = SaverCheckpoint({"v": torch.ones(2)})
    checkpoint.save_counter.fill_(7)
    assert checkpoint.write(tmp_path / "sub" / "w") == str(tmp_path / "sub" / "w")
    assert checkpoint.save_counter.item() == 7
    assert names_in(tmp_path / "sub") == ["w.data-00000-of-00001", "w.index"]
    assert sorted(tfckpt.load_file(tmp_path / "sub" / "w")) == ["save_counter", "v"]
    other = SaverCheckpoint({"v": torch.zeros(2)})
    other.read(tmp_path / "sub" / "w")
    assert other.save_counter.item() == 7


@pytest.mark.parametrize(("name", "counter"), [("m-12", 12), ("m", 0), ("m-x", 0), ("m-0012", 12)])
def test_a_checkpoint_without_a_counter(tmp_path: Path, name: str, counter: int) -> None:
    """In a checkpoint written by Saver the number at the end of its name is the counter, otherwise 0."""
    Saver({"v": torch.ones(2)}).save(tmp_path / name)
    v = torch.zeros(2)
    checkpoint = SaverCheckpoint({"v": v})
    checkpoint.save_counter.fill_(99)
    checkpoint.restore(tmp_path / name)
    assert (v.tolist(), checkpoint.save_counter.item()) == ([1.0, 1.0], counter)


def test_around_a_saver(tmp_path: Path) -> None:
    """Checkpoints of a given Saver contain no counter, and its list of checkpoints is not changed."""
    v = torch.ones(2)
    saver = Saver({"v": v}, max_to_keep=1)
    checkpoint = SaverCheckpoint(saver)
    for number in (1, 2):
        assert checkpoint.save(tmp_path / "ck") == str(tmp_path / f"ck-{number}")
    assert list(tfckpt.load_file(tmp_path / "ck-2")) == ["v"] and saver.last_checkpoints == []
    assert (tmp_path / "ck-1.index").is_file()
    v.zero_()
    again = SaverCheckpoint(saver)
    again.restore(tmp_path / "ck-2")
    assert (v.tolist(), again.save_counter.item()) == ([1.0, 1.0], 2)
    with pytest.raises(ValueError, match="version 2"):
        SaverCheckpoint(Saver({"v": v}, write_version=SaverDef.V1))


def test_a_module(tmp_path: Path) -> None:
    """A bare module is accepted, like all arguments of Saver; the counter is stored with its tensors."""
    model = torch.nn.Linear(2, 2)
    checkpoint = SaverCheckpoint(model)
    path = checkpoint.save(tmp_path / "ck")
    assert sorted(tfckpt.load_file(path)) == ["bias", "save_counter", "weight"]
    before = model.weight.detach().clone()
    torch.nn.init.zeros_(model.weight)
    checkpoint.restore(path)
    assert torch.equal(model.weight, before)


def test_the_name_of_the_counter_is_reserved() -> None:
    """A tensor named "save_counter" is rejected."""
    with pytest.raises(ValueError, match='"save_counter" is reserved for the save counter'):
        SaverCheckpoint({"save_counter": torch.tensor(1)})


def test_a_missing_checkpoint_or_tensor(tmp_path: Path) -> None:
    """A missing checkpoint or tensor raises, and the values are unchanged."""
    v = torch.ones(1)
    checkpoint = SaverCheckpoint({"v": v})
    checkpoint.save_counter.fill_(5)
    with pytest.raises((tfckpt.NotFoundError, tfckpt.InvalidArgumentError)):
        checkpoint.restore(tmp_path / "none")
    Saver({"other": torch.ones(1)}).save(tmp_path / "m-3")
    with pytest.raises(tfckpt.NotFoundError, match="Key v not found in checkpoint"):
        checkpoint.restore(tmp_path / "m-3")
    assert (v.item(), checkpoint.save_counter.item()) == (1.0, 5)


def test_sync_raises_the_error_of_a_pending_save(tmp_path: Path) -> None:
    """`sync` waits for an asynchronous save of the wrapped Saver and raises its error."""

    class Fails(BaseSaverBuilder):
        def save_op(self, *arguments: object) -> None:
            raise OSError(28, "No space left on device")

    saver = Saver({"v": torch.ones(1)}, builder=Fails())
    checkpoint = SaverCheckpoint(saver)
    saver.save_async(tmp_path / "m")
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.sync()
    checkpoint.sync()
