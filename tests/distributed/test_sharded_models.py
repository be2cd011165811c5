"""load_model into modules that are spread over ranks: equal to one whole module, and each rank reads its part."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_processes import RankProcesses
from sharded_models import FLATTENED_RULES, HEAD, HEADS, HIDDEN, INNER, WORDS
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes that Linux reports")
LAYOUTS = [("fsdp", 3), ("tp and fsdp", 4)]


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    with RankProcesses(4) as four:
        yield four


def _bert(*, heads: bool) -> dict[str, np.ndarray]:
    """Variables of an encoder by the names and shapes of TensorFlow 1; with `heads`, kernels have an axis of heads."""
    rng = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {"bert/words/embeddings": (WORDS, HIDDEN)}
    for layer in ("bert/layer_0/", "bert/layer_1/"):
        for name in ("query", "key", "value"):
            shapes[f"{layer}attention/{name}/kernel"] = (HIDDEN, HEADS, HEAD) if heads else (HIDDEN, HIDDEN)
            shapes[f"{layer}attention/{name}/bias"] = (HEADS, HEAD) if heads else (HIDDEN,)
        shapes[f"{layer}attention/output/kernel"] = (HEADS, HEAD, HIDDEN) if heads else (HIDDEN, HIDDEN)
        shapes[f"{layer}attention/output/bias"] = (HIDDEN,)
        shapes |= {f"{layer}norm/gamma": (HIDDEN,), f"{layer}norm/beta": (HIDDEN,)}
        shapes |= {f"{layer}up/kernel": (HIDDEN, INNER), f"{layer}up/bias": (INNER,)}
        shapes |= {f"{layer}down/kernel": (INNER, HIDDEN), f"{layer}down/bias": (HIDDEN,)}
    shapes |= {"bert/pooler/kernel": (HIDDEN, HIDDEN), "bert/pooler/bias": (HIDDEN,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("kind", "ranks"), LAYOUTS)
@pytest.mark.parametrize("heads", [False, True])
def test_bert_by_names(
    processes: RankProcesses, tensorflow: TensorFlowProcess, tmp_path: Path, kind: str, ranks: int, heads: bool
) -> None:
    """A checkpoint of TensorFlow 1; without `verify`, a rank reads little more than its part."""
    path = str(tmp_path / "bert")
    tensorflow.call("save_v2", path, _bert(heads=heads))
    for rank in processes.call("sharded_models:load_spread", path, "bert", kind, world_size=ranks):
        assert rank["bytes"] <= rank["read"] <= 1.2 * rank["bytes"]


@pytest.mark.parametrize(("kind", "ranks"), LAYOUTS)
def test_cnn_by_objects(
    processes: RankProcesses, tensorflow: TensorFlowProcess, tmp_path: Path, kind: str, ranks: int
) -> None:
    """A checkpoint of Keras's objects with the state of Adam, into the module and an optimizer over it."""
    path = str(tmp_path / "cnn")
    tensorflow.call("tensorflow_models.save_twin", path, 5, trained=True)
    processes.call("sharded_models:load_spread", path, "cnn", kind, world_size=ranks)
    slots = processes.call("sharded_models:load_spread_optimizer", path, kind, world_size=ranks)
    assert "conv.weight exp_avg" in slots[0]


@pytest.mark.parametrize(("assign", "on_meta"), [(True, False), (True, True), (False, True)])
def test_cnn_on_the_meta_device_and_assigned(
    processes: RankProcesses, tensorflow: TensorFlowProcess, tmp_path: Path, assign: bool, on_meta: bool
) -> None:
    path = str(tmp_path / "cnn")
    tensorflow.call("tensorflow_models.save_twin", path, 6, trained=False)
    processes.call("sharded_models:load_spread", path, "cnn", "fsdp", assign=assign, on_meta=on_meta, world_size=2)


@pytest.mark.parametrize(("kind", "ranks"), LAYOUTS)
def test_checkpoint_of_objects(processes: RankProcesses, tmp_path: Path, kind: str, ranks: int) -> None:
    processes.call("sharded_models:restore_objects", str(tmp_path / "objects"), kind, world_size=ranks)


def test_a_module_with_a_hook(processes: RankProcesses, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    path = str(tmp_path / "cnn")
    tensorflow.call("tensorflow_models.save_twin", path, 7, trained=False)
    processes.call("sharded_models:load_with_load_hook", path, world_size=2)


@pytest.mark.parametrize(("kind", "ranks"), LAYOUTS)
def test_layouts_that_do_more_than_move_axes(processes: RankProcesses, tmp_path: Path, kind: str, ranks: int) -> None:
    """A flattened map, a depthwise convolution, the gates of an LSTM: read whole where they must be, and cut."""
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        **{"conv/kernel": (3, 3, 3, 4), "conv/bias": (4,)},
        **{"depthwise/depthwise_kernel": (3, 3, 4, 2), "depthwise/bias": (8,)},
        **{"fc/kernel": (48, 6), "fc/bias": (6,)},
        **{"lstm/kernel": (6, 20), "lstm/recurrent_kernel": (5, 20), "lstm/bias": (20,)},
    }
    path = tfckpt.save_file({k: torch.randn(s, generator=generator) for k, s in shapes.items()}, tmp_path / "m")
    call = "sharded_models:load_spread"
    processes.call(call, path, "flattened", kind, world_size=ranks, mapper=FLATTENED_RULES, strict="names")
