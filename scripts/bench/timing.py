"""Interleaved rounds, ratios between contenders, and the report of a benchmark.

Machines are shared and clocks drift, so absolute seconds mean little. All contenders run in turn, A B C A B C, and the
report compares two of them by the median, over the rounds, of the ratio within a round.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

ROOT: Final = Path(__file__).resolve().parent.parent.parent
_PACKAGES: Final = ("torch", "numpy", "crc32c", "protobuf", "safetensors", "tensorflow-cpu")

T = TypeVar("T")


class WrongResult(Exception):
    """A contender produced a wrong result; its time does not count."""


class Contender(NamedTuple):
    """One way to do the work."""

    name: str
    # Runs once and returns the seconds of the work alone; raises WrongResult if the result is wrong.
    measure: Callable[[], float]
    bytes_moved: int = 0  # for GB/s; 0 if not applicable


class Comparison(NamedTuple):
    """Two contenders, and the target for the ratio of their speeds."""

    ours: str
    peer: str
    at_least: float | None = None  # None: for information only


class Ratio(NamedTuple):
    """Result of a comparison."""

    comparison: Comparison
    median: float
    lowest: float
    highest: float

    @property
    def met(self) -> bool | None:
        wanted = self.comparison.at_least
        return None if wanted is None else self.median >= wanted


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that `work` took, and its result.

    The previous contender must not affect the time: its garbage is collected, and malloc's free memory is returned to
    the system, so that each contender allocates new memory, like a program that loads once.
    """
    gc.collect()
    give_back_memory()
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def give_back_memory() -> None:
    """Return malloc's free pages to the system; do nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def run_interleaved(contenders: Sequence[Contender], rounds: int, warmups: int = 1) -> dict[str, list[float]]:
    """Return the seconds of every round by name. Each round runs every contender once, in order."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(warmups + rounds):
        for contender in contenders:
            taken = contender.measure()
            if number >= warmups:
                seconds[contender.name].append(taken)
    return seconds


def ratios_of(comparisons: Sequence[Comparison], seconds: Mapping[str, Sequence[float]]) -> list[Ratio]:
    """Return the ratio of times, peer to ours, within each round; above 1 ours is faster."""
    found = []
    for comparison in comparisons:
        if comparison.ours not in seconds or comparison.peer not in seconds:
            continue  # excluded on the command line, or not installed
        pairs = zip(seconds[comparison.peer], seconds[comparison.ours], strict=True)
        ratios = [peer / ours for peer, ours in pairs]
        found.append(Ratio(comparison, statistics.median(ratios), min(ratios), max(ratios)))
    return found


class Report:
    """Prints the tables of one benchmark, and writes them as JSON."""

    def __init__(self, benchmark: str, options: argparse.Namespace) -> None:
        self._options = options
        self._content: dict[str, Any] = {
            "benchmark": benchmark,
            "settings": {
                name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
            },
            "machine": machine(),
            "tables": [],
        }
        print(f"{benchmark} on {self._content['machine']['cpu']}, {os.cpu_count()} cores", flush=True)

    def run(self, title: str, contenders: Sequence[Contender], comparisons: Sequence[Comparison]) -> None:
        """Run the contenders, and report their times and ratios."""
        seconds = run_interleaved(contenders, self._options.rounds)
        ratios = ratios_of(comparisons, seconds)
        print(f"\n{title}: median (lowest .. highest) of {self._options.rounds} interleaved rounds")
        for name, _, moved in contenders:
            median, low, high = statistics.median(seconds[name]), min(seconds[name]), max(seconds[name])
            speed = f"{moved / median / 1e9:8.2f} GB/s" if moved else ""
            print(f"  {name:<46} {median:9.4f} s  ({low:.4f} .. {high:.4f}){speed}")
        for (ours, peer, wanted), median, low, high in ratios:
            verdict = "" if wanted is None else f"  wanted {wanted:g}x: {'met' if median >= wanted else 'NOT MET'}"
            print(f"  {median:6.2f}x ({low:.2f} .. {high:.2f})  {ours} / {peer}{verdict}", flush=True)
        self.add(
            {
                "title": title,
                "seconds": seconds,
                "bytes": {contender.name: contender.bytes_moved for contender in contenders},
                "ratios": [
                    {**ratio.comparison._asdict(), "median": ratio.median, "lowest": ratio.lowest,
                     "highest": ratio.highest, "met": ratio.met}
                    for ratio in ratios
                ],
            }
        )  # fmt: skip

    def add(self, table: dict[str, Any]) -> None:
        """Add a table to the JSON."""
        self._content["tables"].append(table)

    def write(self) -> None:
        """Write the JSON to the path of `--json`."""
        if self._options.json:
            self._options.json.write_text(json.dumps(self._content, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return the properties of the machine that affect the numbers."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": _first_value("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory": _first_value("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions,
    }


def _first_value(path: str, key: str) -> str:
    """Return the first value of `key` in a file of "key : value" lines, or an empty string."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def parser(docstring: str | None, *, rounds: int = 7) -> argparse.ArgumentParser:
    """Return the options that all benchmarks share; the docstring of the benchmark is its help."""
    options = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=rounds, help="measured rounds, after one warm-up round")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--dir", type=Path, default=ROOT.parent, help="directory for files; /dev/shm excludes the disk"
    )
    options.add_argument("--json", type=Path, help="also write the report to this file")
    return options


@contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """Create a new folder in `directory`, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="tfckpt-bench-", dir=directory) as folder:
        yield Path(folder)
