"""Converting to a target that exists: old or new, whole, after every step, kill and error, for every reader."""

import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from storages import Killed

import torch_tfckpt as tfckpt
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.storage.journal import journal_of
from torch_tfckpt.storage.local import LocalStorage
from torch_tfckpt.values import WritableValue


class Case(NamedTuple):
    """What the earlier and the new target consist of."""

    file: str
    before: str  # "", or a combination of "shards:COUNT" and "sidecar"
    after: str


CASES = {
    "shards again": Case("m.safetensors", "shards:3", "shards:3"),
    "fewer shards": Case("m.safetensors", "shards:3", "shards:2"),
    "shards instead of a file": Case("m.safetensors", "", "shards:2"),
    "a file instead of shards": Case("m.safetensors", "shards:3", ""),
    "shards with sidecar": Case("m.safetensors", "shards:2 sidecar", "shards:2 sidecar"),
    "safetensors, sidecar again": Case("m.safetensors", "sidecar", "sidecar"),
    "pt, sidecar again": Case("m.pt", "sidecar", "sidecar"),
    "npz, sidecar gone": Case("m.npz", "sidecar", ""),
    "npz, sidecar new": Case("m.npz", "", "sidecar"),
}


def source_of(folder: Path, what: str, number: int) -> Path:
    """Return a checkpoint next to `folder` whose values are all `number`."""
    source = folder.parent / f"source-{'sidecar' in what}-{number}"
    if not Path(f"{source}.index").exists():
        values: dict[str, WritableValue] = {f"w{i}": torch.full((8,), float(number)) for i in range(6)}
        if "sidecar" in what:
            values["s"] = np.array([str(number).encode()], dtype=object)
        tfckpt.save_file(values, source)
    return source


def make(folder: Path, case: Case, what: str, number: int) -> None:
    """Convert a checkpoint whose values are all `number` to the target."""
    count = int(what.partition("shards:")[2][:1] or 1)
    size = None if count == 1 else 6 // count * 32
    tfckpt.convert(source_of(folder, what, number), folder / case.file, max_shard_size=size)


def number_in(folder: Path, case: Case) -> int:
    """Return the number that all values have; fail if they have two."""
    path = folder if case.file.endswith(".safetensors") else folder / case.file
    with closing(open_source(str(path))) as source:
        values = source.read(source.names())
    strings = "s" in values
    found = {float(element) for value in values.values() for element in np.asarray(value).reshape(-1).tolist()}
    assert len(found) == 1, f"a mix: {found}"
    number = int(found.pop())
    assert strings == ("sidecar" in (case.before, case.after)[number - 1]), "the sidecar is of another file"
    return number


def number_for_others(folder: Path, case: Case) -> int:
    """Return the number that torch, numpy and loaders of Hugging Face find."""
    path = folder / case.file
    if case.file.endswith(".pt"):
        tensors = torch.load(path, weights_only=True)
    elif case.file.endswith(".npz"):
        with np.load(path) as arrays:
            tensors = {name: torch.as_tensor(arrays[name]) for name in arrays.files}
    elif path.exists():
        tensors = safetensors.torch.load_file(path)
    else:
        shards = json.loads(Path(f"{path}.index.json").read_text())["weight_map"]
        files = {name: safetensors.torch.load_file(folder / name) for name in set(shards.values())}
        tensors = {name: files[shard][name] for name, shard in shards.items()}
    found = {element for tensor in tensors.values() for element in tensor.tolist()}
    assert len(found) == 1 and len(tensors) == 6, f"a mix: {found}"
    return int(found.pop())


OPERATIONS = ("create", "replace", "link", "remove", "remove_unused", "sync_directory", "make_directory")


