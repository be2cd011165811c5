"""Processes for the ranks of all tests in this folder: they take seconds to start."""

from collections.abc import Iterator

import pytest
from rank_processes import RankProcesses


@pytest.fixture(scope="session")
def processes() -> Iterator[RankProcesses]:
    """Four processes, started by the first run."""
    with RankProcesses(4) as processes:
        yield processes
