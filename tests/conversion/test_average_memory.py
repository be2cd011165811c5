"""An average takes the memory of its largest tensor, however many checkpoints there are."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LOCAL

CHECKPOINTS = 4
LARGE, SMALL, TENSORS = 200_000_000, 12_000_000, 10
LIMIT = 400 * 1024 * 1024 + LARGE

# In a process of its own, since the peak of a process never falls. The baseline is taken after torch is imported.
PROGRAM = """
import sys
from torch_tfckpt.conversion.average import average
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))
baseline = status("VmRSS")
average(sys.argv[2:], sys.argv[1])
print(status("VmHWM") - baseline)
"""


@pytest.mark.heavy
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory(tmp_path: Path) -> None:
    """The four checkpoints have 1.3 GB together."""
    paths = [str(tmp_path / f"m-{number}") for number in range(CHECKPOINTS)]
    for number, path in enumerate(paths):
        with BundleWriter(LOCAL, path) as writer:
            writer.add("large", torch.full((LARGE // 4,), float(number)))
            for layer in range(TENSORS):
                writer.add(f"layer{layer}", torch.full((SMALL // 4,), float(number)))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "average"), *paths]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < LIMIT
