"""Object-based checkpoints from TensorFlow to torch and back; all values are consumed each time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from object_trees import LEARNING_RATE, OPTIMIZERS, SLOTS, Built, Tree, described, generated, tensor_of
from tensorflow_process import Call, RawTensor, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.objects.checkpoint import Checkpoint

# Every tenth has names that TensorFlow cannot read back.
SEEDS = [seed for seed in range(40) if seed % 10 != 9]


@pytest.mark.parametrize("optimizers", [False, True], ids=["trees", "trees with optimizers"])
def test_ours_restores_theirs(tensorflow: TensorFlowProcess, tmp_path: Path, optimizers: bool) -> None:
    """Trees with lists, dicts, tuples, modules, shared nodes, cycles, escaped names are restored into zeros.

    All asserts hold, and all values and slot variables are TensorFlow's.
    """
    trees = [generated(seed, optimizers=optimizers) for seed in SEEDS]
    results = tensorflow.batch(
        [Call("tensorflow_objects.write", (str(tmp_path / f"{n}" / "m"), *tree, n % 3)) for n, tree in enumerate(trees)]
    )
    for n, (tree, result) in enumerate(zip(trees, results, strict=True)):
        assert not isinstance(result, Exception), (n, result)
        path, values, slots = result
        built = Built(tree)
        status = built.checkpoint.restore(path) if n % 3 else built.checkpoint.read(path)
        assert status.assert_consumed() is status
        assert status.assert_existing_objects_matched() is status
        assert status.assert_nontrivial_match() is status
        assert built.values() == values
        for optimizer, variable, slot, value in slots:
            assert built.slot(optimizer, variable, slot) == value
        if n % 3:
            assert int(built.checkpoint.save_counter) == n % 3


@pytest.mark.parametrize("optimizers", [False, True], ids=["trees", "trees with optimizers"])
def test_theirs_restores_ours(tensorflow: TensorFlowProcess, tmp_path: Path, optimizers: bool) -> None:
    """The other direction."""
    trees, expected, calls = [generated(seed, optimizers=optimizers) for seed in SEEDS], [], []
    for n, tree in enumerate(trees):
        values = {place: tree.nodes[place][1][1] for place in tree.of_kind("variable")}
        slots = [
            (place, variable, slot, RawTensor.of(tensor_of(values[variable]) + 0.5))
            for place in tree.of_kind(*OPTIMIZERS)
            for kind, slot in SLOTS
            if kind == tree.nodes[place][0]
            for variable in tree.nodes[place][1]
        ]
        checkpoint = Built(tree, values, slots).checkpoint
        prefix = tmp_path / f"{n}" / "m"
        path = "" if n % 3 else checkpoint.write(prefix)
        for _ in range(n % 3):
            path = checkpoint.save(prefix)
        expected.append((values, slots, n % 3))
        calls.append(Call("tensorflow_objects.restore", (path, *tree), {"counted": n % 3 > 0}))
    for n, (result, (values, slots, counter)) in enumerate(zip(tensorflow.batch(calls), expected, strict=True)):
        assert not isinstance(result, Exception), (n, result)
        assert result[0] == values
        assert sorted(result[1]) == sorted(slots)
        assert result[2] == (counter or -1)


class Net(nn.Module):
    """One of each kind of module that contains others."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("cache", torch.rand(3), persistent=False)
        self.register_parameter("absent", None)
        self.fc = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.body = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Conv1d(1, 2, 3, bias=False))
        self.blocks = nn.ModuleList([nn.Embedding(4, 2), nn.ModuleList([nn.LayerNorm(2)])])
        self.heads = nn.ModuleDict({"a/b": nn.Linear(2, 1), "two words": nn.Linear(2, 2)})
        self.scalars = nn.ParameterList([torch.rand(2), torch.rand(1)])
        self.heads["tied"] = self.fc
        self.blocks[0].also = self.scale


