#!/usr/bin/env python3
"""Draw the plots of README.md and docs/benchmarks.md, and fill in the table there, from the results kept here.

    .venv/bin/python scripts/bench/plot.py            after `scripts/install bench`
    .venv/bin/python scripts/bench/plot.py --check    exit 1 if a plot or the table is not what the results give

Of each benchmark the newest JSON counts. The SVG files have no date and no random ids: equal results, equal files.
"""

import argparse
import io
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT: Final = Path(__file__).resolve().parent.parent.parent
RESULTS: Final = ROOT / "scripts" / "bench" / "results"
IMAGES: Final = ROOT / "docs" / "images"
PAGE: Final = ROOT / "docs" / "benchmarks.md"
_TABLE: Final = re.compile(r"(?<=<!-- begin table -->\n).*?(?=<!-- end table -->)", re.DOTALL)
_OURS, _PEERS = "#1f6f8b", "#b8c4c9"


# What the two panels of the first plot show: benchmark, title, and name -> label.
PANELS: Final[Sequence[tuple[str, str, Mapping[str, str]]]] = (
    ("save_throughput", "save 1024 MiB", {
        "tfckpt.save_file (fsync)": "torch_tfckpt (synced)", "safetensors save_file": "safetensors",
        "torch.save": "torch.save", "TensorFlow SaveV2": "TensorFlow",
    }),
    ("load_throughput", "load 1024 MiB in 64 tensors", {
        "tfckpt.load_file (verified)": "torch_tfckpt (verified)", "torch.load": "torch.load",
        "TensorFlow RestoreV2": "TensorFlow",
    }),
)  # fmt: skip


class Work(NamedTuple):
    """One kind of work, and what ours is compared with."""

    work: str
    benchmark: str
    title: str  # how the title of its table begins
    ours: str
    peers: Mapping[str, str]  # name in the table -> label


_TF_WRITE, _TF_READ = {"tf.train.Checkpoint.write": "TensorFlow"}, {"tf.train.Checkpoint.read": "TensorFlow"}
WORK: Final = (
    Work("save 1 GiB, 64 tensors, synced", "save_throughput", "save 1024 MiB", "tfckpt.save_file (fsync)", {
        "safetensors save_file": "safetensors", "TensorFlow SaveV2": "TensorFlow",
        "floor: pwrite + fsync": "bare `pwrite` and `fsync`",
    }),
    Work("the same, not synced", "save_throughput", "save 1024 MiB", "tfckpt, no fsync", {
        "safetensors save_file": "safetensors", "torch.save": "torch.save",
    }),
    Work("load it, verified", "load_throughput", "load 1024 MiB in 64 tensors", "tfckpt.load_file (verified)", {
        "torch.load": "torch.load", "TensorFlow RestoreV2": "TensorFlow",
        "floor: preadv into fresh memory": "bare `preadv` into fresh memory",
        "safetensors load_file, all pages touched": "safetensors, mapped pages",
    }),
    Work("load it lazily, use one tensor", "load_throughput", "load 1024 MiB in 64 tensors lazily",
         "tfckpt.load_file(mmap=True, verify=False)", {"safetensors load_file": "safetensors"}),
    Work("check it at rest", "load_throughput", "check", "reader.check()", {
        "floor: crc32c over memory, all cores": "CRC-32C of memory, all cores",
    }),
    Work("100,000 tiny tensors: save", "many_tensors", "save", "tfckpt.save_file", {"TensorFlow SaveV2": "TensorFlow"}),
    Work("the same: load", "many_tensors", "load", "tfckpt.load_file", {"TensorFlow RestoreV2": "TensorFlow"}),
    Work("the same: list", "many_tensors", "list", "tfckpt.list_variables", {
        "TensorFlow list_variables": "TensorFlow",
    }),
    Work("sharded save, 512 MiB, 4 files, synced", "sharded_save", "save 512 MiB", "Saver(sharded=True).save (fsync)", {
        "DCP save (fsync)": "torch.distributed.checkpoint",
        "floor: pwrite + fsync, 4 files": "bare `pwrite` and `fsync`",
    }),
    Work("`Checkpoint`, 512 MiB: write", "object_checkpoints", "save 64", "tfckpt.Checkpoint.write", _TF_WRITE),
    Work("the same: read", "object_checkpoints", "restore 64", "tfckpt.Checkpoint.read", _TF_READ),
    Work("`Checkpoint`, 20,000 tensors: write", "object_checkpoints", "save 20000", "tfckpt.Checkpoint.write", {
        **_TF_WRITE, "tfckpt.Saver.save": "our own `Saver`",
    }),
    Work("the same: read", "object_checkpoints", "restore 20000", "tfckpt.Checkpoint.read", {
        **_TF_READ, "tfckpt.Saver.restore": "our own `Saver`",
    }),
    Work("stall by `save_async`, 512 MiB", "async_stall", "training stops", "Saver.save_async", {
        "torch.save": "torch.save", "DCP async_save, memory kept": "torch.distributed.checkpoint",
        "floor: copy into memory that is there": "a bare copy",
    }),
)  # fmt: skip


