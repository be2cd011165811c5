"""TensorFlow in its own process, as a peer."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from timing import WrongResult

_PEER: Final = Path(__file__).with_name("tensorflow_peer.py")
# TensorFlow's C++ code reads it when loaded. oneDNN prints a notice to stderr unless it is off.
ENVIRONMENT: Final = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "0"}


def has_tensorflow() -> bool:
    """Return whether TensorFlow is installed, without importing it."""
    return importlib.util.find_spec("tensorflow") is not None


class TensorFlow:
    """Process that runs tensorflow_peer.py, with one workload prepared.

    It is started from that file rather than by multiprocessing, which would import the benchmark, and so torch,
    in the TensorFlow process.
    """

    def __init__(self, kind: str, *arguments: Any, environment: Mapping[str, str] = ENVIRONMENT) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.call("prepare", kind, list(arguments))

    def call(self, function: str, *arguments: Any) -> float:
        """Return its answer in seconds. Raises WrongResult if it ended instead; its stderr has the reason."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise WrongResult(f"TensorFlow: {function} failed, see above (exit status {self._process.wait()})")
        return float(json.loads(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
