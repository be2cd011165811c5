#!/usr/bin/env python3
"""A tour of torch_tfckpt on checkpoints that TensorFlow wrote; `scripts/demo` runs it. TensorFlow is not needed.

Reads tests/golden, writes demo-output/. Exits with 1 where a result is not what it should be.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import torch_tfckpt as tfckpt

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path("tests/golden")
OUTPUT = Path("demo-output")

MNIST = GOLDEN / "tf-trt-mnist-ckpt" / "model.ckpt-46900"
TRANSFORMER = GOLDEN / "t2t-transformer_test_ckpt" / "model.ckpt-1"
KERAS_MODEL = GOLDEN / "tract-keras-tf2"

# Objects of the Keras model -> parameters of `Classifier` below. Kernels are turned: in Keras they
# are [in, out], in torch [out, in].
RULES = {
    "layer_with_weights-0/kernel": "hidden.weight",
    "layer_with_weights-0/bias": "hidden.bias",
    "layer_with_weights-1/kernel": "output.weight",
    "layer_with_weights-1/bias": "output.bias",
}


class Classifier(torch.nn.Module):
    """Two dense layers: 100 features, 32 hidden units, 1 output."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(100, 32)
        self.output = torch.nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.hidden(x))
        return torch.sigmoid(self.output(hidden))


def heading(number: int, text: str) -> None:
    print(f"\n{number}. {text}\n", flush=True)


def tfckpt_command(*arguments: object) -> None:
    """Shows a `tfckpt` command, then runs it; ends the demo where it fails."""
    words = [str(argument) for argument in arguments]
    print("   $ tfckpt " + " ".join(words), flush=True)
    status = subprocess.run([sys.executable, "-m", "torch_tfckpt", *words], check=False).returncode
    if status != 0:
        sys.exit(f"tfckpt {words[0]} ended with exit status {status}")
    print(flush=True)


def expect(claim: str, holds: bool) -> None:
    """Prints a claim that was checked; ends the demo where it does not hold."""
    if not holds:
        sys.exit(f"   NOT SO: {claim}")
    print(f"   checked: {claim}", flush=True)


def list_and_verify() -> None:
    heading(1, f"What is in a checkpoint, and is it sound?  ({MNIST}, written by TensorFlow 1)")
    tfckpt_command("ls", MNIST)
    tfckpt_command("verify", MNIST)


def convert() -> None:
    target = OUTPUT / "transformer.safetensors"
    heading(2, f"A TensorFlow checkpoint becomes one safetensors file  ({TRANSFORMER} -> {target})")
    tfckpt_command("convert", TRANSFORMER, target)
    print(f"   {target}: {target.stat().st_size:,} bytes\n", flush=True)
    tfckpt_command("diff", TRANSFORMER, target)


def load_into_module() -> Classifier:
    heading(3, f"The weights of a Keras model in a torch.nn.Module  ({KERAS_MODEL}, a SavedModel)")
    tfckpt_command("ls", "--tree", KERAS_MODEL, "layer_with_weights-*")
    model = Classifier()
    report = tfckpt.load_model(model, KERAS_MODEL, mapper=RULES)
    print("   " + str(report).replace("\n", "\n   "))

    x = np.linspace(-1, 1, 300, dtype=np.float32).reshape(3, 100)
    with torch.no_grad():
        ours = model(torch.from_numpy(x)).numpy()
    stored = tfckpt.load_file(KERAS_MODEL, names=[f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in RULES])
    kernel_0, bias_0, kernel_1, bias_1 = map(np.asarray, stored.values())
    by_hand = 1 / (1 + np.exp(-(np.maximum(x @ kernel_0 + bias_0, 0) @ kernel_1 + bias_1)))
    difference = float(np.abs(ours - by_hand).max())
    print(f"\n   model(x)            {ours.ravel()}\n   numpy, same formula {by_hand.ravel()}")
    expect(f"both agree (largest difference {difference:.1e})", difference < 1e-6)
    return model


def save_and_load(model: Classifier) -> None:
    prefix = OUTPUT / "classifier.ckpt"
    heading(4, f"A torch state dict as a TensorFlow checkpoint  ({prefix})")
    state = model.state_dict()
    tfckpt.save_file(state, prefix)
    for path in sorted(OUTPUT.glob(prefix.name + ".*")):
        print(f"   {path}: {path.stat().st_size:,} bytes")
    loaded = tfckpt.load_file(prefix)
    same = loaded.keys() == state.keys() and all(torch.equal(torch.as_tensor(loaded[k]), state[k]) for k in state)
    expect(f"the {len(state)} tensors read back are equal, bit for bit", same)


def train(directory: Path, *options: object) -> tuple[dict[int, float], int]:
    """Runs the training script: the loss after each step it came to, and its exit status."""
    command = [sys.executable, "scripts/demo_training.py", str(directory), "--steps", "40", *map(str, options)]
    print(f"   $ python {' '.join(command[1:])}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    pairs = (line.split() for line in done.stdout.splitlines())
    return {int(step): float.fromhex(loss) for step, loss in pairs}, done.returncode


def train_and_resume() -> None:
    heading(5, "A training loop that saves while it trains, is killed, and goes on  (two data files a checkpoint)")
    whole, status = train(OUTPUT / "uninterrupted")
    fell = status == 0 and len(whole) == 40 and whole[40] < whole[1]
    expect(f"40 steps ran, and the loss fell from {whole[1]:.3f} to {whole[40]:.3f}", fell)
    killed, status = train(OUTPUT / "run", "--kill-at", 23)
    expect("the second run was killed by SIGKILL during the save after step 23", status == -9 and max(killed) == 23)
    latest = tfckpt.latest_checkpoint(OUTPUT / "run")
    print(f"   the latest checkpoint is {latest}", flush=True)
    resumed, status = train(OUTPUT / "run")
    print("   step   uninterrupted        killed and resumed")
    for step in (1, 20, 23, 24, 40):
        print(f"   {step:4}   {whole[step]:.15f}    {(killed | resumed)[step]:.15f}")
    expect(f"it went on after step {min(resumed) - 1}", status == 0 and 20 <= min(resumed) - 1 <= 23)
    expect("the curve continues bit for bit as if nothing had happened", killed | resumed == whole)
    left = [path.name for path in (OUTPUT / "run").iterdir() if "tempstate" in path.name]
    expect("nothing is left of the save that was killed", not left)
    tfckpt_command("ls", OUTPUT / "run")


def main() -> None:
    # Short paths in what is printed.
    os.chdir(ROOT)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    print("torch_tfckpt: TensorFlow checkpoints in PyTorch, without TensorFlow.")
    list_and_verify()
    convert()
    save_and_load(load_into_module())
    train_and_resume()
    print(f"\nDone. What was written lies in {OUTPUT}/.")


if __name__ == "__main__":
    main()
