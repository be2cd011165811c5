"""load_model of large checkpoints: how much memory it takes, and what remains if a file changes while it is read."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from call_memory import needs_proc, peak_memory
from memory_storage import MemoryStorage
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.text import listed

MIB = 2**20
IMPORTS = """
import torch
from torch import nn
from torch_tfckpt.models.loading import load_model

class Stacked(nn.Module):
    def __init__(self, layers, width):
        super().__init__()
        for number in range(layers):
            setattr(self, f"l{number:03d}", nn.Linear(width, 2 * width, bias=False, dtype=torch.float32))

def module(layers, width, device):
    with torch.device(device):
        return Stacked(layers, width)

mode, path, layers, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
net = module(layers, width, "meta" if mode == "assign" else "cpu")
"""
LOAD = 'load_model(net, path, assign=mode == "assign", ema="ignore")'


def save_layers(path: Path, layers: int, width: int, *, slots: bool = False) -> int:
    """Save the kernels of Stacked; return their size. With slots, Adam's two slots of each, which are not loaded."""
    kernel = torch.arange(width * 2 * width, dtype=torch.float32).view(width, 2 * width)
    stored = {f"l{number:03d}/kernel": kernel for number in range(layers)}
    if slots:
        stored |= {f"{name}/{slot}": kernel for name in list(stored) for slot in ("Adam", "Adam_1")}
    tfckpt.save_file(stored, path)
    return layers * kernel.nbytes


@needs_proc
@pytest.mark.parametrize(("mode", "limit"), [("in place", 0.4), ("assign", 1.1)])
def test_peak_memory(tmp_path: Path, mode: str, limit: float) -> None:
    """In place, far less than the values; with assign, the values, which become the module's, and a tenth."""
    size = save_layers(tmp_path / "m", 80, 1024)
    assert peak_memory(IMPORTS, LOAD, mode, str(tmp_path / "m"), "80", "1024", timeout=300) < size * limit


@pytest.mark.heavy
@needs_proc
@pytest.mark.parametrize(("mode", "limit"), [("in place", 0.1), ("assign", 1.1)])
def test_peak_memory_of_a_large_checkpoint(tmp_path: Path, mode: str, limit: float) -> None:
    """4 GiB, two thirds of them optimizer state."""
    size = save_layers(tmp_path / "m", 43, 2048, slots=True)
    assert peak_memory(IMPORTS, LOAD, mode, str(tmp_path / "m"), "43", "2048", timeout=600) < size * limit
    shutil.rmtree(tmp_path)


class Stacked(nn.Module):
    """Linears of 16 MiB each."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for number in range(17):
            self.add_module(f"l{number:03d}", nn.Linear(1448, 2 * 1448, bias=False, dtype=dtype, device="meta"))
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            nn.init.constant_(parameter, -1)


class ChangingStorage(MemoryStorage):
    """One byte of the data changes after `reads` bytes of it have been read."""

    def __init__(self, prefix: Path, reads: int, changed: int) -> None:
        names = (f"{prefix}.index", f"{prefix}.data-00000-of-00001")
        super().__init__({name: Path(name).read_bytes() for name in names})
        self.left, self.changed = reads, changed

    def open(self, path: str) -> ReadableFile:
        return ChangingFile(super().open(path), self) if ".data" in path else super().open(path)


class ChangingFile:
    def __init__(self, file: ReadableFile, storage: ChangingStorage) -> None:
        self.path, self.size, self.identity = file.path, file.size, file.identity
        self._file, self._storage = file, storage

    def read(self, offset: int, size: int) -> bytes:
        return self._file.read(offset, size)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._file.read_into(offset, buffers)
        for buffer in buffers:
            if self._storage.left < 0 and offset <= self._storage.changed < offset + len(buffer):
                buffer[self._storage.changed - offset] ^= 1
            self._storage.left -= len(buffer)
            offset += len(buffer)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of a checkpoint of a Stacked, 272 MiB."""
    path = tmp_path_factory.mktemp("stacked") / "m"
    save_layers(path, 17, 1448)
    return path


def test_damage_changes_nothing(stored: Path) -> None:
    """Even in the last of many tensors."""
    size = Path(f"{stored}.data-00000-of-00001").stat().st_size
    model = Stacked()
    with pytest.raises(tfckpt.DataLossError, match="l016/kernel"):
        load_model(model, stored, storage=ChangingStorage(stored, -1, size - 1))
    assert all(bool((parameter == -1).all()) for parameter in model.parameters())


def test_a_file_that_changes_while_it_is_read(stored: Path) -> None:
    """It was verified, and then damaged: the error lists exactly the tensors that were changed."""
    size = Path(f"{stored}.data-00000-of-00001").stat().st_size
    model = Stacked()
    with pytest.raises(tfckpt.DataLossError, match="l008/kernel") as raised:
        load_model(model, stored, storage=ChangingStorage(stored, size, size // 2))
    changed = {name for name, value in model.named_parameters() if bool((value != -1).any())}
    assert changed == {f"l{number:03d}.weight" for number in range(8)}
    [note] = raised.value.__notes__
    assert "already changed: " + listed(sorted(changed), 100) in note


def test_values_beyond_the_range_of_the_module(stored: Path) -> None:
    """They are found before the first tensor changes, and named."""
    model = Stacked(torch.float16)
    with pytest.raises(
        tfckpt.InvalidArgumentError, match=r'beyond the range .*: "l000.weight" \(\d.*Nothing was loaded'
    ):
        load_model(model, stored)
    assert all(bool((parameter == -1).all()) for parameter in model.parameters())
    report = load_model(model, stored, strict=False)
    assert any('"l000.weight"' in remark and "beyond the range" in remark for remark in report.remarks)
    assert model.get_parameter("l000.weight").isinf().any()


@pytest.mark.parametrize("assign", [False, True])
def test_small_values_beyond_the_range(tmp_path: Path, assign: bool) -> None:
    """The same for a module that is read at once; bfloat16 has the range."""
    tfckpt.save_file({"weight": torch.tensor([[1.0, 70000.0]])}, tmp_path / "m")
    model = nn.Linear(2, 1, bias=False, dtype=torch.float16)
    before = model.weight.detach().clone()
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'"weight" \(1 value, largest 70000\)'):
        load_model(model, tmp_path / "m", assign=assign)
    assert torch.equal(model.weight, before)
    load_model(nn.Linear(2, 1, bias=False, dtype=torch.bfloat16), tmp_path / "m", assign=assign)


def test_many_tensors_from_one_variable(tmp_path: Path) -> None:
    """Those made from the same variable are read together; large models are the same as small ones."""
    model = Stacked()
    parts = torch.randn(17 * 2896, 1448)
    tfckpt.save_file({"all": parts}, tmp_path / "m")
    names = [f"l{number:03d}.weight" for number in range(17)]
    load_model(model, tmp_path / "m", mapper=[tfckpt.KeyRule("all", names, "same")])
    assert torch.equal(torch.cat(list(model.parameters())), parts)
