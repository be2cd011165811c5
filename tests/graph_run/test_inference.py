"""`module(inference=True)` turns off dropout and statistics of the batch, and refuses what it does not know."""

from pathlib import Path
from typing import Any

import pytest
import torch
from op_rows import torch_of
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt

KINDS = {"reference": False, "resource": True}


def restored(prefix: Path) -> tfckpt.ImportedMetaGraph:
    """The graph of `prefix`.meta, with the variables of the checkpoint `prefix`."""
    imported = tfckpt.import_meta_graph(f"{prefix}.meta")
    assert imported.saver is not None
    imported.saver.restore(str(prefix))
    return imported


@pytest.fixture(scope="module", params=KINDS)
def training(
    request: pytest.FixtureRequest, tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tfckpt.ImportedMetaGraph, dict[str, Any]]:
    """A graph for training, restored, and what TensorFlow computes from the same variables for inference."""
    prefix = tmp_path_factory.mktemp("training") / "model"
    computed = tensorflow.call("tensorflow_runs.training_graph", str(prefix), KINDS[request.param])
    return restored(prefix), computed


def test_training_is_turned_off(training: tuple[tfckpt.ImportedMetaGraph, dict[str, Any]]) -> None:
    """Three forms of dropout, a fused normalisation and one of moments; each change is listed."""
    imported, computed = training
    net = imported.module(["x:0"], ["trained:0"], inference=True)
    (found,) = net(torch.from_numpy(computed["x"]))
    torch.testing.assert_close(found.detach(), torch_of(computed["expected"]), rtol=1e-4, atol=1e-5)
    lines = net.meta["inference"]
    assert [line.split()[0] for line in lines] == [
        "normalisation",
        "dropout",
        "dropout",
        "dropout",
        "statistic",
        "statistic",
    ]
    assert '"net/mean" and "net/variance"' in lines[0]
    assert {line.split()[-1] for line in lines[-2:]} == {'"net/mean_of_rows"', '"net/variance_of_rows"'}


def test_the_graph_is_as_it_is_by_default(training: tuple[tfckpt.ImportedMetaGraph, dict[str, Any]]) -> None:
    """Without `inference`, dropout changes the values of each call."""
    imported, computed = training
    net = imported.module(["x:0"], ["trained:0"], {"keep:0": 0.5})
    x = torch.from_numpy(computed["x"])
    assert not torch.equal(net(x)[0], net(x)[0])
    assert net.meta["inference"] == []


@pytest.mark.parametrize(("output", "message"), [("sampled", "RandomStandardNormal"), ("normalised", "Mean")])
def test_what_is_not_known_is_refused(
    output: str, message: str, training: tuple[tfckpt.ImportedMetaGraph, dict[str, Any]]
) -> None:
    """Other random numbers, and statistics of the batch without moving averages."""
    names = [node.name for node in training[0].meta_graph_def.graph_def.node if node.name.startswith(output)]
    with pytest.raises(tfckpt.UnimplementedError, match=f"inference=True does not know.*{message}"):
        training[0].module(["x:0"], [f"{names[-1]}:0"], inference=True)


@pytest.fixture(scope="module")
def functions(
    tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tfckpt.ImportedMetaGraph, dict[str, Any]]:
    """A graph with dropout in the functions of TensorFlow 2."""
    prefix = tmp_path_factory.mktemp("functions") / "model"
    computed = tensorflow.call("tensorflow_runs.training_functions", str(prefix))
    return restored(prefix), computed


def test_dropout_in_functions(functions: tuple[tfckpt.ImportedMetaGraph, dict[str, Any]]) -> None:
    """In loops, branches and called functions, inside each other; each change is listed."""
    imported, computed = functions
    net = imported.module(["x:0", "is_high:0"], ["trained:0"], inference=True)
    x = torch.from_numpy(computed["x"])
    for flag, expected in enumerate(computed["expected"]):
        torch.testing.assert_close(net(x, torch.tensor(bool(flag)))[0].detach(), torch_of(expected))
    lines = net.meta["inference"]
    assert len(lines) == 6, lines  # two branches call the same function
    assert all(line.startswith("dropout at ") for line in lines)
    module = imported.module(["x:0", "is_high:0"], ["trained:0"])
    assert not torch.equal(module(x, torch.tensor(True))[0], module(x, torch.tensor(True))[0])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        *((name, "random numbers") for name in ("noise", "cut", "seeded", "sampled")),
        *((f"{name}_in_loop", "random numbers") for name in ("noise", "cut", "seeded", "sampled")),
        ("normalised_in_branch", "statistics of the batch without moving averages"),
    ],
)
def test_what_is_not_known_in_functions_is_refused(
    output: str, message: str, functions: tuple[tfckpt.ImportedMetaGraph, dict[str, Any]]
) -> None:
    """Random numbers of all kinds, and statistics of the batch, in the graph and in functions."""
    with pytest.raises(tfckpt.UnimplementedError, match=f"inference=True does not know how to turn off .*{message}"):
        functions[0].module(["x:0", "is_high:0"], [f"{output}:0"], inference=True)
