"""A conversion takes as much memory for a large checkpoint as for a small one."""

from pathlib import Path

import pytest
import torch
from call_memory import needs_proc, peak_memory

from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LOCAL

TENSORS = 40
TENSOR_BYTES = 15_000_000
LIMIT = 256 * 1024 * 1024 + TENSOR_BYTES

CONVERT = """
for target in sys.argv[2:]:
    convert(sys.argv[1], target, to=None if "." in target.rpartition("/")[2] else "tf")
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """600 MB in 40 tensors."""
    prefix = str(tmp_path_factory.mktemp("large") / "large")
    with BundleWriter(LOCAL, prefix) as writer:
        for number in range(TENSORS):
            writer.add(f"layer{number:02d}", torch.full((TENSOR_BYTES // 4,), float(number)))
    return prefix


def peak(source: str, *targets: str) -> int:
    return peak_memory("from torch_tfckpt.conversion.convert import convert", CONVERT, source, *targets, timeout=300)


@needs_proc
def test_to_safetensors(large: str, tmp_path: Path) -> None:
    assert peak(large, str(tmp_path / "m.safetensors")) < LIMIT


@pytest.mark.heavy
@needs_proc
@pytest.mark.parametrize("form", ["m.safetensors", "m.pt", "m.npz"])
def test_there_and_back(large: str, tmp_path: Path, form: str) -> None:
    """Every sink, and every source but the checkpoint itself."""
    assert peak(large, str(tmp_path / form)) < LIMIT
    assert peak(str(tmp_path / form), str(tmp_path / "back")) < LIMIT


TURN = """
from torch_tfckpt import KeyRule
rules = [KeyRule("(.*)/kernel", r"\\1.weight", "dense")]
for target in sys.argv[2:]:
    convert(sys.argv[1], target, to_torch="." in target.rpartition("/")[2], to_tf="." not in target, map=rules)
"""


def turning_peak(source: str, *targets: str) -> int:
    return peak_memory("from torch_tfckpt.conversion.convert import convert", TURN, source, *targets, timeout=900)


def kernels(prefix: str, sides: list[int], slots: int) -> str:
    """Square kernels, so that turning one needs all of it, each with slots that are left out."""
    with BundleWriter(LOCAL, prefix) as writer:
        for number, side in enumerate(sides):
            value = torch.full((side, side), float(number))
            writer.add(f"layer{number:02d}/kernel", value)
            for name in ("Adam", "Adam_1")[:slots]:
                writer.add(f"layer{number:02d}/kernel/{name}", value)
    return prefix


@needs_proc
def test_turning_layouts(tmp_path: Path) -> None:
    """200 MB of kernels; the largest has 100 MB."""
    source = kernels(str(tmp_path / "net"), [5000, *[1580] * 10], 0)
    limit = 256 * 1024 * 1024 + 100_000_000
    assert turning_peak(source, str(tmp_path / "net.safetensors")) < limit
    assert turning_peak(str(tmp_path / "net.safetensors"), str(tmp_path / "back")) < limit


@pytest.mark.heavy
@needs_proc
@pytest.mark.parametrize("form", ["net.safetensors", "net.pt"])
def test_turning_a_large_checkpoint(tmp_path: Path, form: str) -> None:
    """4 GiB with optimizer slots; the largest kernel has 400 MB."""
    source = kernels(str(tmp_path / "net"), [10_000, *[5000] * 10], 2)
    limit = 256 * 1024 * 1024 + 400_000_000
    assert turning_peak(source, str(tmp_path / form)) < limit
    assert turning_peak(str(tmp_path / form), str(tmp_path / "back")) < limit
