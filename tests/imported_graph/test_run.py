"""Imported graphs run in torch: values and gradients are TensorFlow's, and what was trained goes back."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from op_rows import torch_of
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.types_pb2 import DT_FLOAT

KINDS = {"reference": False, "resource": True}


@pytest.fixture(scope="module", params=KINDS)
def classifier(
    request: pytest.FixtureRequest, tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    """A checkpoint with its graph, and what TensorFlow computes."""
    prefix = str(tmp_path_factory.mktemp("net") / "model")
    return prefix, tensorflow.call("tensorflow_runs.classifier", prefix, KINDS[request.param])


def restored(prefix: str, **options: Any) -> tfckpt.ImportedMetaGraph:
    imported = tfckpt.import_meta_graph(f"{prefix}.meta", **options)
    assert imported.saver is not None
    imported.saver.restore(prefix)
    return imported


def close(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found.detach(), torch_of(expected), rtol=1e-4, atol=1e-5)


def test_the_example_of_the_original(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """`sess.run("v4:0", feed_dict={"v1:0": 12.0, "v2:0": 3.3})` prints 59.6."""
    prefix = str(tmp_path / "model")
    tensorflow.call("tensorflow_runs.product_and_sum", prefix)
    assert round(float(restored(prefix).run("v4:0", {"v1:0": 12.0, "v2:0": 3.3})), 5) == 59.6


@pytest.mark.parametrize("training", [False, True])
def test_run_equals_tensorflow(training: bool, classifier: tuple[str, dict[str, Any]]) -> None:
    """With a placeholder that decides about batch statistics, fed or not; results keep the structure of fetches."""
    prefix, computed = classifier
    feeds = {**computed["feeds"], **({"training:0": True} if training else {})}
    imported = restored(prefix)
    found = imported.run({"loss": "loss:0", "others": ["net/logits:0", ("loss",)]}, feeds)
    loss, logits = computed["found"][training][:2]
    close(found["loss"], loss)
    close(found["others"][0], logits)
    assert isinstance(found["others"][1], tuple)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_tensorflow(training: bool, classifier: tuple[str, dict[str, Any]]) -> None:
    """Those of the graph's own loss, for all trainable variables, by autograd."""
    prefix, computed = classifier
    imported = restored(prefix)
    net = imported.module(["x:0", "labels:0"], ["loss:0"], constants={"keep:0": 1.0, "training:0": training})
    feeds = computed["feeds"]
    (loss,) = net(torch.from_numpy(feeds["x:0"]), torch.from_numpy(feeds["labels:0"]))
    loss.backward()
    expected, _, *slopes = computed["found"][training]
    close(loss, expected)
    parameters = dict(net.named_parameters())
    assert sorted(parameters) == sorted(name.replace("/", ".") for name in computed["names"])
    for name, slope in zip(computed["names"], slopes, strict=True):
        found = parameters[name.replace("/", ".")].grad
        assert found is not None
        close(found, slope)


def test_train_and_eval_choose(classifier: tuple[str, dict[str, Any]]) -> None:
    """Constants of `when_training` and `when_evaluating` apply after `train()` and `eval()`."""
    prefix, computed = classifier
    net = restored(prefix).module(
        ["x:0", "labels:0"],
        ["loss:0", "net/logits:0"],
        constants={"keep:0": 1.0},
        when_training={"training:0": True},
        when_evaluating={"training:0": False},
    )
    arguments = [torch.from_numpy(computed["feeds"][name]) for name in ("x:0", "labels:0")]
    for training in (True, False, True):
        net.train(training)
        for found, expected in zip(net(*arguments), computed["found"][training], strict=False):
            close(found, expected)
    assert set(net.state_dict()) == {
        "net.conv.kernel", "net.conv.bias", "net.bn.gamma", "net.bn.beta", "net.bn.mean", "net.bn.variance",
        "net.dense.kernel", "net.dense.bias",
    }  # fmt: skip
    assert {name for name, _ in net.named_buffers()} >= {"net.bn.mean", "net.bn.variance"}