def assert_same_module(one: nn.Module, other: nn.Module) -> None:
    """Assert that the states are equal bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert {key: RawTensor.of(value) for key, value in ours.items()} == {
        key: RawTensor.of(value) for key, value in theirs.items()
    }


def test_modules_go_to_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """tf.Modules with the attributes of a torch module restore Checkpoint(model=module), and a Checkpoint with the
    module as root; nothing is left over on either side."""
    model = Net()
    tree = described(model)
    values = {place: tree.nodes[place][1][1] for place in tree.of_kind("variable")}
    path = Checkpoint(model=model).save(tmp_path / "m")
    assert tensorflow.call("tensorflow_objects.restore", path, *tree) == (values, [], 1)
    beside = Tree(
        [*tree.nodes, ("variable", ("epoch", RawTensor.of(torch.tensor(3.0))))], [("epoch", len(tree.nodes))], 0
    )
    rooted = Checkpoint(model, epoch=torch.tensor(3.0))
    rooted.save(tmp_path / "rooted")
    path = rooted.save(tmp_path / "rooted")
    restored, _, counter = tensorflow.call("tensorflow_objects.restore", path, *beside)
    assert restored == {**values, len(tree.nodes): RawTensor.of(torch.tensor(3.0))}
    assert counter == 2
    bare = Checkpoint(model).write(tmp_path / "bare")
    only = tree._replace(kwargs=[], root=0)
    assert tensorflow.call("tensorflow_objects.restore", bare, *only, counted=False) == (values, [], -1)


def test_modules_come_from_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The other direction: a torch module restores the values of tf.Modules with its attributes; ties are kept."""
    expected, model = Net(), Net()
    tree = described(expected)
    path, _, _ = tensorflow.call("tensorflow_objects.write", str(tmp_path / "m"), *tree, 3)
    checkpoint = Checkpoint(model=model)
    checkpoint.restore(path).assert_consumed()
    assert_same_module(model, expected)
    assert int(checkpoint.save_counter) == 3
    assert model.heads["tied"] is model.fc and model.blocks[0].also is model.scale
    rooted = Checkpoint(Net())
    path, _, _ = tensorflow.call("tensorflow_objects.write", str(tmp_path / "bare"), tree.nodes, [], 0)
    rooted.read(path).assert_consumed()


def linear(seed: int) -> tuple[nn.Linear, Tree]:
    """A layer, and its tree with TensorFlow's Adam."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    tree = described(model)
    variables = tree.of_kind("variable")
    tree.nodes.append(("adam", variables))
    tree.kwargs.append(("optimizer", len(tree.nodes) - 1))
    return model, tree


def adam(model: nn.Module) -> torch.optim.Adam:
    """The optimizer of tests/support/tensorflow_objects.py, with TensorFlow's epsilon."""
    return torch.optim.Adam(model.parameters(), LEARNING_RATE, (0.5, 0.75), eps=1e-8)


