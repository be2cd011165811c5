"""What every benchmark is given: sizes, where files are written, the report."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from peers import TensorFlow, has_tensorflow
from report import Report, size_text
from workload import large, tiny

ROOT: Final = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Sizes:
    """How much is saved and loaded."""

    mib: int  # size of the state
    tensors: int  # number of its tensors
    tiny: int  # number of tensors of ten elements
    rounds: int

    @property
    def few_rounds(self) -> int:
        """Rounds of the rows that take long; with all rounds `--all` would take a quarter of an hour."""
        return min(3, self.rounds)


FULL: Final = Sizes(mib=1024, tensors=64, tiny=100_000, rounds=5)
NO_GPU: Final = "no GPU here"
QUICK: Final = Sizes(mib=64, tensors=64, tiny=5_000, rounds=3)


@dataclass(frozen=True)
class Bench:
    """One run of the benchmarks."""

    report: Report
    sizes: Sizes
    directory: Path
    seed: int = 0
    tensorflow_wanted: bool = True
    large_directory: Path | None = None  # for files of 16 times the state; None: no such files

    @contextmanager
    def scratch(self, directory: Path | None = None) -> Iterator[Path]:
        """Create a new folder for files, by default in the directory of this run, and remove it at the end."""
        with tempfile.TemporaryDirectory(prefix="tfckpt-bench-", dir=directory or self.directory) as folder:
            yield Path(folder)

    @property
    def has_tensorflow(self) -> bool:
        """Whether TensorFlow takes part."""
        return self.tensorflow_wanted and has_tensorflow()

    @contextmanager
    def tensorflow(self, kind: str, *arguments: object) -> Iterator[TensorFlow | None]:
        """Start TensorFlow's process with a workload prepared; None if it does not take part."""
        if not self.has_tensorflow:
            yield None
            return
        with TensorFlow(kind, *arguments) as process:
            yield process

    def large(self, mib: int | None = None, count: int | None = None) -> dict[str, torch.Tensor]:
        """Return the state: a few large tensors."""
        arrays = large(mib or self.sizes.mib, count or self.sizes.tensors, self.seed)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def tiny(self, count: int | None = None) -> dict[str, torch.Tensor]:
        """Return many tensors of ten elements."""
        arrays = tiny(count or self.sizes.tiny, self.seed)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def describe(self, mib: int | None = None) -> str:
        """Return "1 GiB in 64 tensors"."""
        return f"{size_text(mib or self.sizes.mib)} in {self.sizes.tensors} tensors"
