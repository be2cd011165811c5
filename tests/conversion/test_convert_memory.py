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
