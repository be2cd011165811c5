"""verify(): what `tfckpt verify` shows, as a result."""

from pathlib import Path

import pytest
import torch
from memory_storage import MemoryStorage

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.verify import verify
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError


@pytest.mark.parametrize("name", ["digits-transformer", "digits-v1/checkpoint-288", "digits-module"])
def test_real_checkpoints(golden: Path, name: str) -> None:
    """By any name; progress ends at the total."""
    told: list[tuple[int, int]] = []
    found = verify(golden / name, progress=lambda done, total: told.append((done, total)))
    with tfckpt.load_checkpoint(golden / name) as reader:
        assert found.good == reader.keys() and found.path == reader.path
    assert found.ok and not found.damaged and str(found) == f"no damage found: {len(found.good)} tensors"
    assert told == sorted(told) and told[-1][0] == told[-1][1] > 0


def test_damage_is_a_result(tmp_path: Path) -> None:
    prefix = tfckpt.save_file({name: torch.arange(20.0) for name in "abc"}, tmp_path / "t")
    data = Path(f"{prefix}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[100] ^= 4
    data.write_bytes(content)
    found = verify(tmp_path / "t")
    assert not found.ok and found.good == ["a", "c"] and found.damaged == ["b"]
    assert str(found).splitlines() == [str(found.damage[0]), "damaged: 1 of 3 tensors; good: 2"]


def test_given_storage(tmp_path: Path) -> None:
    """The files need not be on this machine."""
    tfckpt.save_file({"a": torch.ones(1)}, tmp_path / "t")
    storage = MemoryStorage({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert verify("t", storage=storage).good == ["a"]


def test_what_cannot_be_verified(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(InvalidArgumentError, match="other formats have no checksums"):
        verify(tmp_path / "m.pt")
    with pytest.raises(NotFoundError):
        verify(tmp_path / "absent")
