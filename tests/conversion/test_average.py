"""average(): the mean of several checkpoints, which TensorFlow restores; nothing is decided silently."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main
from torch_tfckpt.conversion import mean
from torch_tfckpt.conversion.average import average
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.storage.names import AnyPath


def numbered(folder: Path, count: int = 3) -> list[str]:
    """Checkpoints m-1, m-2 ... with one tensor of each kind."""
    return [
        tfckpt.save_file(
            {
                "w": torch.full((2, 3), float(number)),
                "half": torch.tensor([number / 3], dtype=torch.float16),
                "spectrum": torch.tensor([number * 1j], dtype=torch.complex64),
                "global_step": torch.tensor(number * 10),
                "on": torch.tensor([number % 2 == 0]),
                "words": np.array([f"word {number}"], object),
            },
            folder / f"m-{number}",
        )
        for number in range(1, count + 1)
    ]


def run(folder: Path, count: int, keep: int | None = 5) -> Path:
    """A directory with a `checkpoint` file; the value of w is the number of the checkpoint."""
    w = torch.zeros(2)
    saver = tfckpt.Saver({"w": w}, max_to_keep=keep)
    for number in range(1, count + 1):
        w.fill_(number)
        saver.save(folder / "run" / "m", number, write_meta_graph=False)
    return folder / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_numbers_are_averaged_and_the_rest_is_the_newest(tmp_path: Path) -> None:
    """In their own dtypes; the report tells which are which."""
    paths = numbered(tmp_path)
    report = average(paths, tmp_path / "average")
    found = tfckpt.load_file(tmp_path / "average")
    assert found["w"].tolist() == [[2.0] * 3] * 2 and found["spectrum"].tolist() == [2j]
    assert found["half"].dtype == torch.float16 and float(found["half"]) == pytest.approx(2 / 3, rel=1e-3)
    assert found["global_step"] == 30 and found["on"].tolist() == [False] and found["words"].tolist() == [b"word 3"]
    assert report.averaged == ["half", "spectrum", "w"] and report.newest == ["global_step", "on", "words"]
    assert report.sources == paths and report.remarks == [] and report.target == str(tmp_path / "average")
    assert report.files == [f"{tmp_path}/average.data-00000-of-00001", f"{tmp_path}/average.index"]
    text = str(report)
    assert text.startswith("averaged 3 tensors of 3 checkpoints:\n")
    assert f'from {paths[-1]}: 3 tensors, "global_step", "on", "words"' in text
    assert tfckpt.verify(tmp_path / "average").ok


def test_the_last_one_given_is_the_newest(tmp_path: Path) -> None:
    """Whatever its number; a shell's order, in which m-10 precedes m-9, is remarked upon."""
    paths = numbered(tmp_path, 10)
    report = average(sorted(paths), tmp_path / "average")
    assert tfckpt.load_variable(tmp_path / "average", "global_step") == 90
    (remark,) = report.remarks
    assert "m-9, the last one given, has a lower number than" in remark and "m-10" in remark


def test_object_based_checkpoints_stay_restorable_by_tensorflow(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """tf.train.Checkpoint.read restores weights, slots and counters; the object graph is the newest one's."""
    paths = tensorflow.call("tensorflow_averaging.write_run", str(tmp_path / "run"), 3, 4)
    report = average([tmp_path / "run"], tmp_path / "average", last=3)
    assert report.sources == paths[1:] and not report.graph_edited and OBJECT_GRAPH_KEY in report.newest
    weights, step, words, optimizer = tensorflow.call("tensorflow_averaging.read_run", str(tmp_path / "average"))
    each = [tensorflow.call("tensorflow_averaging.read_run", path) for path in paths[1:]]
    assert step == 40 and words == [b"a4", b"b4"]
    for found, *stored in zip((*weights, *optimizer), *((*one[0], *one[3]) for one in each), strict=True):
        assert found == expected_mean(stored)
    graphs = [tfckpt.load_checkpoint(path).get_strings(OBJECT_GRAPH_KEY).item() for path in (paths[-1], report.target)]
    assert graphs[0] == graphs[1]


def expected_mean(values: list[RawTensor]) -> RawTensor:
    """The mean by numpy; integers: the last value."""
    if "int" in values[-1].dtype:
        return values[-1]
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16 if values[0].dtype == "bfloat16" else values[0].dtype)
    arrays = [np.frombuffer(value.data, dtype).astype(np.float64) for value in values]
    return RawTensor(values[0].dtype, values[0].shape, np.mean(arrays, 0).astype(dtype).tobytes())


