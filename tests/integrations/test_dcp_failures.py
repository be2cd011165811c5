"""A save of several ranks that fails leaves the earlier checkpoint, and the next save removes what is left."""

import os
from pathlib import Path

import pytest
from rank_processes import RankProcesses


def test_every_stage_on_every_rank(processes: RankProcesses, tmp_path: Path) -> None:
    """All ranks see which rank failed and why; the old checkpoint is whole, the next is good, and nothing is left."""
    found = processes.call("dcp_failures:fail_in_all_stages", str(tmp_path), world_size=3)
    assert len(found[0]) == 4 * 3 + 2
    names = ["ckpt.index", *(f"ckpt.data-{number:05d}-of-00004" for number in range(4))]  # the last: JSON
    for of_rank in found:
        for case, (failures, old_is_whole, next_is_good, files) in of_rank.items():
            assert list(failures) == [int(case[-1])], case
            assert "No space left" in failures[int(case[-1])], case
            assert old_is_whole, case
            assert next_is_good, case
            assert files == sorted(names), case


@pytest.mark.parametrize(
    ("stage", "killed"),
    [
        ("after writing", 1),
        pytest.param("before writing", 0, marks=pytest.mark.heavy),
        pytest.param("after writing", 0, marks=pytest.mark.heavy),
        pytest.param("finish", 0, marks=pytest.mark.heavy),
    ],
)
def test_a_killed_rank(stage: str, killed: int, processes: RankProcesses, tmp_path: Path) -> None:
    """The others get an error at once, the old checkpoint is whole, and the next save removes the files."""
    path = str(tmp_path / "ckpt")
    processes.call("dcp_failures:save_small", path, 1.0, world_size=2)
    outcomes = processes.run("dcp_failures:save_and_die", path, stage, killed, world_size=2)
    assert outcomes[killed].exit_status == -9
    assert "Error" in outcomes[1 - killed].value
    assert processes.call("dcp_failures:load_small", path, world_size=2) == [1.0] * 2
    processes.call("dcp_failures:save_small", path, 2.0, world_size=2)
    assert processes.call("dcp_failures:load_small", path, world_size=2) == [2.0] * 2
    assert not [name for name in os.listdir(tmp_path) if "tempstate" in name]


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_flipped_byte(damaged: int, processes: RankProcesses, tmp_path: Path) -> None:
    """The load fails on all ranks, with the rank, the file, the bytes and the tensor."""
    path = str(tmp_path / "ckpt")
    processes.call("dcp_failures:save_small", path, 1.0, world_size=2)
    file = tmp_path / f"ckpt.data-0000{damaged}-of-00003"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    for failures in processes.call("dcp_failures:load_damaged", path, world_size=2):
        assert list(failures) == [damaged]
        assert failures[damaged].startswith(f'DataLossError: {file}, bytes 0:24: tensor "w": Checksum does not match')


@pytest.mark.parametrize("use_collectives", [True, False])
def test_only_files_of_this_save_are_published_or_removed(
    use_collectives: bool, processes: RankProcesses, tmp_path: Path
) -> None:
    """A report in the store that names another file is refused, and that file stays as it is."""
    other = tmp_path / "ckpt.data-00001-of-00003"
    elsewhere = tmp_path / "other.tempstate7-tfckpt"
    for path in (other, elsewhere):
        path.write_bytes(b"not of this save")
    reported = [str(other), str(elsewhere), "/etc/hostname", f"{tmp_path}/ckpt.data-00000-of-00003.tempstate1-tfckpt"]
    found = processes.call("dcp_failures:report_other_files", str(tmp_path), reported, use_collectives, world_size=2)
    for errors in found:
        assert len(errors) == len(reported)
        for named, error in zip(reported, errors, strict=True):
            assert f'rank 1 reports that it has written "{named}", which is not a file of this save' in error
    assert elsewhere.read_bytes() == b"not of this save"