def step(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Make the same step as tests/support/tensorflow_objects.py."""
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.ones_like(parameter) * 2.0 ** -(number % 3)
    optimizer.step()


def assert_near(model: nn.Module, tree: Tree, values: dict[int, Any]) -> None:
    """Assert that the parameters equal TensorFlow's within 1e-6."""
    for parameter, place in zip(model.parameters(), tree.of_kind("variable"), strict=True):
        torch.testing.assert_close(parameter.detach(), tensor_of(values[place]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_adam_comes_from_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path, steps: int) -> None:
    """Moments and the number of steps are restored in torch's Adam: the next step equals TensorFlow's."""
    _, tree = linear(0)
    model, _ = linear(1)
    place = len(tree.nodes) - 1
    values, slots, later = tensorflow.call(
        "tensorflow_objects.train", str(tmp_path / "m"), tree.nodes, tree.kwargs, place, steps
    )
    optimizer = adam(model)
    Checkpoint(model=model, optimizer=optimizer).read(tmp_path / "m").assert_consumed()
    parameters = dict(zip(tree.of_kind("variable"), model.parameters(), strict=True))
    for _, variable, slot, value in slots:
        assert RawTensor.of(optimizer.state[parameters[variable]][SLOTS["adam", slot]]) == value
    assert [float(state["step"]) for state in optimizer.state.values()] == [steps + 1.0] * 2
    assert {variable: RawTensor.of(parameter) for variable, parameter in parameters.items()} == values
    step(optimizer, model)
    assert_near(model, tree, later)


@pytest.mark.parametrize("steps", [1, 7])
def test_adam_goes_to_tensorflow(tensorflow: TensorFlowProcess, tmp_path: Path, steps: int) -> None:
    """The other direction; assert_consumed holds in TensorFlow although torch stores more."""
    model, tree = linear(2)
    optimizer = adam(model)
    for _ in range(steps):
        step(optimizer, model)
    path = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "m")
    _, slots, later = tensorflow.call(
        "tensorflow_objects.restore_and_step", path, tree.nodes, tree.kwargs, len(tree.nodes) - 1
    )
    parameters = dict(zip(tree.of_kind("variable"), model.parameters(), strict=True))
    assert len(slots) == 4
    for _, variable, slot, value in slots:
        assert RawTensor.of(optimizer.state[parameters[variable]][SLOTS["adam", slot]]) == value
    step(optimizer, model)
    assert_near(model, tree, later)


def test_an_untrained_adam_comes_from_tensorflow_into_a_trained_one(
    tensorflow: TensorFlowProcess, tmp_path: Path
) -> None:
    """The previous state of torch's Adam is removed, including the number of steps."""
    _, tree = linear(3)
    model, _ = linear(4)
    optimizer = adam(model)
    for _ in range(5):
        step(optimizer, model)
    _, _, later = tensorflow.call(
        "tensorflow_objects.train", str(tmp_path / "m"), tree.nodes, tree.kwargs, len(tree.nodes) - 1, 0
    )
    Checkpoint(model=model, optimizer=optimizer).read(tmp_path / "m").assert_consumed()
    step(optimizer, model)
    assert_near(model, tree, later)


def test_managers_take_turns(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Our manager, theirs, and ours again in one directory.

    Each restores the last checkpoint of the other, continues to count, and deletes old ones.
    """
    model = Net()
    tree = described(model)
    ours = tfckpt.CheckpointManager(Checkpoint(model=model), tmp_path, 3)
    for _ in range(2):
        ours.save()
    values = {place: tree.nodes[place][1][1] for place in tree.of_kind("variable")}
    restored, found, listed = tensorflow.call("tensorflow_objects.manage", str(tmp_path), tree.nodes, tree.kwargs, 2, 3)
    assert Path(restored).name == "ckpt-2"
    assert found == values
    assert [Path(path).name for path in listed] == ["ckpt-2", "ckpt-3", "ckpt-4"]
    again = Net()
    checkpoint = Checkpoint(model=again)
    ours = tfckpt.CheckpointManager(checkpoint, tmp_path, 3)
    assert Path(ours.restore_or_initialize() or "").name == "ckpt-4"
    assert_same_module(again, model)
    assert Path(ours.save() or "").name == "ckpt-5"
    assert sorted(path.stem for path in tmp_path.glob("*.index")) == ["ckpt-3", "ckpt-4", "ckpt-5"]


def test_python_states_are_the_same_string(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """An object with serialize() and deserialize() is TensorFlow's PythonState in both directions."""

    class Text:
        def __init__(self, text: str) -> None:
            self.text = text

        def serialize(self) -> str:
            return self.text

        def deserialize(self, string_value: str) -> None:
            self.text = string_value

    assert tensorflow.call("tensorflow_objects.python_state", str(tmp_path / "theirs"), "größe 3\n") == "größe 3\n"
    state = Text("")
    Checkpoint(state=state).read(tmp_path / "theirs").assert_consumed()
    assert state.text == "größe 3\n"
    path = Checkpoint(state=Text("42 日本")).write(tmp_path / "ours")
    assert tensorflow.call("tensorflow_objects.read_python_state", path) == "42 日本"
    for suffix in (".index", ".data-00000-of-00001"):
        same = Checkpoint(state=Text("größe 3\n")).write(tmp_path / "same")
        assert Path(f"{same}{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_one_object_graph_with_one_of_each(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """TensorFlow's tree with a table, Python state and an optimizer: ours restores what it has objects for, and the
    status lists the rest by path."""
    tensorflow.call("object_checkpoint", str(tmp_path / "m"))
    model = nn.Module()
    model.kernel = nn.Parameter(torch.zeros(2, 2))
    model.bias = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([model.kernel, model.bias], 0.5, 0.5)
    checkpoint = Checkpoint(
        model=model,
        optimizer=optimizer,
        layers=[torch.zeros((), dtype=torch.int32), torch.zeros(2, dtype=torch.bool)],
        by_name={"a/b.c": torch.zeros(3, dtype=torch.int64)},
        same=model.bias,
    )
    status = checkpoint.read(tmp_path / "m")
    status.assert_existing_objects_matched().assert_nontrivial_match().expect_partial()
    assert model.kernel.tolist() == [[0.5, 2.0], [3.0, 3.5]]
    assert optimizer.state[model.kernel]["momentum_buffer"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(AssertionError, match=r"Unresolved object in checkpoint.*\(root\)\.(state|table)"):
        status.assert_consumed()
