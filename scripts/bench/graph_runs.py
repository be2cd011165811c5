"""How fast does an imported graph run in torch, compared with TensorFlow?

Setup:    SavedModels that Keras exports with random weights: MobileNetV2 and ResNet50 at 224 x 224, batch 4, and two
          LSTMs of 20 steps, batch 16. One thread in each process; TensorFlow uses oneDNN, its default.
Compare:  imported.run (eager torch), and TensorFlow's call of the loaded signature. The first call, which builds the
          module, is the warm-up.
Reports:  CPU seconds per call: other users of the machine change them less than the time of the clock.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graph_models import CALLS, INPUTS
from peers import TensorFlow
from settings import Bench
from timing import Comparison, Contender, WrongResult

import torch_tfckpt as tfckpt

OURS, THEIRS = "imported.run", "TensorFlow signature"
# TensorFlow as it runs by default: with oneDNN.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "1"}
TARGETS = {"mobilenet_v2": 1.6, "resnet50": 1.6, "lstm": 3.0}


def run(bench: Bench) -> None:
    """Row "graphs"."""
    if not bench.has_tensorflow:
        bench.report.skip("run an imported graph", OURS, THEIRS, "no TensorFlow here, which exports the models")
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, target in TARGETS.items():
            with (
                bench.scratch() as folder,
                TensorFlow("graph", name, str(folder), environment=ENVIRONMENT) as tensorflow,
            ):
                contenders = [
                    Contender(OURS, ours(name, folder)),
                    Contender(THEIRS, lambda peer=tensorflow: peer.call("run_graph")),  # type: ignore[misc]
                ]
                shape = " x ".join(map(str, INPUTS[name]))
                comparisons = [Comparison(OURS, THEIRS, at_least=1 / target)]
                bench.report.race(f"run {name}, input {shape}, CPU seconds", contenders, comparisons)
    finally:
        torch.set_num_threads(threads)


def ours(name: str, folder: Path) -> Callable[[], float]:
    """Return what measures the CPU seconds of one call."""
    imported = tfckpt.import_meta_graph(folder / "model")
    signature = imported.signatures["serving_default"]
    (given,), (result,) = signature.inputs.values(), signature.outputs.values()
    feeds: dict[str, Any] = {given.name: torch.from_numpy(np.load(folder / "input.npy"))}
    expected = torch.from_numpy(np.load(folder / "output.npy"))

    def measure() -> float:
        begin = time.process_time()
        for _ in range(CALLS[name]):
            found = imported.run(result.name, feeds)
        seconds = (time.process_time() - begin) / CALLS[name]
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()):
            raise WrongResult(f"{name}: the outputs differ from TensorFlow's")
        return seconds

    return measure