def test_modules_can_be_copied(classifier: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """A deep copy and a pickled copy have the same state_dict and give the same values."""
    prefix, computed = classifier
    net = restored(prefix).module(["x:0"], ["net/logits:0"], {"keep:0": 1.0})
    x = torch.from_numpy(computed["feeds"]["x:0"])
    (expected,) = net(x)
    torch.save(net, tmp_path / "net.pt")
    for other in (copy.deepcopy(net), torch.load(tmp_path / "net.pt", weights_only=False)):
        assert list(other.state_dict()) == list(net.state_dict())
        torch.testing.assert_close(other(x)[0], expected)
        other.load_state_dict(net.state_dict())


def test_fine_tune_and_hand_back(
    classifier: tuple[str, dict[str, Any]], tensorflow: TensorFlowProcess, tmp_path: Path
) -> None:
    """Train the graph's own loss in torch; save with the graph's saver; TensorFlow computes the same loss."""
    prefix, computed = classifier
    imported = restored(prefix)
    net = imported.module(["x:0", "labels:0"], ["loss:0"], {"keep:0": 1.0})
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    arguments = [torch.from_numpy(computed["feeds"][name]) for name in ("x:0", "labels:0")]
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        (loss,) = net(*arguments)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    (last,) = net(*arguments)
    torch.testing.assert_close(imported.run("loss:0", computed["feeds"]), last.detach())
    assert imported.saver is not None
    path = imported.saver.save(str(tmp_path / "tuned"))
    theirs = tensorflow.call("tensorflow_runs.value_after_restore", path, "loss:0", computed["feeds"])
    close(last, theirs)


def test_changed_variables_are_seen(classifier: tuple[str, dict[str, Any]]) -> None:
    """What was computed from variables is computed again after an assignment, a change in place, and a restore."""
    prefix, computed = classifier
    imported = restored(prefix)
    first = imported.run("net/logits:0", computed["feeds"])
    imported.variables["net/conv/kernel"] = torch.zeros(3, 3, 3, 6)
    without = imported.run("net/logits:0", computed["feeds"])
    torch.testing.assert_close(without, without[:1].expand(4, 3))
    assert not torch.allclose(first, without)
    imported.variables["net/conv/bias"].add_(1)  # type: ignore[union-attr]  # a tensor
    assert not torch.allclose(imported.run("net/logits:0", computed["feeds"]), without)
    assert imported.saver is not None
    imported.saver.restore(prefix)
    torch.testing.assert_close(imported.run("net/logits:0", computed["feeds"]), first)


def test_results_are_copies(classifier: tuple[str, dict[str, Any]]) -> None:
    """Changing a result changes no variable, feed or later result."""
    prefix, computed = classifier
    imported = restored(prefix)
    bias = imported.variables["net/dense/bias"].clone()  # type: ignore[union-attr]
    found = imported.run(["net/dense/bias:0", "x:0"], {"x:0": computed["feeds"]["x:0"].copy()})
    before = computed["feeds"]["x:0"].copy()
    for each in found:
        each.fill_(5)
    assert torch.equal(imported.variables["net/dense/bias"], bias)  # type: ignore[arg-type]
    assert np.array_equal(computed["feeds"]["x:0"], before)
    assert torch.equal(imported.run("net/dense/bias:0"), bias)


def test_any_tensor_can_be_fed(classifier: tuple[str, dict[str, Any]]) -> None:
    """What only a fed tensor depends on is not needed, such as placeholders."""
    prefix, _ = classifier
    imported = restored(prefix)
    logits = torch.tensor([[1.0, 2, 3]])
    loss = imported.run("loss:0", {"net/logits:0": logits, "labels:0": [1]})
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.tensor([1])))


def test_an_import_scope_is_part_of_names(classifier: tuple[str, dict[str, Any]]) -> None:
    """As in TensorFlow."""
    prefix, computed = classifier
    imported = restored(prefix, import_scope="first")
    feeds = {f"first/{name}": value for name, value in computed["feeds"].items()}
    close(imported.run("first/loss:0", feeds), computed["found"][False][0])


def test_variables_must_be_restored(classifier: tuple[str, dict[str, Any]]) -> None:
    """A `.meta` file has no values; the error names variables and the call that is missing."""
    prefix, computed = classifier
    imported = tfckpt.import_meta_graph(f"{prefix}.meta")
    with pytest.raises(tfckpt.FailedPreconditionError, match=r"net/conv/kernel.*saver\.restore"):
        imported.run("loss:0", computed["feeds"])
    with pytest.raises(tfckpt.FailedPreconditionError, match=r"net/conv/kernel.*saver\.restore"):
        imported.module(["x:0"], ["net/logits:0"], {"keep:0": 1.0})


def test_initializers_run(classifier: tuple[str, dict[str, Any]]) -> None:
    """A node without outputs is run and gives None; then variables have values."""
    prefix, computed = classifier
    imported = tfckpt.import_meta_graph(f"{prefix}.meta")
    assert imported.run("init") is None
    gamma = imported.run("net/bn/gamma:0")
    assert torch.equal(gamma, torch.ones(6))
    assert imported.run("loss:0", computed["feeds"]).isfinite()


