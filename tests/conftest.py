"""Fixtures for all tests: TensorFlow, the golden checkpoints, and checkpoints of public projects."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden_files import GOLDEN
from hypothesis import settings
from tensorflow_process import TensorFlowProcess

REPOSITORY = Path(__file__).resolve().parent.parent
# On shared cores a valid example sometimes takes longer than the 200 ms that hypothesis allows by default.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

REQUIRE_TENSORFLOW = "TORCH_TFCKPT_REQUIRE_TENSORFLOW"
REQUIRE_CORPUS = "TORCH_TFCKPT_REQUIRE_CORPUS"


@pytest.fixture(scope="session")
def tensorflow() -> Iterator[TensorFlowProcess]:
    """TensorFlow in its own process, one per test session (and per worker of pytest-xdist)."""
    # find_spec does not import: this fixture exists to avoid importing TensorFlow and torch in one process.
    if importlib.util.find_spec("tensorflow") is None:
        reason = "tensorflow is not installed; `pip install -e .[interop] -c scripts/constraints.txt` installs it"
        if os.environ.get(REQUIRE_TENSORFLOW) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_TENSORFLOW}=1 requires it")
        pytest.skip(reason)
    with TensorFlowProcess() as process:
        yield process


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of checkpoints in the repository; tests/golden/SOURCES.md describes them."""
    return GOLDEN


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Folder of checkpoints of public projects with expected values, which the repository cannot include."""
    folder = REPOSITORY.parent / "shared" / "corpus"
    if not folder.is_dir():
        reason = "no checkpoints of public projects in ../shared/corpus"
        if os.environ.get(REQUIRE_CORPUS) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_CORPUS}=1 requires them")
        pytest.skip(reason)
    return folder
