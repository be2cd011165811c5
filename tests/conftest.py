"""Fixtures that every test may use: the oracle, and the checkpoints of this repository and of the folder beside it."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden_files import GOLDEN
from hypothesis import settings
from tensorflow_process import TensorFlowProcess

REPOSITORY = Path(__file__).resolve().parent.parent
# On shared cores a sound example now and then takes longer than the 200 ms that hypothesis allows by default.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

REQUIRE_TENSORFLOW = "TORCH_TFCKPT_REQUIRE_TENSORFLOW"
REQUIRE_CORPUS = "TORCH_TFCKPT_REQUIRE_CORPUS"


@pytest.fixture(scope="session")
def tensorflow() -> Iterator[TensorFlowProcess]:
    """TensorFlow in a process of its own, one per test session (and per worker of pytest-xdist)."""
    # find_spec only looks: importing TensorFlow beside torch is what this fixture is there to avoid.
    if importlib.util.find_spec("tensorflow") is None:
        reason = "tensorflow is not installed; `pip install -e .[interop] -c scripts/constraints.txt` brings it"
        if os.environ.get(REQUIRE_TENSORFLOW) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_TENSORFLOW}=1 asks for it")
        pytest.skip(reason)
    with TensorFlowProcess() as process:
        yield process


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of checkpoints that come with the repository; tests/golden/SOURCES.md describes them."""
    return GOLDEN


@pytest.fixture(scope="session")
def corpus() -> Path:
    """A folder of checkpoints of public projects with expected values, which are not ours to ship: ../shared/corpus."""
    folder = REPOSITORY.parent / "shared" / "corpus"
    if not folder.is_dir():
        reason = "there are no checkpoints of public projects beside this repository (../shared/corpus)"
        if os.environ.get(REQUIRE_CORPUS) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_CORPUS}=1 asks for them")
        pytest.skip(reason)
    return folder