@contextmanager
def failing(
    step: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> Iterator[list[str]]:
    """Local operation number `step` raises `error`; if that is Killed, so does everything after it."""
    done: list[str] = []

    def patched(name: str) -> Callable[..., Any]:
        real = getattr(LocalStorage, name)

        def operation(self: LocalStorage, *paths: str) -> Any:
            done.append(f"{name} {' -> '.join(map(os.path.basename, paths))}")
            number = len(done) - 1
            fails = number == step or (error is Killed and number > step)
            if fails and not (late and number == step and name != "create"):
                raise error("simulated")
            result = real(self, *paths)
            if fails:
                raise error("simulated")
            return result

        return operation

    with monkeypatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(LocalStorage, name, patched(name))
        yield done


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FAILURES = ((Killed, False), (OSError, False), (OSError, True), (KeyboardInterrupt, True))


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("error", "late"), FAILURES, ids=["killed", "refused", "refused but done", "interrupted"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_failure_anywhere(
    case: Case, error: type[BaseException], late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds of readers find one target whole; the next conversion leaves exactly its own files."""
    seen = []
    earlier, expected = tmp_path / "earlier", tmp_path / "expected"
    for folder, what, number in ((earlier, case.before, 1), (expected, case.after, 2)):
        folder.mkdir()
        make(folder, case, what, number)
    for step in itertools.count():
        folder = tmp_path / str(step)
        shutil.copytree(earlier, folder)
        raised: BaseException | None = None
        with failing(step, error, monkeypatch, late=late) as done:
            try:
                make(folder, case, case.after, 2)
            except (Killed, OSError, KeyboardInterrupt) as problem:
                raised = problem
        seen.append(number_in(folder, case))
        assert number_for_others(folder, case) in (1, 2)
        if raised is None:
            assert seen[-1] == 2, f"{done[min(step, len(done) - 1)]} failed without an error"
        elif "are in place" in str(raised):
            assert seen[-1] == 2
        make(folder, case, case.after, 2)
        assert names(folder) == names(expected), f"after {done[min(step, len(done) - 1)]}"
        assert number_in(folder, case) == number_for_others(folder, case) == 2
        if len(done) <= step:
            break
    assert set(seen) == {1, 2} and (error is not Killed or seen == sorted(seen))


@pytest.mark.parametrize("case", [CASES["shards again"], CASES["pt, sidecar again"]], ids=["shards", "sidecar"])
def test_several_conversions_at_once(case: Case, tmp_path: Path) -> None:
    """Readers find one target whole at every moment; the last conversion stays, and nothing else."""
    folders = [tmp_path / "a"]
    folders[0].mkdir()
    make(folders[0], case, case.before, 1)
    before = len(names(folders[0]))
    sources = {number: source_of(folders[0], case.after, number) for number in (3, 4)}
    errors: list[BaseException] = []

    def convert(number: int) -> None:
        try:
            for _ in range(8):
                size = 64 if "shards" in case.after else None
                tfckpt.convert(sources[number], folders[0] / case.file, max_shard_size=size)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=convert, args=(number,)) for number in (3, 4)]
    for thread in threads:
        thread.start()
    path = folders[0] if case.file.endswith(".safetensors") else folders[0] / case.file
    while any(thread.is_alive() for thread in threads):
        with closing(open_source(str(path))) as source:
            values_read = source.read(source.names())
        found = {float(each) for value in values_read.values() for each in np.asarray(value).reshape(-1).tolist()}
        assert len(found) == 1, f"a mix: {found}"
    assert not errors and len(names(folders[0])) == before
    assert number_for_others(folders[0], case) in (3, 4)


def test_a_file_without_a_sidecar_has_the_bytes_of_the_library(tmp_path: Path) -> None:
    """Also where it replaces one with a sidecar."""
    tensors = {"w": torch.ones(2)}
    tfckpt.save_file(tensors, tmp_path / "plain")
    tfckpt.save_file({**tensors, "s": np.array([b"x"], dtype=object)}, tmp_path / "strings")
    tfckpt.convert(tmp_path / "strings", tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors.tfckpt.json").exists()
    tfckpt.convert(tmp_path / "plain", tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == safetensors.torch.save(tensors, metadata={"format": "pt"})
    assert not (tmp_path / "m.safetensors.tfckpt.json").exists()


def test_the_same_conversion_gives_the_same_bytes(tmp_path: Path) -> None:
    """Identities are digests of the contents."""
    case = CASES["shards with sidecar"]
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        make(folder, case, case.after, 1)
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("mixed", ["m-00002-of-00003.safetensors", "m.safetensors.index.json"])
def test_files_of_two_conversions_are_refused(mixed: str, tmp_path: Path) -> None:
    """As after a copy that was interrupted."""
    case = CASES["shards again"]
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        make(tmp_path / str(number), case, case.before, number)
    (tmp_path / "1" / mixed).write_bytes((tmp_path / "2" / mixed).read_bytes())
    with pytest.raises(tfckpt.DataLossError, match=r"are from two conversions .* Convert again"):
        number_in(tmp_path / "1", case)


@pytest.mark.parametrize("file", ["m.safetensors", "m.pt", "m.npz", "m"])
def test_a_sidecar_of_another_conversion_is_refused(file: str, tmp_path: Path) -> None:
    """Though the files have the same size. Sidecars that lack an identity are still read."""
    for number in (1, 2):
        values = {"w": torch.full((8,), float(number)), "odd": torch.zeros(2, dtype=torch.float8_e8m0fnu)}
        torch.save(values, tmp_path / f"{number}.pt")
        (tmp_path / str(number)).mkdir()
        tfckpt.save_file({"w": values["w"], "s": np.array([b"x"], dtype=object)}, tmp_path / f"{number}-tf")
        source = tmp_path / (f"{number}.pt" if file == "m" else f"{number}-tf")
        tfckpt.convert(source, tmp_path / str(number) / file, to="tf" if file == "m" else None)
    sidecar = tmp_path / "1" / f"{file}.tfckpt.json"
    own = json.loads(sidecar.read_text())
    sidecar.write_bytes((tmp_path / "2" / sidecar.name).read_bytes())
    with pytest.raises(tfckpt.DataLossError, match=r"a different conversion.*convert again"):
        open_source(str(tmp_path / "1" / file))
    del own["identity"]
    sidecar.write_text(json.dumps(own))
    open_source(str(tmp_path / "1" / file)).close()


@pytest.mark.parametrize(
    ("target", "to"), [("m-00001-of-00003.safetensors", None), ("m-00002-of-00003.safetensors", None), ("t", "tf")]
)
def test_a_target_that_is_a_part_of_its_source_is_refused(target: str, to: str | None, tmp_path: Path) -> None:
    """One shard of several, by any spelling of its directory; nothing is changed."""
    case = CASES["shards again"]
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    make(tmp_path / "real", case, case.before, 1)
    before = names(tmp_path / "real")
    if to == "tf":
        tfckpt.convert(tmp_path / "real", tmp_path / "real" / "t", to=to)
        target, to = "t.data-00000-of-00001", "pt"
        before = names(tmp_path / "real")
    for folder in ("real", "alias"):
        source = tmp_path / "real" / ("t" if to == "pt" else "m.safetensors.index.json")
        with pytest.raises(tfckpt.InvalidArgumentError, match=r"would replace .*, a file of the source, but not"):
            tfckpt.convert(source, tmp_path / folder / target, to=to)
    assert names(tmp_path / "real") == before and number_for_others(tmp_path / "real", case) == 1


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_target_that_is_a_link_to_its_source_replaces_the_link(link: Callable[..., None], tmp_path: Path) -> None:
    case = CASES["shards again"]
    make(tmp_path, case, case.before, 1)
    link(tmp_path / "m-00001-of-00003.safetensors", tmp_path / "other.safetensors")
    tfckpt.convert(tmp_path / "m.safetensors.index.json", tmp_path / "other.safetensors")
    assert number_for_others(tmp_path, case) == 1
    assert len(safetensors.torch.load_file(tmp_path / "other.safetensors")) == 6


@pytest.mark.parametrize("target", ["m.safetensors", "alias/m.safetensors"])
def test_shards_are_converted_onto_themselves(target: str, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(".")
    case = CASES["shards again"]
    make(tmp_path, case, case.before, 1)
    for size in (100, 64, None):
        tfckpt.convert(tmp_path, tmp_path / target, max_shard_size=size)
        assert number_in(tmp_path, case) == number_for_others(tmp_path, case) == 1
    assert [name for name in names(tmp_path) if name.startswith("m")] == ["m.safetensors"]


def test_a_sharded_checkpoint_is_converted_onto_itself(tmp_path: Path) -> None:
    tensors = [torch.full((2,), 1.0), torch.full((2,), 2.0)]
    for number, tensor in enumerate(tensors):
        tfckpt.save_file({f"t{number}": tensor}, tmp_path / f"part-{number}")
    tfckpt.merge([tmp_path / "part-0", tmp_path / "part-1"], tmp_path / "m")
    tfckpt.convert(tmp_path / "m", tmp_path / "m", to="tf")
    assert [name for name in names(tmp_path) if name.startswith("m")] == ["m.data-00000-of-00001", "m.index"]


def test_links_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them the shards keep names that every loader accepts, and the report tells them."""
    case = CASES["shards again"]
    make(tmp_path, case, case.before, 1)

    def link(self: LocalStorage, source: str, target: str) -> None:
        raise OSError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "link", link)
        for number in (2, 1):
            report = tfckpt.convert(source_of(tmp_path, "", number), tmp_path / "m.safetensors", max_shard_size=64)
            assert number_in(tmp_path, case) == number_for_others(tmp_path, case) == number
            assert sorted(map(os.path.basename, report.files)) == names(tmp_path)
    make(tmp_path, case, case.after, 2)
    assert "m-00001-of-00003.safetensors" in names(tmp_path) and len(names(tmp_path)) == 4


def test_a_journal_of_shards_is_not_a_checkpoint(tmp_path: Path) -> None:
    """The search for version 1 shards does not take a conversion that was killed for one."""
    (tmp_path / journal_of("m.safetensors")).write_text("{}")
    assert tfckpt.latest_checkpoint(tmp_path, valid=True) is None
