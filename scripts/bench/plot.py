#!/usr/bin/env python3
"""Draw the plots of README.md and docs/benchmarks.md, and fill in the tables there, from the newest results kept here.

    .venv/bin/python scripts/bench/plot.py            after `scripts/install bench`
    .venv/bin/python scripts/bench/plot.py --check    exit 1 if a plot or a table is not what the results give

`python scripts/bench --all` writes the results and calls this. The SVG files have no date and no random ids: equal
results, equal files.
"""

import argparse
import io
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import TIMES, Outcome, markdown, number, outcomes, size_text

ROOT: Final = Path(__file__).resolve().parent.parent.parent
RESULTS: Final = ROOT / "scripts" / "bench" / "results"
IMAGES: Final = ROOT / "docs" / "images"
PAGE: Final = ROOT / "docs" / "benchmarks.md"
_OURS, _PEERS, _TARGET = "#1f6f8b", "#b8c4c9", "#c44536"
_COLORS: Final = (_OURS, "#c9a227", "#8a8f98", "#5b8c5a")

# What the two panels of README's plot show: row, and names in the order of the bars. The first is ours.
PANELS: Final[Mapping[str, Sequence[str]]] = {
    "save": ("save_file, synced", "safetensors save_file", "torch.save", "TensorFlow SaveV2"),
    "load": ("load_file", "torch.load", "TensorFlow RestoreV2"),
}
# The panels of the plot of curves: name in the JSON -> label of the x axis, label of the y axis.
CURVES: Final[Mapping[str, tuple[str, str]]] = {
    "save by size of a tensor": ("size of a tensor", "save, GB/s"),
    "load by size of a tensor": ("size of a tensor", "load, GB/s"),
    "by number of tensors": ("number of tensors", "us per tensor"),
    "by threads": ("threads", "GB/s"),
}


def newest() -> dict[str, Any]:
    """Return the newest results of `--all`."""
    content: dict[str, Any] = json.loads(max(RESULTS.glob("*-all.json")).read_text(encoding="utf-8"))
    return content


def throughput(content: dict[str, Any]) -> Figure:
    """GB/s of a save and a load of the state."""
    figure = Figure(figsize=(8.4, 2.2), layout="constrained")
    for axes, (row, names) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        table = next(each for each in content["tables"] if each["row"] == row)
        seconds = {name: table["seconds"][name] for name in names if name in table["seconds"]}
        speeds = {name: table["bytes"][name] / statistics.median(taken) / 1e9 for name, taken in seconds.items()}
        colors = [_OURS, *[_PEERS] * (len(speeds) - 1)]
        bars = axes.barh(list(speeds), list(speeds.values()), color=colors)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel("GB/s, more is better")
        state = f"{size_text(content['settings']['mib'])} in {content['settings']['tensors']} tensors"
        axes.set_title(f"{row} {state}", fontsize=9, loc="left")
        axes.set_xlim(0, max(speeds.values()) * 1.15)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves(content: dict[str, Any]) -> Figure:
    """Speed by the size of a tensor, by the number of tensors, by threads: medians, and the range as a band."""
    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    for axes, (curve, (x_label, y_label)) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        lines = content["curves"][curve]
        for (name, points), color in zip(lines.items(), _COLORS, strict=False):
            at, median, lowest, highest = zip(*points, strict=True)
            axes.plot(at, median, "o-", label=name, color=color, markersize=3.5)
            axes.fill_between(at, lowest, highest, color=color, alpha=0.2, linewidth=0)
        axes.set_ylim(0, 1.3 * max(point[1] for points in lines.values() for point in points))
        _label_axes(axes, x_label, y_label, sorted({point[0] for points in lines.values() for point in points}))
    return figure


