"""A conversion takes as much memory for a large checkpoint as for a small one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LOCAL

TENSORS = 40
TENSOR_BYTES = 15_000_000
LIMIT = 256 * 1024 * 1024 + TENSOR_BYTES

# In a process of its own, since the peak of a process never falls. The baseline is taken after torch is imported.
PROGRAM = """
import sys
from torch_tfckpt.conversion.convert import convert
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))
baseline = status("VmRSS")
for target in sys.argv[2:]:
    convert(sys.argv[1], target, to=None if "." in target.rpartition("/")[2] else "tf")
print(status("VmHWM") - baseline)
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
    run = subprocess.run([sys.executable, "-c", PROGRAM, source, *targets], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_to_safetensors(large: str, tmp_path: Path) -> None:
    assert peak(large, str(tmp_path / "m.safetensors")) < LIMIT


@pytest.mark.heavy
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("form", ["m.safetensors", "m.pt", "m.npz"])
def test_there_and_back(large: str, tmp_path: Path, form: str) -> None:
    """Every sink, and every source but the checkpoint itself."""
    assert peak(large, str(tmp_path / form)) < LIMIT
    assert peak(str(tmp_path / form), str(tmp_path / "back")) < LIMIT
