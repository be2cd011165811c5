"""Assertions for damaged checkpoints: a helpful error or the right values, in bounded time and memory."""

import contextlib
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

import numpy as np
import torch
from forked_processes import forkserver
from hostile import GOOD

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.check import Verification
from torch_tfckpt.values import Value

SECONDS: Final = 20.0  # CPU time: no damaged file of these sizes may take longer
MEBIBYTE: Final = 1 << 20
ALLOWANCE: Final = 768 * MEBIBYTE  # address space: most of it for threads' stacks and arenas
BASE: Final = 96 * MEBIBYTE  # needed to read anything: scratch buffers, proto classes, numpy
# A hint is an instruction for the reader of the message, or a list of what exists instead of a missing name. New verbs
# may be added; "the file is damaged" alone is not a hint.
_HINT: Final = re.compile(
    r"(^|[.;:,]\s|\bor |\band |then )"
    r"(copy|run|name|read|open|pass|give|take|use|make|choose|write|leave|convert|save|restore|fix|omit|delete|remove|rename|"
    r"ask|load|point|raise|move|replace|`tfckpt ls)\b|\bthere (is|are)\b",
    re.IGNORECASE,
)


def assert_helps(error: BaseException, *places: str) -> None:
    """Assert that the message has the place (one of `places`), the finding and a hint, and is readable."""
    assert isinstance(error, tfckpt.CheckpointError), f"{type(error).__name__} is not a CheckpointError: {error}"
    text = " ".join([str(error), *getattr(error, "__notes__", [])])
    assert any(place in text for place in places), f"no place ({' or '.join(places)}): {text}"
    rest = text
    for place in places:
        rest = rest.replace(place, "")
    assert len(rest) > 25, f"no finding: {text}"
    assert _HINT.search(text), f"no hint: {text}"
    assert len(text) < 4000, f"{len(text)} characters of text: {text[:200]}"
    broken = [char for char in text if not char.isprintable()]
    assert not broken, f"unprintable {broken[:5]} in: {text[:500]!r}"


@contextlib.contextmanager
def within(seconds: float = SECONDS) -> Iterator[None]:
    """Fail if the body takes more CPU time, or hangs in a loop or a system call that would never end.

    The wall-clock limit is only for the latter, and is generous, because it depends on what else is running.
    """

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"not done within {8 * seconds} seconds")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, 8 * seconds)
    started = _cpu()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert _cpu() - started < seconds, f"{_cpu() - started:.1f} seconds of processor time"


def same(one: object, other: object) -> bool:
    """Return whether two values are equal in dtype, shape and every bit."""
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return torch.equal(
            one.detach().contiguous().reshape(-1).view(torch.uint8),
            other.detach().contiguous().reshape(-1).view(torch.uint8),
        )
    assert isinstance(one, np.ndarray) and one.dtype == object
    return (
        isinstance(other, np.ndarray)
        and other.dtype == object
        and one.shape == other.shape
        and one.reshape(-1).tolist() == other.reshape(-1).tolist()
    )


def assert_right(got: Mapping[str, object], expected: Mapping[str, object]) -> None:
    """Assert that names are equal, and values equal to the bit."""
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert same(value, got[name]), f"{name!r}: {got[name]} instead of {value}"


class Survey(NamedTuple):
    """The results of reading a checkpoint that may be damaged."""

    refused: tfckpt.CheckpointError | None  # why it cannot be opened
    read: dict[str, Value]
    failed: dict[str, tfckpt.CheckpointError]
    verification: Verification | None

    @property
    def detected(self) -> bool:
        """Whether reading everything, or a check, detects the damage."""
        return (
            self.refused is not None or bool(self.failed) or self.verification is None or bool(self.verification.damage)
        )


