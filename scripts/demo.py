#!/usr/bin/env python3
"""A tour of torch_tfckpt on checkpoints written by TensorFlow, which is not needed.

`scripts/demo` runs it. Reads tests/golden, writes demo-output/. Exits with status 1 if a result is wrong.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import torch_tfckpt as tfckpt

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path("tests/golden")
OUTPUT = Path("demo-output")

DIGITS = GOLDEN / "digits-cnn" / "model.ckpt-216"
TRANSFORMER = GOLDEN / "digits-transformer" / "model.ckpt-288"


class Classifier(torch.nn.Module):
    """The network trained in TensorFlow, in torch: images of 8 x 8 pixels to logits of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d = torch.nn.Conv2d(1, 8, 3, padding="same")
        self.conv2d_1 = torch.nn.Conv2d(8, 16, 3, padding="same")
        self.dense = torch.nn.Linear(2 * 2 * 16, 32)
        self.dense_1 = torch.nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(torch.relu(self.conv2d(images[:, None])), 2)
        x = functional.max_pool2d(torch.relu(self.conv2d_1(x)), 2)
        # TensorFlow stores a feature map as height, width, channels; the weights of `dense` have that order.
        x = torch.relu(self.dense(x.permute(0, 2, 3, 1).flatten(1)))
        logits: torch.Tensor = self.dense_1(x)
        return logits


def heading(number: int, text: str) -> None:
    print(f"\n{number}. {text}\n", flush=True)


def tfckpt_command(*arguments: object) -> None:
    """Print a `tfckpt` command and run it; exit if it fails."""
    words = [str(argument) for argument in arguments]
    print("   $ tfckpt " + " ".join(words), flush=True)
    status = subprocess.run([sys.executable, "-m", "torch_tfckpt", *words], check=False).returncode
    if status != 0:
        sys.exit(f"tfckpt {words[0]} failed with exit status {status}")
    print(flush=True)


def expect(claim: str, holds: bool) -> None:
    """Print a checked claim; exit if it is wrong."""
    if not holds:
        sys.exit(f"   WRONG: {claim}")
    print(f"   checked: {claim}", flush=True)


def load_into_module() -> Classifier:
    heading(1, f"A classifier trained in TensorFlow becomes a torch.nn.Module  ({DIGITS})")
    model = Classifier()
    print("   " + str(tfckpt.load_model(model, DIGITS)).replace("\n", "\n   "))

    # Images that neither network was trained on, and TensorFlow's outputs for them.
    with np.load(DIGITS.parent / "samples.npz", allow_pickle=False) as stored:
        images, labels, theirs = stored["images"], stored["labels"], stored["outputs"]
    with torch.no_grad():
        ours = model(torch.from_numpy(images.astype(np.float32) / 16)).numpy()
    accuracies = [float((outputs.argmax(1) == labels).mean()) for outputs in (theirs, ours)]
    difference = float(np.abs(ours - theirs).max())
    print(f"\n   {len(labels)} images of handwritten digits held out of the training:")
    print(f"   accuracy in TensorFlow           {accuracies[0]:.1%}")
    print(f"   accuracy in torch                {accuracies[1]:.1%}")
    print(f"   largest difference of a logit    {difference:.1e}  (logits reach {np.abs(theirs).max():.0f})")
    recorded = json.loads((DIGITS.parent / "expected.json").read_text(encoding="utf-8"))["model"]["accuracy"]
    expect("TensorFlow's accuracy equals the one recorded with the checkpoint", accuracies[0] == recorded)
    expect("torch's accuracy equals TensorFlow's", accuracies[1] == accuracies[0])
    expect("the outputs agree to 1e-3", ours.shape == theirs.shape and difference < 1e-3)
    return model


def list_and_verify() -> None:
    heading(2, f"List a checkpoint and verify its checksums  ({DIGITS})")
    tfckpt_command("ls", DIGITS)
    tfckpt_command("verify", DIGITS)


def convert() -> None:
    target = OUTPUT / "transformer.safetensors"
    heading(3, f"A TensorFlow checkpoint becomes one safetensors file  ({TRANSFORMER} -> {target})")
    tfckpt_command("convert", TRANSFORMER, target)
    print(f"   {target}: {target.stat().st_size:,} bytes\n", flush=True)
    tfckpt_command("diff", TRANSFORMER, target)


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
    """Run the training script; return the loss after each step and the exit status."""
    command = [sys.executable, "scripts/demo_training.py", str(directory), "--steps", "40", *map(str, options)]
    print(f"   $ python {' '.join(command[1:])}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    pairs = (line.split() for line in done.stdout.splitlines())
    return {int(step): float.fromhex(loss) for step, loss in pairs}, done.returncode


def train_and_resume() -> None:
    heading(5, "A training loop saves in the background, is killed and resumes  (two data files per checkpoint)")
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
    expect(f"it resumed after step {min(resumed) - 1}", status == 0 and 20 <= min(resumed) - 1 <= 23)
    expect("the curve equals the uninterrupted one bit for bit", killed | resumed == whole)
    left = [path.name for path in (OUTPUT / "run").iterdir() if "tempstate" in path.name]
    expect("no files of the interrupted save are left", not left)
    tfckpt_command("ls", OUTPUT / "run")


def main() -> None:
    # Print short paths.
    os.chdir(ROOT)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    print("torch_tfckpt: TensorFlow checkpoints in PyTorch, without TensorFlow.")
    model = load_into_module()
    list_and_verify()
    convert()
    save_and_load(model)
    train_and_resume()
    print(f"\nDone. The written files are in {OUTPUT}/.")


if __name__ == "__main__":
    main()
