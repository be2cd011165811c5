"""scripts/bench: contenders run in turn, wrong results never count, and every row that is listed is in the report."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fresh
import pytest
from benchmarks import ROWS, Row, main, run_row
from report import Outcome, Report, aligned, markdown, outcomes, size_text
from settings import NO_GPU, QUICK, Bench
from timing import Comparison, Contender, Spread, WrongResult, ratio, run_interleaved

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--mib", "2", "--tensors", "4", "--tiny", "20", "--rounds", "1"]


def taking(seconds: float, calls: list[float]) -> Callable[[], float]:
    """A measurement that always gives the same seconds."""

    def measure() -> float:
        calls.append(seconds)
        return seconds

    return measure


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Report({}, rounds=3), QUICK, tmp_path)


def test_contenders_run_in_turn() -> None:
    """Each round runs every contender once; the warm-up round does not count."""
    calls: list[float] = []
    contenders = [Contender("a", taking(1, calls)), Contender("b", taking(2, calls))]
    assert run_interleaved(contenders, rounds=2) == {"a": [1, 1], "b": [2, 2]}
    assert calls == [1, 2] * 3


def test_ratios_are_taken_within_a_round() -> None:
    """A slow round of both changes no ratio; above 1 ours is faster."""
    seconds = {"ours": [1.0, 10.0, 2.0], "theirs": [2.0, 20.0, 2.0]}
    assert ratio(seconds, "ours", "theirs") == Spread(2.0, 1.0, 2.0)


def test_a_row_has_target_and_floor(bench: Bench) -> None:
    """The floor of a comparison shows the most that is possible against the same peer."""
    contenders = [Contender(name, taking(seconds, [])) for name, seconds in (("ours", 2), ("peer", 3), ("floor", 1))]
    bench.report.begin("row")
    bench.report.race("work", contenders, [Comparison("ours", "peer", at_least=2, floor="floor", aim=3)])
    [row] = bench.report.rows
    assert (row.measured, row.met, row.floor_reaches) == (Spread(1.5, 1.5, 1.5), False, 3)
    assert row.cells() == ["work: ours", "peer", "2.00x (aim 3.00x)", "1.50x", "no", "3.00x: floor"]


def test_a_limit_is_an_upper_bound(bench: Bench) -> None:
    """Memory meets its target if it is below."""
    bench.report.begin("memory")
    bench.report.measure("work", "ours", [40.0, 30.0], "MiB", at_most=64, against="its limit", floor=("result", 8))
    assert bench.report.rows[0].met
    assert bench.report.rows[0].cells()[2:] == ["at most 64 MiB", "35 MiB (30 MiB to 40 MiB)", "yes", "8.0 MiB: result"]


def test_a_missing_peer_is_a_row_with_the_reason(bench: Bench) -> None:
    """What cannot be compared does not vanish from the table."""
    bench.report.race("work", [Contender("ours", taking(1, []))], [Comparison("ours", "TensorFlow", at_least=1)])
    assert bench.report.rows[0].cells()[1:5] == ["TensorFlow", "1.00x", "skipped: no TensorFlow here", ""]
    assert bench.report.rows[0].met is None


def test_a_wrong_result_fails_its_row_only(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """The time does not count; the row is in the report with the reason."""

    def wrong() -> float:
        raise WrongResult("dense/kernel differs")

    def race(bench: Bench) -> None:
        bench.report.race("work", [Contender("ours", wrong)], [])

    assert not run_row("broken", Row("broken?", race), bench)
    assert run_row("other", Row("other?", lambda bench: None), bench)
    assert [row.skipped for row in bench.report.rows] == ["failed: dense/kernel differs"]
    assert "WrongResult" in capsys.readouterr().err


def test_rows_survive_the_json(bench: Bench, tmp_path: Path) -> None:
    """The page is made from the JSON: the same rows come back, and make the same table."""
    bench.report.begin("row")
    bench.report.race("work", [Contender(name, taking(1, [])) for name in "ab"], [Comparison("a", "b", at_least=1)])
    bench.report.skip("work", "a", "c", NO_GPU)
    bench.report.write(tmp_path / "x.json")
    found = outcomes(json.loads((tmp_path / "x.json").read_text()))
    assert found == bench.report.rows
    assert markdown(found).splitlines()[2] == "| work: a | b | 1.00x | 1.00x | yes |  |"
    assert len(aligned(found).splitlines()) == 3


@pytest.mark.parametrize(("mib", "text"), [(1024, "1 GiB"), (64, "64 MiB"), (1 / 256, "4 KiB"), (16384, "16 GiB")])
def test_sizes_are_readable(mib: float, text: str) -> None:
    assert size_text(mib) == text


def rows_of(arguments: list[str], folder: Path) -> list[Outcome]:
    """Run the benchmarks in a process of their own; return the rows."""
    report = folder / "x.json"
    command = [sys.executable, "scripts/bench", *arguments, *SMALL, "--dir", str(folder), "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["x.json"]
    found = outcomes(json.loads(report.read_text()))
    assert all(row.work in done.stdout for row in found)
    return found


def test_rows_run(tmp_path: Path) -> None:
    """Rows measure, compare, and clean up; without TensorFlow its comparisons are skipped."""
    names = ["save", "verify", "tiny"]
    found = rows_of(["--only", *names, "--without-tensorflow"], tmp_path)
    assert {row.row for row in found} == set(names)
    assert all(("TensorFlow" in row.against) == bool(row.skipped) for row in found)


def test_a_function_runs_in_a_new_process() -> None:
    """Its arguments and its result travel as JSON; its failure is a wrong result."""
    assert fresh.call("report.size_text", 2048) == "2 GiB"
    with pytest.raises(WrongResult, match=r"report\.size_text failed"):
        fresh.call("report.size_text", "many")


@pytest.mark.heavy
def test_everything_runs(tmp_path: Path) -> None:
    """`--all`, with TensorFlow: every row but those of a GPU is measured, and the page can be made from the JSON."""
    pytest.importorskip("tensorflow")
    plot = pytest.importorskip("plot", exc_type=ImportError)
    found = rows_of(["--all"], tmp_path)
    assert {row.skipped for row in found} <= {"", NO_GPU, "this version has no TFCheckpointWriter"}
    assert {row.row for row in found} == {name for name, row in ROWS.items() if not row.extra} - {"size", "threads"}
    content = json.loads((tmp_path / "x.json").read_text())
    page = plot.page_of(content, plot.PAGE.read_text(encoding="utf-8"))
    assert all(row.against in page for row in found)
    for figure in (plot.throughput, plot.ratios, plot.curves):
        assert b"<svg" in plot.svg_of(figure(content))


def test_unknown_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error is a usage error that lists the rows."""
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "lod"])
    assert "load-warm" in capsys.readouterr().err
