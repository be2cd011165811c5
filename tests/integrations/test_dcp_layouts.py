"""Every layout of a tensor over ranks is saved by 2 or 4 ranks, and loaded by 1 to 4."""

from pathlib import Path

import pytest
from rank_processes import RankProcesses


@pytest.mark.parametrize("limit", [None, 16])
@pytest.mark.parametrize("ranks", [2, 4])
def test_all_layouts(ranks: int, limit: int | None, processes: RankProcesses, tmp_path: Path) -> None:
    """All values are equal on every number of ranks, also if the parts of ranks are stored in pieces."""
    path = str(tmp_path / "ckpt")
    processes.call("dcp_ranks:save_layouts", path, world_size=ranks, max_piece_bytes=limit)
    for count in (1, 2, 3, 4):
        wrong = processes.call("dcp_ranks:load_layouts", path, world_size=count, verify=count != 3)
        assert wrong == [[]] * count