def test_requirements(classifier: tuple[str, dict[str, Any]]) -> None:
    """Inputs that are not named, and operations with their numbers."""
    prefix, _ = classifier
    found = tfckpt.import_meta_graph(f"{prefix}.meta").requirements("loss:0", inputs=["x:0"])
    assert set(found.inputs) == {"labels:0", "keep:0"}
    assert found.ops["Conv2D"] == 1
    assert not found.missing


def test_modules_do_not_change_variables_unasked(tensorflow: TensorFlowProcess) -> None:
    """Outputs that change variables are refused, unless `allow_assign` is set."""
    data, fetches, _ = tensorflow.call("tensorflow_runs.zoo", v2=True)["old_value_is_kept"]
    imported = tfckpt.import_meta_graph(MetaGraphDef.FromString(data))
    imported.variables["v"] = torch.tensor(1.0)
    with pytest.raises(tfckpt.UnimplementedError, match="allow_assign"):
        imported.module(["x:0"], fetches)
    net = imported.module(["x:0"], fetches, allow_assign=True)
    before, after, _ = (each.detach() for each in net(torch.tensor(4.0)))
    assert (float(before), float(after), float(imported.variables["v"])) == (1, 5, 5)


def test_a_function_with_a_handle_of_its_own() -> None:
    """A handle in a function is the graph's variable of that name: a value read before an assignment is the old one."""
    graph = tfckpt.GraphDef()
    function = graph.library.function.add()
    function.signature.name = "count"
    function.signature.input_arg.add(name="x", type=1)
    function.signature.output_arg.add(name="y", type=1)
    function.signature.control_output.append("add")
    function.ret["y"], function.control_ret["add"] = "read:value:0", "add"
    for nodes, name in ((graph.node, "v"), (function.node_def, "handle")):
        handle = nodes.add(name=name, op="VarHandleOp")
        handle.attr["dtype"].type = DT_FLOAT
        handle.attr["shared_name"].s = b"v"
        handle.attr["shape"].shape.dim.add(size=2)
    function.node_def.add(name="read", op="ReadVariableOp", input=["handle:resource:0"])
    function.node_def.add(name="add", op="AssignAddVariableOp", input=["handle:resource:0", "x", "^read"])
    graph.node.add(name="x", op="Placeholder").attr["dtype"].type = DT_FLOAT
    graph.node.add(name="call", op="StatefulPartitionedCall", input=["x"]).attr["f"].func.name = "count"
    graph.node.add(name="y", op="Identity", input=["call", "^call"])
    imported = tfckpt.import_graph_def(graph)
    imported.variables["v"] = torch.ones(2)
    assert imported.run("y:0", {"x:0": [1.0, 2.0]}).tolist() == [1, 1]
    assert imported.variables["v"].tolist() == [2, 3]
    with pytest.raises(tfckpt.UnimplementedError, match="allow_assign"):
        imported.module(["x:0"], ["y:0"])


def test_local_variables_live_as_long_as_the_import(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A streaming metric: its counts are set by their initializer, kept between runs, and stored nowhere."""
    prefix = str(tmp_path / "model")
    tensorflow.call("tensorflow_runs.accuracy_graph", prefix)
    imported = restored(prefix)
    with pytest.raises(tfckpt.FailedPreconditionError, match=r"mean/count.*run its initializer"):
        imported.run("update:0", {"x:0": [1.0, 2.0]})
    assert imported.run("begin") is None
    assert float(imported.run("update:0", {"x:0": [1.0, 2.0]})) == 3
    assert float(imported.run("update:0", {"x:0": [6.0]})) == 6
    assert float(imported.run("value:0")) == 6
    assert list(imported.variables) == ["w"]


def test_signatures_become_modules(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """forward takes the inputs by name and returns a dictionary; values are read from the SavedModel."""
    computed = tensorflow.call("tensorflow_runs.saved_signature", str(tmp_path / "saved"))
    imported = tfckpt.import_meta_graph(tmp_path / "saved")
    net = imported.module(signature="predict")
    x = torch.from_numpy(computed["x"])
    found = net(x=x, times=torch.tensor(3, dtype=torch.int32))
    assert list(found) == ["size", "y"]
    for name, value in found.items():
        close(value, computed[name])
    assert [name for name, _ in net.named_parameters()] == ["kernel"]
    assert set(net.state_dict()) == {"kernel", "steps"}
    (slope,) = torch.autograd.grad(found["y"].sum(), list(net.parameters()))
    assert slope.abs().max() > 0
    assert set(imported.requirements().inputs) == {"predict_x:0", "predict_times:0"}
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'no signature "predit".*"predict"'):
        imported.module(signature="predit")
