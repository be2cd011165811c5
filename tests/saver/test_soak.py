"""Background saves for ten minutes: memory, open files and threads stay as they are.

TFCKPT_SOAK_SECONDS=600 python -m pytest -n 0 -s tests/saver/test_soak.py -m heavy
"""

import gc
import os
import statistics
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import torch

import torch_tfckpt as tfckpt

SECONDS: Final = float(os.environ.get("TFCKPT_SOAK_SECONDS", "600"))
RESTORE_EVERY, FAIL_EVERY, MEASURE_EVERY = 50, 20, 10
MIB: Final = 1024 * 1024


class Usage(NamedTuple):
    """What the process has at one moment."""

    saves: int
    memory: int  # bytes in main memory
    files: int  # open files
    threads: int


def usage(saves: int) -> Usage:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    return Usage(saves, memory, len(os.listdir("/proc/self/fd")), threading.active_count())


def network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.BatchNorm1d(1024), torch.nn.Linear(1024, 512))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 512)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_nothing_grows(tmp_path: Path) -> None:
    """Saves, failing saves and restores; the medians of the second and the last fifth of the time are compared."""
    model, optimizer = network()
    saver = tfckpt.Saver({"model": model, "optimizer": optimizer}, max_to_keep=3)
    (tmp_path / "file").touch()
    seen: list[Usage] = []
    failed = saves = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        saves += 1
        with torch.no_grad():
            model[0].bias.fill_(saves)  # type: ignore[index]
        handle = saver.save_async(tmp_path / "model.ckpt", global_step=saves)
        if saves % RESTORE_EVERY == 0:
            model[0].bias.data.zero_()  # type: ignore[index]
            saver.restore(tmp_path / f"model.ckpt-{saves}")
            assert model[0].bias[0] == saves  # type: ignore[index]
        if saves % FAIL_EVERY == 0:
            with pytest.raises((tfckpt.CheckpointError, OSError)):
                saver.save_async(tmp_path / "file" / "model.ckpt").result()
            failed += 1
        if saves % MEASURE_EVERY == 0:
            handle.result()
            seen.append(usage(saves))
    saver.close()
    fifth = len(seen) // 5
    assert fifth, f"only {saves} saves in {SECONDS} seconds"
    early, late = seen[fifth : 2 * fifth], seen[-fifth:]
    for name in Usage._fields[1:]:
        medians = [statistics.median(getattr(one, name) for one in part) for part in (early, late)]
        print(f"{name}: {medians[0]:.0f} -> {medians[1]:.0f}, at most {max(getattr(one, name) for one in seen)}")
    print(f"{saves} saves, {failed} failed ones, {saves // RESTORE_EVERY} restores in {SECONDS:.0f} seconds")
    memory = [statistics.median(one.memory for one in part) for part in (early, late)]
    assert memory[1] < memory[0] + 8 * MIB
    assert statistics.median(one.files for one in late) <= statistics.median(one.files for one in early)
    assert statistics.median(one.threads for one in late) <= statistics.median(one.threads for one in early)
    assert len(list(tmp_path.glob("model.ckpt-*.index"))) == 3
    assert not [path.name for path in tmp_path.iterdir() if "tempstate" in path.name]
