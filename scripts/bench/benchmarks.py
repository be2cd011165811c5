"""Measure speed and memory of saving and loading, beside TensorFlow, torch, safetensors, bare reads and writes.

    python scripts/bench --all --dir /dev/shm     everything; writes a JSON to scripts/bench/results and draws the plots
    python scripts/bench --all --quick            the same with small sizes, for a look; keeps nothing without --json
    python scripts/bench --only save load         some rows; --list names them
    python scripts/bench --all --dir /dev/shm --large-dir /data    16 GiB, too, on a disk

Every result is read back and compared before its time counts. Rows that cannot be measured are in the table with the
reason. Exit status: 1 if a result was wrong or a row failed, otherwise 0, also if a target is missed.
"""

import argparse
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, NamedTuple

import async_stall
import curves
import distributed_checkpoint
import gpu_restore
import graph_runs
import index_merge
import large_files
import load_throughput
import many_tensors
import object_checkpoints
import peak_memory
import rank_commit
import restore_in_place
import save_throughput
import sharded_save
from report import Report, aligned
from settings import FULL, QUICK, ROOT, Bench

RESULTS: Final = ROOT / "scripts" / "bench" / "results"


class Row(NamedTuple):
    """One row, or a few that share their setup."""

    question: str
    run: Callable[[Bench], None]
    extra: bool = False  # not part of --all


ROWS: Final[dict[str, Row]] = {
    "save": Row("save few large tensors", save_throughput.run),
    "load": Row("load them in a new process", load_throughput.in_new_process),
    "load-warm": Row("load them again and again", load_throughput.in_this_process),
    "restore": Row("restore into existing tensors", restore_in_place.run),
    "lazy": Row("load lazily, use one tensor", load_throughput.lazily),
    "verify": Row("verify at rest", load_throughput.at_rest),
    "tiny": Row("save, load and list many tiny tensors", many_tensors.run),
    "number": Row("cost per tensor, 10 to 1,000,000 tensors", many_tensors.by_number),
    "size": Row("speed by size of a tensor", curves.by_size),
    "threads": Row("speed by number of threads", curves.by_threads),
    "index-merge": Row("merge the indexes of many parts", index_merge.run),
    "ranks": Row("torch.distributed.checkpoint on two ranks", distributed_checkpoint.run),
    "commit": Row("agreement of many ranks on a save", rank_commit.run),
    "objects": Row("Checkpoint: save and restore by objects", object_checkpoints.run),
    "sharded": Row("one file for each device", sharded_save.run),
    "stall": Row("how long save_async stops training", async_stall.run),
    "memory": Row("peak memory", peak_memory.run),
    "16-gib": Row("16 GiB (needs --large-dir)", large_files.run),
    "gpu-save": Row("save from GPUs", sharded_save.on_gpus),
    "gpu-stall": Row("save_async from a GPU", async_stall.on_gpu),
    "gpu-restore": Row("restore to a GPU", gpu_restore.run),
    "graphs": Row("imported graphs in torch (not part of --all)", graph_runs.run, extra=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.list:
        print("\n".join(f"{name:<12} {row.question}" for name, row in ROWS.items()))
        return 0
    names = given.only or [name for name, row in ROWS.items() if not row.extra]
    sizes = QUICK if given.quick else FULL
    chosen = {name: getattr(given, name) for name in asdict(sizes) if getattr(given, name) is not None}
    sizes = replace(sizes, **chosen)
    settings = {
        "rows": names,
        "quick": given.quick,
        "dir": str(given.dir),
        "large_dir": given.large_dir and str(given.large_dir),
        "seed": given.seed,
        **asdict(sizes),
    }
    report = Report(settings, sizes.rounds)
    bench = Bench(report, sizes, given.dir, given.seed, not given.without_tensorflow, given.large_dir)
    path = given.json or (None if given.quick or given.only else RESULTS / f"{time.strftime('%Y-%m-%d')}-all.json")
    failed = []
    for name in names:
        if not run_row(name, ROWS[name], bench):
            failed.append(name)
        if path is not None:
            report.write(path)  # after every row, so that an interrupted run keeps what it has
    print(f"\n{aligned(report.rows)}")
    if path is not None:
        print(f"\n{path}")
    if path is not None and path.parent == RESULTS:
        draw()
    for name in failed:
        print(f"row {name} failed, see above", file=sys.stderr)
    return 1 if failed else 0


def run_row(name: str, row: Row, bench: Bench) -> bool:
    """Return whether a row ran or was skipped; a failure is reported, and does not end the other rows."""
    begin = time.perf_counter()
    bench.report.begin(name)
    print(f"\n== {name}: {row.question}", flush=True)
    try:
        row.run(bench)
    except Exception as error:
        traceback.print_exc()
        bench.report.skip(row.question, name, "", f"failed: {error}")
        return False
    print(f"== {name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return True


def draw() -> None:
    """Draw the plots and fill in the table of the page."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed; `scripts/install bench` installs it", file=sys.stderr)
        return
    import plot

    plot.main([])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="all rows; keeps the JSON and draws the plots unless --quick")
    what.add_argument("--only", nargs="+", metavar="ROW", choices=list(ROWS), help="some rows")
    what.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: a few minutes")
    parser.add_argument("--rounds", type=int, help="measured rounds, after one warm-up round")
    parser.add_argument("--mib", type=int, help="size of the state")
    parser.add_argument("--tensors", type=int, help="number of its tensors")
    parser.add_argument("--tiny", type=int, help="number of tiny tensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=ROOT.parent, help="directory for files; /dev/shm excludes the disk")
    parser.add_argument("--large-dir", type=Path, help="directory on a disk with 18 GiB for the row of 16 GiB")
    parser.add_argument("--json", type=Path, help="write the JSON to this file")
    parser.add_argument("--without-tensorflow", action="store_true", help="leave out TensorFlow, which starts slowly")
    return parser
