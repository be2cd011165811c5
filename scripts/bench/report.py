"""What a run finds: the rows of the table, the points of the plots, the seconds of all rounds, as JSON and as text.

One `Outcome` is one row: a ratio of speeds ("x") with its range, or a number with a unit (MiB, us) that must stay below
its target. A comparison that could not be made is a row too, with the reason.
"""

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from timing import Comparison, Contender, Spread, ratio, run_interleaved, spread

_PACKAGES: Final = ("torch", "numpy", "crc32c", "protobuf", "safetensors", "tensorflow-cpu")
TIMES: Final = "x"  # the unit of ratios


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    row: str  # name for --only
    work: str
    ours: str
    against: str
    target: float | None = None
    aim: float | None = None
    unit: str = TIMES
    measured: Spread | None = None  # None: skipped
    floor: str = ""
    floor_reaches: float | None = None  # the ratio of the floor's speed to that of `against`
    skipped: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target or a measurement."""
        if self.target is None or self.measured is None:
            return None
        return self.measured.median >= self.target if self.unit == TIMES else self.measured.median <= self.target

    def cells(self) -> list[str]:
        """Return the row of the table in the order of HEADER."""
        verdict = {True: "yes", False: "no", None: ""}[self.met]
        floor = "" if self.floor_reaches is None else f"{number(self.floor_reaches, self.unit)}: {self.floor}"
        return [f"{self.work}: {self.ours}", self.against, self._target(), self._measured(), verdict, floor]

    def _target(self) -> str:
        if self.target is None:
            return ""
        at_least = number(self.target, self.unit)
        if self.unit != TIMES:
            return f"at most {at_least}"
        return at_least if self.aim is None else f"{at_least} (aim {number(self.aim, self.unit)})"

    def _measured(self) -> str:
        if self.measured is None:
            return f"skipped: {self.skipped}"
        median, lowest, highest = (number(value, self.unit) for value in self.measured)
        return median if lowest == highest else f"{median} ({lowest} to {highest})"


HEADER: Final = ["work: ours", "against", "target", "measured", "met", "a floor would reach"]


def number(value: float, unit: str) -> str:
    """Return a ratio as "1.25x", other numbers with a space before the unit."""
    return f"{value:.2f}x" if unit == TIMES else f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def size_text(mib: float) -> str:
    """Return "1 GiB", "64 MiB", "4 KiB"."""
    for unit, factor in (("GiB", 1 / 1024), ("MiB", 1)):
        if mib * factor >= 1:
            return f"{mib * factor:g} {unit}"
    return f"{mib * 1024:g} KiB"


def outcomes(content: dict[str, Any]) -> list[Outcome]:
    """Return the rows of a JSON report."""
    found = []
    for row in content["rows"]:
        measured = row["measured"] and Spread(*row["measured"])
        found.append(Outcome(**{**row, "measured": measured}))
    return found


def markdown(rows: Iterable[Outcome]) -> str:
    """Return the table of a page."""
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def aligned(rows: Iterable[Outcome]) -> str:
    """Return the table of a terminal."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in lines
    )


class Report:
    """Runs contenders, prints what they find, and keeps it for the table and the JSON."""

    def __init__(self, settings: dict[str, object], rounds: int) -> None:
        self._row = ""
        self._rounds = rounds
        self.rows: list[Outcome] = []
        self._content: dict[str, Any] = {"settings": settings, "machine": machine(), "tables": [], "curves": {}}
        print(f"{self._content['machine']['cpu']}, {os.cpu_count()} cores", flush=True)

    def begin(self, row: str) -> None:
        """Count what follows as results of a row."""
        self._row = row

    def race(
        self,
        work: str,
        contenders: Sequence[Contender],
        comparisons: Sequence[Comparison],
        *,
        rounds: int | None = None,
        warmups: int = 1,
    ) -> dict[str, list[float]]:
        """Run the contenders, report the comparisons, and return the seconds of every round."""
        rounds = rounds or self._rounds
        seconds = run_interleaved(contenders, rounds, warmups)
        print(f"\n{work}: median (lowest to highest) of {rounds} interleaved rounds")
        for name, _, moved in contenders:
            median, low, high = spread(seconds[name])
            speed = f"{moved / median / 1e9:8.2f} GB/s" if moved else ""
            print(f"  {name:<46} {median:9.4f} s  ({low:.4f} to {high:.4f}){speed}", flush=True)
        sizes = {contender.name: contender.bytes_moved for contender in contenders}
        self.keep({"work": work, "seconds": seconds, "bytes": sizes})
        for comparison in comparisons:
            self.compare(work, comparison, seconds)
        return seconds

    def compare(self, work: str, comparison: Comparison, seconds: dict[str, list[float]]) -> None:
        """Add the ratio of two contenders that have run; if one has not, that is the reason why it is skipped."""
        ours, peer, target, floor, aim = comparison
        missing = next((name for name in (ours, peer) if name not in seconds), None)
        if missing is not None:
            self._add(Outcome(self._row, work, ours, peer, target, aim, skipped=f"no {missing} here"))
            return
        reaches = ratio(seconds, floor, peer).median if floor in seconds and floor != peer else None
        self._add(
            Outcome(
                self._row, work, ours, peer, target, aim, measured=ratio(seconds, ours, peer),
                floor=floor or "", floor_reaches=reaches,
            )
        )  # fmt: skip

    def measure(
        self,
        work: str,
        ours: str,
        values: Sequence[float],
        unit: str,
        *,
        at_most: float | None,
        against: str,
        floor: tuple[str, float] | None = None,
    ) -> None:
        """Add a number with a unit, and the limit for it."""
        name, reaches = floor or ("", None)
        measured = spread(values)
        self._add(
            Outcome(
                self._row, work, ours, against, at_most, unit=unit, measured=measured, floor=name, floor_reaches=reaches
            )
        )

    def skip(self, work: str, ours: str, against: str, reason: str, target: float | None = None) -> None:
        """Add a row that cannot be measured here."""
        self._add(Outcome(self._row, work, ours, against, target, skipped=reason))

    def skip_all(self, work: str, comparisons: Iterable[Comparison], reason: str) -> None:
        """Add every comparison as a row that cannot be measured here."""
        for ours, peer, target, _, aim in comparisons:
            self._add(Outcome(self._row, work, ours, peer, target, aim, skipped=reason))

    def point(self, curve: str, at: float, values: Mapping[str, Sequence[float]]) -> None:
        """Add one point to each line of a plot: the measured values at a position on its x axis."""
        lines = self._content["curves"].setdefault(curve, {})
        for name, measured in values.items():
            lines.setdefault(name, []).append([at, *spread(measured)])

    def keep(self, table: dict[str, Any]) -> None:
        """Add measurements that are in no row to the JSON."""
        self._content["tables"].append({"row": self._row, **table})

    def _add(self, outcome: Outcome) -> None:
        self.rows.append(outcome)
        if outcome.skipped:
            print(f"  {outcome.ours} / {outcome.against}: skipped: {outcome.skipped}", flush=True)
            return
        _, against, target, measured, verdict, floor = outcome.cells()
        wanted = f"  target {target}: {'met' if verdict == 'yes' else 'NOT MET'}" if target else ""
        floor = f"  (floor {floor})" if floor else ""
        print(f"  {measured}  {outcome.ours} / {against}{wanted}{floor}", flush=True)

    def content(self) -> dict[str, Any]:
        """Return everything for the JSON."""
        return {**self._content, "rows": [asdict(row) for row in self.rows]}

    def write(self, path: Path) -> None:
        """Write the JSON."""
        path.write_text(json.dumps(self.content(), indent=1) + "\n")


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