def test_without_optimizer_state(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """Omitted tensors are omitted from the object graph, too, as by convert."""
    paths = tensorflow.call("tensorflow_averaging.write_run", str(tmp_path / "run"), 3, 2)
    report = average(paths, tmp_path / "average", exclude=["^optimizer/"])
    assert report.graph_edited and all(name.startswith("net/") for name in report.averaged)
    with tfckpt.load_checkpoint(tmp_path / "average") as reader:
        graph = reader.object_graph
        assert graph is not None and not any("optimizer" in each.checkpoint_key for each in graph.variables())


@pytest.mark.parametrize("partitions", [1, 2, 3])
def test_partitioned_and_sharded_variables(tmp_path: Path, tensorflow: TensorFlowProcess, partitions: int) -> None:
    """Partitioned in one way or another in each checkpoint; TensorFlow restores any partition from the mean."""
    prefixes = [str(tmp_path / f"m-{number}") for number in (1, 2)]
    for number, prefix in enumerate(prefixes):
        tensorflow.call("tensorflow_averaging.write_partitioned", [prefix], number, partitions + number)
    whole = [tfckpt.load_variable(prefix, "emb") for prefix in prefixes]
    average(prefixes, tmp_path / "average")
    found, step = tensorflow.call("tensorflow_averaging.restore_partitioned", str(tmp_path / "average"), 2)
    assert found == RawTensor.of(((whole[0].double() + whole[1].double()) / 2).float()) and step == 0


def test_other_formats(tmp_path: Path, golden: Path) -> None:
    """Every format that convert reads, and version 1, mixed."""
    paths = numbered(tmp_path)
    for number, to in enumerate(["m.safetensors", "m.pt", "m.npz"]):
        tfckpt.convert(paths[number], tmp_path / to, exclude=["^half"])
    mixed: list[AnyPath] = [tmp_path / "m.npz", tmp_path / "m.pt", tmp_path / "m.safetensors", paths[1]]
    report = average(mixed, tmp_path / "average", exclude=["^half"])
    assert report.newest == ["global_step", "on", "words"]
    found = tfckpt.load_file(tmp_path / "average")
    assert found["w"].tolist() == [[2.0] * 3] * 2 and found["words"].tolist() == [b"word 2"]
    old = golden / "digits-v1" / "checkpoint-288"
    copy = tmp_path / "copy"
    shutil.copy(old, copy)
    report = average([old, copy], tmp_path / "average")
    assert report.averaged
    assert tfckpt.diff(old, tmp_path / "average").identical


def test_large_tensors_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of whole tensors."""
    monkeypatch.setattr("torch_tfckpt.foreign_files.values.BATCH_BYTES", 64)
    monkeypatch.setattr("torch_tfckpt.conversion.average.BATCH_BYTES", 64)
    monkeypatch.setattr(mean, "_BLOCK_ELEMENTS", 7)
    torch.manual_seed(0)
    values = [
        {
            "a": torch.randn(5, 3, 4),
            "b": torch.randn(40, dtype=torch.float64),
            "c": torch.randn(3, 11, dtype=torch.complex64),
            "nan": torch.full((30,), float("nan")),
        }
        for _ in range(3)
    ]
    paths = [tfckpt.save_file(tensors, tmp_path / f"m-{number}") for number, tensors in enumerate(values)]
    report = average(paths, tmp_path / "blocks")
    tfckpt.convert(paths[0], tmp_path / "m-0.safetensors")
    average([tmp_path / "m-0.safetensors", *paths[1:]], tmp_path / "whole")
    assert tfckpt.diff(tmp_path / "blocks", tmp_path / "whole").identical
    found = tfckpt.load_file(tmp_path / "blocks")
    for name in "abc":
        assert torch.allclose(found[name], torch.stack([each[name] for each in values]).mean(0), rtol=1e-6)
    assert report.remarks == ['NaN or infinity in 1 mean: "nan"']


class TestDirectories:
    """A directory means the checkpoints that its state file lists."""

    def test_all_and_the_last(self, tmp_path: Path) -> None:
        """Oldest first; by the directory or its state file, alone or in a list."""
        where = run(tmp_path, 5, keep=4)
        for path in (where, str(where), [where], [where / "checkpoint"]):
            assert average(path, tmp_path / "a").sources == [f"{where}/m-{number}" for number in (2, 3, 4, 5)]
        assert tfckpt.load_variable(tmp_path / "a", "w").tolist() == [3.5, 3.5]
        report = average(where, tmp_path / "a", last=2)
        assert report.sources == [f"{where}/m-4", f"{where}/m-5"] and report.remarks == []

    def test_the_result_is_not_counted_later(self, tmp_path: Path) -> None:
        """The state file is unchanged, so the same average comes out again."""
        where = run(tmp_path, 3)
        state = (where / "checkpoint").read_bytes()
        first = average(where, where / "average")
        assert average(where, where / "average").sources == first.sources
        assert (where / "checkpoint").read_bytes() == state

    def test_fewer_than_wanted(self, tmp_path: Path) -> None:
        """A remark, also for one checkpoint alone and for listed ones that are gone."""
        where = run(tmp_path, 3)
        assert average(where, tmp_path / "a", last=5).remarks == [f"{where}/checkpoint lists only 3, and last is 5"]
        tfckpt.remove_checkpoint(where / "m-2")
        report = average(where, tmp_path / "a", last=2)
        assert report.sources == [f"{where}/m-1", f"{where}/m-3"]
        assert report.remarks == [f"{where}/checkpoint lists checkpoints that do not exist: {where}/m-2"]
        tfckpt.remove_checkpoint(where / "m-1")
        assert f"{where}/checkpoint lists only 1" in average(where, tmp_path / "a").remarks

    @pytest.mark.parametrize("last", [None, 3])
    def test_fewer_than_the_directory_has(self, tmp_path: Path, last: int | None) -> None:
        """A saver that keeps all checkpoints lists only one: which are meant is asked for."""
        where = run(tmp_path, 12, keep=None)
        average([where / "m-1", where / "m-12"], where / "other")
        with pytest.raises(InvalidArgumentError, match="lists only 1 of the checkpoints") as error:
            average(where, tmp_path / "a", last=last)
        assert f"Not listed: {where}/m-1, {where}/m-2, " in str(error.value) and "and 3 more" in str(error.value)
        assert "other" not in str(error.value)
        assert average(where, tmp_path / "a", last=1).sources == [f"{where}/m-12"]

    def test_errors(self, tmp_path: Path) -> None:
        """Nothing that exists, several checkpoints without a state file, a damaged state file."""
        where = run(tmp_path, 2)
        for number in (1, 2):
            tfckpt.remove_checkpoint(where / f"m-{number}")
        with pytest.raises(NotFoundError, match="but none of them exists"):
            average(where, tmp_path / "a")
        (where / "checkpoint").write_text("nonsense {")
        with pytest.raises(DataLossError, match="checkpoint"):
            average(where, tmp_path / "a")
        (where / "checkpoint").unlink()
        for number in (1, 2):
            tfckpt.save_file({"w": torch.ones(1)}, where / f"m-{number}")
        with pytest.raises(InvalidArgumentError, match="has 2 checkpoints, and no `checkpoint` file"):
            average(where, tmp_path / "a")


def test_one_checkpoint_by_several_names_counts_once(tmp_path: Path) -> None:
    """As from the pattern m-* of a shell."""
    paths = numbered(tmp_path, 2)
    files = sorted(str(path) for path in tmp_path.glob("m-*"))
    assert len(files) == 4
    assert average([*files, paths[1], tmp_path / ".." / tmp_path.name / "m-1"], tmp_path / "a").sources == paths


def test_different_tensors_are_an_error_that_lists_them(tmp_path: Path) -> None:
    """Names, shapes and dtypes, of every checkpoint; excluding them helps."""
    base = {"w": torch.ones(2), "n": torch.tensor(1)}
    a = tfckpt.save_file({**base, "only": torch.ones(1)}, tmp_path / "a")
    b = tfckpt.save_file({**base, "w": torch.ones(2, 1)}, tmp_path / "b")
    c = tfckpt.save_file({**base, "n": torch.tensor(1, dtype=torch.int32)}, tmp_path / "c")
    d = tfckpt.save_file(base, tmp_path / "d")
    with pytest.raises(InvalidArgumentError) as error:
        average([a, b, c, d], tmp_path / "average")
    message = str(error.value)
    assert f'"only" is in {a}, but not in {d}' in message
    assert f'"w" is float32 [2] in {d}, but float32 [2,1] in {b}' in message
    assert f'"n" is int64 [] in {d}, but int32 [] in {c}' in message and "`exclude`" in message
    assert not (tmp_path / "average.index").exists()
    assert average([a, d], tmp_path / "average", exclude=["only"]).averaged == ["w"]
    with pytest.raises(InvalidArgumentError, match=r'"only" is in .*/a, but not in .*/d'):
        average([d, a], tmp_path / "average")
    many = tfckpt.save_file({f"x{number}": torch.ones(1) for number in range(50)}, tmp_path / "many")
    with pytest.raises(InvalidArgumentError, match="and 44 more"):
        average([many, d], tmp_path / "average")


def test_include_exclude_and_newest(tmp_path: Path) -> None:
    """Regular expressions, searched for anywhere; a typo is an error or a line of the report."""
    paths = numbered(tmp_path)
    report = average(paths, tmp_path / "a", include=["^w$", "step", "half"], newest=["ha.f"])
    assert (report.averaged, report.newest) == (["w"], ["global_step", "half"])
    assert sorted(report.filtered) == ["on", "spectrum", "words"]
    assert tfckpt.load_variable(tmp_path / "a", "half") == torch.tensor(1.0)
    report = average(paths, tmp_path / "a", exclude=["nope", "words"])
    assert report.unmatched_excludes == ["nope"] and 'exclude "nope" matched nothing' in str(report)
    with pytest.raises(InvalidArgumentError, match='include "nope" matches none of 6 tensors'):
        average(paths, tmp_path / "a", include=["nope"])
    with pytest.raises(InvalidArgumentError, match='newest "nope" matches none of 6 tensors'):
        average(paths, tmp_path / "a", newest=["nope"])
    with pytest.raises(InvalidArgumentError, match="missing \\)"):
        average(paths, tmp_path / "a", exclude=["("])


def test_counters_in_floats_and_nan_are_remarked_upon(tmp_path: Path) -> None:
    """torch keeps the step of Adam as a float; its mean is reported, with how to keep it."""
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    saver = tfckpt.Saver({"model": module, "opt": optimizer})
    for step in range(1, 4):
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        saver.save(tmp_path / "run" / "m", step, write_meta_graph=False)
    (remark,) = average(tmp_path / "run", tmp_path / "a").remarks
    assert '"opt/state/bias/step" (1 ... 3 became 2)' in remark and "`newest`" in remark
    report = average(tmp_path / "run", tmp_path / "a", newest=["/step$"])
    assert report.remarks == [] and tfckpt.load_variable(tmp_path / "a", "opt/state/bias/step") == 3
    saver.restore(tmp_path / "a")
    bad = [tfckpt.save_file({"w": torch.tensor([1.0, value])}, tmp_path / f"x{value}") for value in (1.0, float("nan"))]
    assert average(bad, tmp_path / "a").remarks == ['NaN or infinity in 1 mean: "w"']


def test_object_graphs_that_differ(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """The same tensors under other objects: reported."""
    a, b = tensorflow.call("tensorflow_averaging.write_run", str(tmp_path / "a"), 1, 2)
    graph = tfckpt.load_checkpoint(b).get_strings(OBJECT_GRAPH_KEY)
    values = {**tfckpt.load_file(b), OBJECT_GRAPH_KEY: np.array(graph.item().replace(b"kernel", b"weight"), object)}
    other = tfckpt.save_file(values, tmp_path / "other")
    assert average([a, b], tmp_path / "average").remarks == []
    (remark,) = average([a, other], tmp_path / "average").remarks
    assert "the object graphs differ" in remark and str(other) in remark
    strange = [
        tfckpt.save_file(
            {OBJECT_GRAPH_KEY: np.array([b"x", name], object), "w": torch.ones(1)}, tmp_path / name.decode()
        )
        for name in (b"s1", b"s2")
    ]
    assert "the object graphs differ" in average(strange, tmp_path / "average").remarks[0]


def test_types_that_torch_lacks(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """A floating-point type that cannot be averaged is an error, unless it is omitted or taken from the newest."""
    small = RawTensor("float8_e4m3b11fnuz", (2,), b"\x30\x40")
    paths = [str(tmp_path / f"m-{number}") for number in (1, 2)]
    for path in paths:
        tensorflow.call("save_v2", path, {"small": small, "w": np.float32(1)})
    with pytest.raises(UnimplementedError, match='"small": torch has no arithmetic for float8_e4m3b11fnuz'):
        average(paths, tmp_path / "average")
    assert average(paths, tmp_path / "average", exclude=["small"]).averaged == ["w"]
    assert average(paths, tmp_path / "average", newest=["small"]).newest == ["small"]
    assert tfckpt.diff(paths[1], tmp_path / "average").identical


class TestTarget:
    """What an average may replace, and what it leaves if it fails."""

    def test_it_is_not_a_source(self, tmp_path: Path) -> None:
        """By any spelling; a version 1 file, or one file of a source, neither."""
        paths = numbered(tmp_path)
        before = contents(tmp_path)
        for target in (paths[0], tmp_path / "." / "m-3"):
            with pytest.raises(InvalidArgumentError, match="one of the checkpoints to average"):
                average(paths, target)
        assert contents(tmp_path) == before
        with pytest.raises(InvalidArgumentError, match=r"\.safetensors is the extension"):
            average(paths, tmp_path / "m.safetensors")
        with pytest.raises(InvalidArgumentError, match="is a directory"):
            average(paths, tmp_path)
        with pytest.raises(InvalidArgumentError, match="average writes local files only"):
            average(paths, "memory://average")

    def test_it_replaces_an_earlier_one(self, tmp_path: Path) -> None:
        """Also one with several shards and a sidecar; nothing else is left."""
        paths = numbered(tmp_path)
        (tmp_path / "out").mkdir()
        average(paths[:2], tmp_path / "out" / "average")
        (tmp_path / "out" / "average.tfckpt.json").write_text("{}")
        average(paths, tmp_path / "out" / "average")
        assert sorted(contents(tmp_path / "out")) == ["average.data-00000-of-00001", "average.index"]

    @pytest.mark.parametrize("damaged", [0, 1, 2])
    def test_a_failure_changes_nothing(self, tmp_path: Path, damaged: int) -> None:
        """A damaged checkpoint anywhere in the list."""
        paths = numbered(tmp_path)
        average(paths, tmp_path / "average")
        data = Path(f"{paths[damaged]}.data-00000-of-00001")
        data.write_bytes(bytes(len(data.read_bytes())))
        before = contents(tmp_path)
        with pytest.raises(DataLossError, match=f"m-{damaged + 1}"):
            average(paths, tmp_path / "average")
        assert contents(tmp_path) == before

    def test_dry_run(self, tmp_path: Path) -> None:
        """All checks, the same report, no file."""
        paths = numbered(tmp_path)
        before = contents(tmp_path)
        report = average(paths, tmp_path / "average", dry_run=True)
        assert contents(tmp_path) == before and str(report).startswith("would average 3 tensors of 3 checkpoints:")
        assert report.averaged == average(paths, tmp_path / "average").averaged


def test_arguments(tmp_path: Path) -> None:
    paths = numbered(tmp_path)
    with pytest.raises(InvalidArgumentError, match="no checkpoint is given"):
        average([], tmp_path / "a")
    for last in (0, -1, True, 2.0):
        with pytest.raises(InvalidArgumentError, match="pass the number of checkpoints"):
            average(paths, tmp_path / "a", last=last)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="is for a directory"):
        average(paths, tmp_path / "a", last=2)
    with pytest.raises(NotFoundError, match="nope"):
        average([*paths, tmp_path / "nope"], tmp_path / "a")


def test_progress(tmp_path: Path) -> None:
    """Ends at the total: the means once for each checkpoint, the rest once."""
    seen: list[tuple[int, int]] = []
    average(numbered(tmp_path), tmp_path / "a", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and seen[-1][1] > 3 * (24 + 2 + 8)


class TestCommandLine:
    """tfckpt average."""

    def test_report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        where = run(tmp_path, 3)
        assert main(["average", str(where), str(tmp_path / "a"), "--last", "2"]) == 0
        assert "averaged 1 tensor of 2 checkpoints:" in capsys.readouterr().out
        assert tfckpt.load_variable(tmp_path / "a", "w").tolist() == [2.5, 2.5]

    def test_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Warnings go to stderr."""
        paths = numbered(tmp_path, 2)
        options = ["--json", "--exclude", "nope", "--newest", "half", "--dry-run"]
        assert main(["average", *reversed(paths), str(tmp_path / "a"), *options]) == 0
        output = capsys.readouterr()
        report = json.loads(output.out)
        assert report["sources"] == paths[::-1] and report["averaged"] == ["spectrum", "w"] and report["dry_run"]
        assert '--exclude "nope" matched nothing' in output.err and "lower number" in output.err

    def test_refusals(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Status 1, with the names of options."""
        paths = numbered(tmp_path, 2)
        assert main(["average", *paths, paths[0]]) == 1
        assert main(["average", *paths, str(tmp_path / "a"), "--last", "2"]) == 1
        assert "--last 2 is for a directory" in capsys.readouterr().err
        assert main(["average", *paths, str(tmp_path / "a"), "--newest", "nope"]) == 1
        assert '--newest "nope" matches none' in capsys.readouterr().err
        assert main(["average", str(tmp_path / "a")]) == 2