def survey(path: Path | str, names: Mapping[str, object]) -> Survey:
    """Open, read every one of `names` in three ways, and check. Anything but a CheckpointError propagates."""
    try:
        reader = tfckpt.load_checkpoint(path)
    except tfckpt.CheckpointError as error:
        return Survey(error, {}, {}, None)
    read: dict[str, Value] = {}
    failed: dict[str, tfckpt.CheckpointError] = {}
    with reader:
        for name in names:
            try:
                read[name] = reader.get_tensor(name)
            except tfckpt.CheckpointError as error:
                failed[name] = error
        try:
            together = reader.get_tensors(list(names))
        except tfckpt.CheckpointError:
            assert failed, "get_tensors rejects what get_tensor reads"
        else:
            assert not failed, "get_tensors reads what get_tensor rejects"
            assert_right(together, read)
        for name in read:
            assert same(read[name], reader.map_tensor(name))
        verification = reader.check()
    return Survey(None, read, failed, verification)


def assert_never_wrong(found: Survey, expected: Mapping[str, object]) -> None:
    """Assert that every tensor read equals the original, and that the check agrees with the reads."""
    for name, value in found.read.items():
        assert same(expected[name], value), f"{name!r} was read as {value}, silently"
    if found.verification is not None:
        for name in found.verification.good:
            assert name not in expected or name in found.read, f"check() reports {name!r} as good: {found.failed[name]}"
        if found.failed:
            assert found.verification.damage, f"check() reports nothing, but reading fails: {found.failed}"


class Outcome(NamedTuple):
    """The result of a confined call."""

    error: str  # "Type: message", "" if it returned
    is_checkpoint_error: bool
    result: object
    grown: int  # peak growth of resident memory in bytes


def confined(call: Callable[..., object], *arguments: object, limit: int, seconds: float = SECONDS) -> Outcome:
    """Run `call` in its own process, limited to `limit` more bytes of address space than at its start.

    REQUIRES: a module-level function, with arguments and a result that can be pickled.
    """
    context = forkserver()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_confined, args=(there, call, arguments, limit))
    process.start()
    there.close()
    try:
        # Includes the time to import torch.
        assert here.poll(seconds + 60), f"{call.__name__}{arguments}: no answer"
        try:
            outcome, took = here.recv()
        except EOFError:
            process.join()
            raise AssertionError(f"{call.__name__}{arguments}: the process died ({process.exitcode})") from None
    finally:
        process.kill()
        process.join()
    assert isinstance(outcome, Outcome)
    assert took < seconds, f"{call.__name__}{arguments}: {took:.1f} seconds"
    return outcome


def _confined(pipe: Connection, call: Callable[..., object], arguments: tuple[object, ...], limit: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + limit
    before = _peak()
    started = _cpu()
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    try:
        result, error, expected = call(*arguments), "", True
    except BaseException as caught:
        result, error, expected = None, f"{type(caught).__name__}: {caught}", isinstance(caught, tfckpt.CheckpointError)
    took = _cpu() - started
    pipe.send((Outcome(error[:2000], expected, result, _peak() - before), took))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu() -> float:
    """CPU seconds: unlike wall-clock time, they do not depend on what else is running."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def check_neighbours(path: Path, bad: str = "bad") -> None:
    """Assert that the good tensors are listed, described, read and reported as good, despite the bad ones."""
    with within(), tfckpt.load_checkpoint(path) as reader:
        assert set(reader.keys()) == {*GOOD, bad}
        assert {name: shape for name, shape in reader.get_variable_to_shape_map().items() if name != bad} == {
            name: list(value.shape) for name, value in GOOD.items()
        }
        for line in ("aaa/good (DT_FLOAT) [3]", "zzz/good (DT_FLOAT) [2]"):
            assert line in reader.debug_string()
        assert_right({name: reader.get_tensor(name) for name in GOOD}, GOOD)
        assert_right(reader.get_tensors(list(GOOD)), GOOD)
        assert_right({name: reader.map_tensor(name) for name in GOOD}, GOOD)
        assert set(GOOD) <= set(reader.check().good)
    assert_right(tfckpt.load_file(path, names=GOOD), GOOD)