def newest(benchmark: str) -> dict[str, Any]:
    """The newest report of a benchmark."""
    path = max(RESULTS.glob(f"*-{benchmark}.json"))
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def table_of(benchmark: str, title: str) -> dict[str, Any]:
    """The table of a benchmark whose title begins so."""
    found: dict[str, Any] = next(each for each in newest(benchmark)["tables"] if each["title"].startswith(title))
    return found


class Row(NamedTuple):
    """One comparison: the median of its ratios, and how far they lie apart."""

    work: str
    peer: str
    median: float
    lowest: float
    highest: float


def rows() -> Iterator[Row]:
    """All comparisons of WORK."""
    for work, benchmark, title, ours, peers in WORK:
        found = {(each["ours"], each["peer"]): each for each in table_of(benchmark, title)["ratios"]}
        for peer, label in peers.items():
            ratio = found[ours, peer]
            yield Row(work, label, ratio["median"], ratio["lowest"], ratio["highest"])


def throughput() -> Figure:
    """GB/s of a save and a load of 1 GiB."""
    figure = Figure(figsize=(8.4, 2.2), layout="constrained")
    for axes, (benchmark, title, labels) in zip(figure.subplots(1, 2), PANELS, strict=True):
        table = table_of(benchmark, title)
        speeds = [table["bytes"][name] / statistics.median(table["seconds"][name]) / 1e9 for name in labels]
        colors = [_OURS, *[_PEERS] * (len(labels) - 1)]
        bars = axes.barh(list(labels.values()), speeds, color=colors)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel("GB/s, more is better")
        axes.set_title(f"{title.partition(' ')[0]} 1 GiB in 64 tensors", fontsize=10, loc="left")
        axes.set_xlim(0, max(speeds) * 1.15)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def ratios() -> Figure:
    """All comparisons: how many times as fast as the peer."""
    figure = Figure(figsize=(8.4, 6.4), layout="constrained")
    axes = figure.subplots()
    shown = list(rows())
    for at, row in enumerate(shown):
        axes.plot([row.lowest, row.highest], [at, at], color=_PEERS, linewidth=5, solid_capstyle="butt", zorder=1)
        axes.plot([row.median], [at], "o", color=_OURS, zorder=2)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5x", "1x", "2x", "4x", "8x"])
    axes.minorticks_off()
    names = [f"{row.work} / {row.peer}".replace("`", "") for row in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the other: median, and lowest to highest round")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def svg_of(figure: Figure) -> bytes:
    """The same bytes for the same figure."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "torch_tfckpt", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return b"\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + b"\n"


def table_text() -> str:
    """The table of the page."""
    lines = ["| work | compared with | ours is |", "|---|---|---|"]
    lines += [
        f"| {work} | {peer} | {median:.2f}x ({low:.2f} to {high:.2f}) |" for work, peer, median, low, high in rows()
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    wanted = {
        IMAGES / "speed.svg": svg_of(throughput()),
        IMAGES / "ratios.svg": svg_of(ratios()),
        PAGE: _TABLE.sub(lambda _: table_text(), page).encode(),
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
