"""TensorFlow as an oracle, in its own process.

Checkpoints are judged by code that does not know this package: the child process imports TensorFlow and neither torch
nor torch_tfckpt, so no descriptor pool, allocator or thread pool is shared. Values are sent as `RawTensor`.

    with TensorFlowProcess() as tensorflow:
        tensorflow.call("save_v2", prefix, {"x": np.float32(1)})
        (x,) = tensorflow.call("restore", prefix, ["x"])

Functions are those of tensorflow_side.py, or "module.function" of another module in this folder, for example
"tensorflow_objects.write_tree".
"""

import hashlib
import importlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Self

import numpy as np

# TensorFlow's C++ code reads these when it is loaded. oneDNN prints a message to stderr unless it is off.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "0"}
LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as bytes, so that dtypes that numpy lacks can be sent like any other."""

    dtype: str  # TensorFlow's name: "float32", "bfloat16", "float8_e4m3fn", "qint8", "int4", "string", "variant"
    shape: tuple[int, ...]
    # C-contiguous, little-endian; int4 and similar types take one byte per element. string: for each element, an 8-byte
    # little-endian length and the bytes. variant: the serialized TensorProto.
    data: bytes

    @classmethod
    def of(cls, value: Any) -> Self:
        """Convert a RawTensor, a torch tensor, or anything numpy makes an array of; object arrays contain bytes."""
        if isinstance(value, cls):
            return value
        if type(value).__module__.partition(".")[0] == "torch":
            # Not at the top: the TensorFlow process imports this module too, and must not import torch.
            import torch

            flat = value.detach().cpu().contiguous().reshape(-1)
            return cls(
                str(value.dtype).removeprefix("torch."), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
            )
        array = np.asarray(value)
        if array.dtype != object:
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            return cls(array.dtype.name, array.shape, little.tobytes())
        data = b"".join(len(element).to_bytes(LENGTH_BYTES, "little") + element for element in array.reshape(-1))
        return cls("string", array.shape, data)

    def strings(self) -> list[bytes]:
        """The elements of a string tensor, in row-major order."""
        elements, at = [], 0
        while at < len(self.data):
            start = at + LENGTH_BYTES
            at = start + int.from_bytes(self.data[at:start], "little")
            elements.append(self.data[start:at])
        return elements

    @property
    def sha256(self) -> str:
        """The hash for expected.json."""
        return hashlib.sha256(self.data).hexdigest()


class TensorFlowError(Exception):
    """An exception that a function raised inside the TensorFlow process; its traceback there is a note."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind  # class name, e.g. "NotFoundError"
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class TensorFlowProcessDied(Exception):
    """The TensorFlow process ended or was killed before it answered. The next call starts a new one."""


@dataclass(frozen=True, slots=True)
class Call:
    """One function of tests/support/tensorflow_side.py, or "module.function" of another module, with its arguments."""

    function: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a call: a value, or an error as strings, because TensorFlow's exceptions cannot be pickled."""

    value: Any = None
    error: tuple[str, str, str] | None = None  # class name, message, traceback

    def result(self) -> Any:
        """Return the value, or a TensorFlowError to raise."""
        if self.error is None:
            return self.value
        kind, message, trace = self.error
        error = TensorFlowError(kind, message)
        error.add_note(trace)
        return error


class TensorFlowProcess:
    """One child process with TensorFlow, started by the first call. Not thread-safe."""

    def __init__(self, timeout: float = 120.0) -> None:
        """`timeout`: seconds for one `call` or one `batch`, including the start of TensorFlow (3 s)."""
        self._timeout = timeout
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def call(self, function: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run one function; if it raises, raise a TensorFlowError."""
        (result,) = self.batch([Call(function, args, kwargs)])
        if isinstance(result, TensorFlowError):
            raise result
        return result

    def batch(self, calls: Sequence[Call]) -> list[Any]:
        """Run calls in order, in one round trip. The result of a failed call is its TensorFlowError.

        Raises:
            TensorFlowProcessDied: TensorFlow aborted (it does on some arguments) or did not answer in time.
        """
        connection = self._connect()
        try:
            connection.send(list(calls))
            if not connection.poll(self._timeout):
                raise self._death(f"gave no answer within {self._timeout:g} s")
            outcomes: list[Outcome] = connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._death("ended before it answered") from error
        return [outcome.result() for outcome in outcomes]

    def close(self) -> None:
        """End the child process. A later call starts a new one."""
        if self._connection is not None:
            # The child exits when the pipe is closed.
            self._connection.close()
        if self._process is not None:
            self._process.join(5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process.close()
        self._connection = self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _connect(self) -> Connection:
        if self._connection is None:
            # spawn, not fork: a forked child would have torch and the threads of the test runner.
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), name="tensorflow", daemon=True)
            self._process.start()
            theirs.close()
        return self._connection

    def _death(self, finding: str) -> TensorFlowProcessDied:
        assert self._process is not None
        self._process.join(1)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
        self.close()
        return TensorFlowProcessDied(f"TensorFlow process {finding} (exit status {status})")


def _serve(connection: Connection) -> None:
    """The child process: answer lists of calls until the pipe ends."""
    # Ctrl-C reaches the whole process group; the parent decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(ENVIRONMENT)
    importlib.import_module("tensorflow_side")  # now, so that the first call does not take longer
    while True:
        try:
            calls: list[Call] = connection.recv()
        except EOFError:
            return
        connection.send([_outcome(call) for call in calls])


def _outcome(call: Call) -> Outcome:
    module, _, function = call.function.rpartition(".")
    try:
        side = importlib.import_module(module or "tensorflow_side")
        return Outcome(value=getattr(side, function)(*call.args, **(call.kwargs or {})))
    except Exception as error:
        message = getattr(error, "message", None) or str(error)
        return Outcome(error=(type(error).__name__, message, traceback.format_exc()))
