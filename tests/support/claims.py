"""What every answer to a bad checkpoint must be: an error that helps, or the right values; soon, in bounded memory."""

import contextlib
import multiprocessing
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
from hostile import GOOD

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.check import Verification
from torch_tfckpt.values import Value

SECONDS: Final = 20.0  # of processor time: no bad file of these sizes may keep a reader busy for longer
MEBIBYTE: Final = 1 << 20
ALLOWANCE: Final = 768 * MEBIBYTE  # of address space: threads' stacks and arenas take most of it
BASE: Final = 96 * MEBIBYTE  # what reading anything takes: scratch buffers, proto classes, numpy
# A mend is an order to the reader of the text, or what there is instead of a name that is not. New verbs may be added;
# "the file is damaged" alone is none.
_MEND: Final = re.compile(
    r"(^|[.;:,]\s|\bor |\band |then )"
    r"(copy|run|name|read|open|pass|give|take|use|make|choose|write|leave|convert|save|restore|mend|delete|remove|rename|"
    r"ask|load|point|raise|move|replace|`tfckpt ls)\b|\bthere (is|are)\b",
    re.IGNORECASE,
)


def assert_helps(error: BaseException, *places: str) -> None:
    """The text says the place (one of `places`), the finding and the mend, in one readable piece."""
    assert isinstance(error, tfckpt.CheckpointError), f"{type(error).__name__} is no CheckpointError: {error}"
    text = " ".join([str(error), *getattr(error, "__notes__", [])])
    assert any(place in text for place in places), f"no place ({' or '.join(places)}): {text}"
    rest = text
    for place in places:
        rest = rest.replace(place, "")
    assert len(rest) > 25, f"no finding: {text}"
    assert _MEND.search(text), f"no mend: {text}"
    assert len(text) < 4000, f"{len(text)} characters of text: {text[:200]}"
    broken = [char for char in text if not char.isprintable()]
    assert not broken, f"unprintable {broken[:5]} in: {text[:500]!r}"


@contextlib.contextmanager
def within(seconds: float = SECONDS) -> Iterator[None]:
    """Fails where the body takes more processor time, or hangs: in a loop or a system call that would never end.

    The clock only decides about the latter, with much patience: it depends on what else runs here.
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
    """Whether two values are equal in dtype, shape and every bit."""
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
    """Same names, and the same values to the bit."""
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert same(value, got[name]), f"{name!r}: {got[name]} instead of {value}"


class Survey(NamedTuple):
    """What a reader says of a checkpoint that may be damaged."""

    refused: tfckpt.CheckpointError | None  # why it cannot be opened
    read: dict[str, Value]
    failed: dict[str, tfckpt.CheckpointError]
    verification: Verification | None

    @property
    def detected(self) -> bool:
        """Whether the damage, if any, is known to whoever reads everything or runs a check."""
        return (
            self.refused is not None or bool(self.failed) or self.verification is None or bool(self.verification.damage)
        )


def survey(path: Path | str, names: Mapping[str, object]) -> Survey:
    """Opens, reads every one of `names` in three ways, and checks. Anything but a CheckpointError passes through."""
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
            assert failed, "get_tensors refuses what get_tensor reads"
        else:
            assert not failed, "get_tensors reads what get_tensor refuses"
            assert_right(together, read)
        for name in read:
            assert same(read[name], reader.map_tensor(name))
        verification = reader.check()
    return Survey(None, read, failed, verification)


def assert_never_wrong(found: Survey, expected: Mapping[str, object]) -> None:
    """Every tensor read equals the original, and the check agrees with the reads."""
    for name, value in found.read.items():
        assert same(expected[name], value), f"{name!r} was read as {value}, silently"
    if found.verification is not None:
        for name in found.verification.good:
            assert name not in expected or name in found.read, f"check() calls {name!r} good: {found.failed[name]}"
        if found.failed:
            assert found.verification.damage, f"check() finds nothing, reading fails: {found.failed}"


class Outcome(NamedTuple):
    """What a confined call did."""

    error: str  # "Type: text", "" where it returned
    is_checkpoint_error: bool
    result: object
    grown: int  # bytes by which resident memory grew at its highest


def confined(call: Callable[..., object], *arguments: object, limit: int, seconds: float = SECONDS) -> Outcome:
    """Runs `call` in a process of its own that cannot get more than `limit` bytes of address space beyond its start.

    A module-level function, with arguments and a result that can be pickled.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch_tfckpt", "claims"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_confined, args=(there, call, arguments, limit))
    process.start()
    there.close()
    try:
        # The first process also waits for the import of torch.
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
    """Seconds of processor time: unlike those of the clock, they do not depend on what else runs here."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def check_neighbours(path: Path, bad: str = "bad") -> None:
    """The sound tensors are listed, described, read and reported as good, whatever stands between them."""
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
