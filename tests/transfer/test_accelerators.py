"""Which devices copy in the background, and devices of other packages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.transfer.accelerators import ACCELERATORS, CopyStream, tried_streams

SUPPORT = Path(__file__).resolve().parents[1] / "support"
# In a new process: a device cannot be unregistered. Its tensors are saved and restored in every way.
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from private_device import register
if not register("toy"):
    sys.exit(3)
import torch
import torch_tfckpt as tfckpt

def on_toy(step):
    host = {"a": torch.arange(6.0).reshape(2, 3) + step, "b": torch.tensor(3) + step, "c": torch.ones(2, 3).t() * step}
    return {name: value.to("toy") for name, value in host.items()}

def listed(tensors):
    return {name: [str(value.device), value.cpu().tolist()] for name, value in sorted(tensors.items())}

found = {"expected": listed(on_toy(1))}
for name, save in {
    "save_file": lambda state: tfckpt.save_file(state, "file"),
    "save": lambda state: tfckpt.Saver(state).save("saver"),
    "sharded": lambda state: tfckpt.Saver(state, sharded=True).save("sharded"),
    "save_async": lambda state: tfckpt.Saver(state).save_async("background").result(),
}.items():
    path = save(on_toy(1))
    found[name + ", load_file"] = listed(tfckpt.load_file(path, device="toy"))
    target = on_toy(2)
    tfckpt.Saver(target).restore(path)
    found[name + ", restore"] = listed(target)
    target = on_toy(2)
    with tfckpt.load_checkpoint(path) as reader:
        found[name + ", out"] = listed({key: reader.get_tensor(key, out=value) for key, value in target.items()})
path, target = tfckpt.Checkpoint(**on_toy(1)).save("objects"), on_toy(2)
tfckpt.Checkpoint(**target).restore(path)
found["Checkpoint"] = listed(target)
print(json.dumps(found))
"""


def test_a_device_of_another_package_is_saved_and_restored(tmp_path: Path) -> None:
    """It has a name of its own, dummies for streams, and no pinned memory: each copy waits, and all values arrive."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(SUPPORT)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    if done.returncode == 3:
        pytest.skip("this version of torch cannot have devices written in Python")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = found.pop("expected")
    assert expected["b"] == ["toy:0", 4]
    assert {name: value for name, value in found.items() if value != expected} == {}
    assert len(found) == 13


@pytest.mark.parametrize("kind", ["cpu", "meta", "mps", "xla", "vulkan"])
def test_devices_without_copies_in_the_background(kind: str) -> None:
    """The host itself, MPS, and devices that are not the current accelerator: a thread waits for each copy."""
    assert ACCELERATORS.streams(torch.device(kind)) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_of_torch_accelerator_copy_like_those_of_cuda() -> None:
    """What XPU uses works here, too: copies come after queued work, and the earlier stream is the current one again."""
    device = torch.device("cuda", torch.cuda.current_device())
    streams = tried_streams(device)
    assert streams is not None
    before = torch.accelerator.current_stream(device)
    values = torch.zeros(1 << 24, device=device)
    pinned = torch.empty(1 << 24, pin_memory=True)
    for step in range(10):
        values.fill_(step)
        stream = CopyStream(streams, device)
        with stream:
            pinned.copy_(values, non_blocking=True)
        stream.ready().wait()
        assert pinned.eq(step).all()
    assert torch.accelerator.current_stream(device) == before


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(10,), (3 << 20,), (3000, 2000, 9)])
def test_every_restore_fills_tensors_on_a_gpu(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Small and large ones, through pinned memory or not: `load_file`, `out=`, and a saver."""
    values = torch.randn(shape)
    path = tfckpt.Saver({"x": values.to("cuda"), "y": values}).save(tmp_path / "m")
    assert torch.equal(tfckpt.load_file(path, device="cuda")["x"].cpu(), values)
    assert torch.equal(tfckpt.load_file(path, device="cuda", mmap=True)["x"].cpu(), values)
    target = torch.zeros(shape, device="cuda")
    with tfckpt.load_checkpoint(path) as reader:
        assert reader.get_tensor("x", out=target) is target
    assert torch.equal(target.cpu(), values)
    target.zero_()
    tfckpt.Saver({"x": target}).restore(path)
    assert torch.equal(target.cpu(), values)
