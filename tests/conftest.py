"""Fixtures for all tests: TensorFlow, the golden checkpoints, and checkpoints of public projects."""

import gc
import importlib.util
import os
from collections import Counter
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


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out tests by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as heavy all but every n-th case of a test that is marked thinned(n)."""
    counts: Counter[str] = Counter()
    for item in items:
        thinned = item.get_closest_marker("thinned")
        if thinned is not None and item.get_closest_marker("heavy") is None:
            test = item.nodeid.partition("[")[0]
            if counts[test] % thinned.args[0]:
                item.add_marker(pytest.mark.heavy)
            counts[test] += 1


@pytest.fixture(scope="module", autouse=True)
def _nothing_older_is_collected() -> None:
    """Hide the objects of earlier files from the garbage collector: in a long session one collection takes seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tensorflow() -> Iterator[TensorFlowProcess]:
    """TensorFlow in its own process, one per test session (and per worker of pytest-xdist)."""
    _require("tensorflow")
    with TensorFlowProcess() as process:
        yield process


@pytest.fixture(scope="session")
def keras_2() -> Iterator[TensorFlowProcess]:
    """Another process with TensorFlow, for Keras 2 (the package tf_keras), so that it never meets Keras 3."""
    _require("tensorflow")
    _require("tf_keras")
    with TensorFlowProcess() as process:
        yield process


def _require(module: str) -> None:
    """Skip the test if a module is not installed."""
    # find_spec does not import: these fixtures exist to avoid importing TensorFlow and torch in one process.
    if importlib.util.find_spec(module) is None:
        reason = f"{module} is not installed; `scripts/install test interop` installs it"
        if os.environ.get(REQUIRE_TENSORFLOW) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_TENSORFLOW}=1 requires it")
        pytest.skip(reason)


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
