"""An average takes the memory of its largest tensor, however many checkpoints there are."""

from pathlib import Path

import pytest
import torch
from call_memory import needs_proc, peak_memory

from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.storage.local import LOCAL

CHECKPOINTS = 4
LARGE, SMALL, TENSORS = 200_000_000, 12_000_000, 10
LIMIT = 400 * 1024 * 1024 + LARGE


@pytest.mark.heavy
@needs_proc
def test_memory(tmp_path: Path) -> None:
    """The four checkpoints have 1.3 GB together."""
    paths = [str(tmp_path / f"m-{number}") for number in range(CHECKPOINTS)]
    for number, path in enumerate(paths):
        with BundleWriter(LOCAL, path) as writer:
            writer.add("large", torch.full((LARGE // 4,), float(number)))
            for layer in range(TENSORS):
                writer.add(f"layer{layer}", torch.full((SMALL // 4,), float(number)))
    imports, call = "from torch_tfckpt.conversion.average import average", "average(sys.argv[2:], sys.argv[1])"
    assert peak_memory(imports, call, str(tmp_path / "average"), *paths, timeout=600) < LIMIT