def _label_axes(axes: Axes, x_label: str, y_label: str, at: list[float]) -> None:
    axes.set_xscale("log", base=2 if x_label == "threads" else 10)
    labels = [size_text(each / 2**20) if x_label.startswith("size") else f"{each:,}" for each in at]
    axes.set_xticks(at, labels, fontsize=7, rotation=30 if len(at) > 5 else 0)
    axes.minorticks_off()
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def ratios(content: dict[str, Any]) -> Figure:
    """All ratios: how many times as fast as the peer, with target and floor."""
    shown = [row for row in outcomes(content) if row.unit == TIMES and row.measured is not None]
    figure = Figure(figsize=(8.4, 0.8 + 0.2 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(shown):
        assert row.measured is not None
        median, lowest, highest = row.measured
        axes.plot([lowest, highest], [at, at], color=_PEERS, linewidth=5, solid_capstyle="butt", zorder=1)
        axes.plot([median], [at], "o", color=_OURS, markersize=5, zorder=3)
        if row.target is not None:
            axes.plot([row.target], [at], "|", color=_TARGET, markersize=10, markeredgewidth=2, zorder=2)
        if row.floor_reaches is not None:
            axes.plot([row.floor_reaches], [at], "o", color=_OURS, markersize=5, fillstyle="none", zorder=2)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["0.25x", "0.5x", "1x", "2x", "4x", "8x"])
    axes.minorticks_off()
    axes.set_yticks(range(len(shown)), [f"{row.ours} / {row.against}" for row in shown], fontsize=6.5)
    axes.invert_yaxis()
    axes.set_xlabel(
        "times as fast: median and range (dot, band), target (red), what a floor would reach (circle)", fontsize=8
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def svg_of(figure: Figure) -> bytes:
    """Return the same bytes for the same figure."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "torch_tfckpt", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return b"\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + b"\n"


def run_text(content: dict[str, Any]) -> str:
    """Return one sentence on the machine and the settings of the run."""
    machine, settings = content["machine"], content["settings"]
    versions = machine["versions"]
    memory = round(int(machine["memory"].split()[0]) / 2**20)
    tensorflow = versions["tensorflow-cpu"]
    return (
        f"{'Quick run (`--quick`) with small sizes' if settings['quick'] else 'Run'} of {machine['time'][:10]}: "
        f"{machine['cores']} cores of {machine['cpu']}, {memory} GiB of memory, Linux {machine['kernel']}, Python "
        f"{machine['python']}, torch {versions['torch']}, safetensors {versions['safetensors']}, TensorFlow "
        f"{tensorflow}; a state of {size_text(settings['mib'])} in {settings['tensors']} tensors, "
        f"{settings['tiny']:,} tiny tensors, {settings['rounds']} rounds; files in `{settings['dir']}`; load average "
        f"before the run {machine['load_average'][0]:.1f}.\n"
    )


def missed_text(rows: Sequence[Outcome]) -> str:
    """Return a list of the targets that were not reached."""
    lines = []
    for row in rows:
        if row.met is False:
            assert row.measured is not None
            found, target = number(row.measured.median, row.unit), number(row.target or 0, row.unit)
            floor = f"; {row.floor} would reach {number(row.floor_reaches, row.unit)}" if row.floor_reaches else ""
            lines.append(f"- {row.work}: {row.ours} against {row.against}: {found}, target {target}{floor}\n")
    return "".join(lines) or "All targets were reached.\n"


def page_of(content: dict[str, Any], page: str) -> str:
    """Return the page with its generated parts filled in."""
    rows = outcomes(content)
    parts = {
        "run": run_text(content),
        "speed": markdown(row for row in rows if row.unit == TIMES),
        "memory": markdown(row for row in rows if row.unit != TIMES),
        "missed": missed_text(rows),
    }
    for name, text in parts.items():
        pattern = re.compile(rf"(?<=<!-- begin {name} -->\n).*?(?=<!-- end {name} -->)", re.DOTALL)
        page, count = pattern.subn(lambda _, text=text: text, page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{PAGE}: expected one part <!-- begin {name} -->, found {count}")
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args(arguments).check
    content = newest()
    wanted = {
        IMAGES / "speed.svg": svg_of(throughput(content)),
        IMAGES / "ratios.svg": svg_of(ratios(content)),
        IMAGES / "curves.svg": svg_of(curves(content)),
        PAGE: page_of(content, PAGE.read_text(encoding="utf-8")).encode(),
    }
    stale = [path for path, content in wanted.items() if not path.is_file() or path.read_bytes() != content]
    for path in stale:
        if not check:
            path.write_bytes(wanted[path])
        finding = "not what the results give; run scripts/bench/plot.py" if check else "written"
        print(f"{path.relative_to(ROOT)}: {finding}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
