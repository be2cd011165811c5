"""Trees of objects that are the same for our Checkpoint and for TensorFlow's.

They are generated from a seed, or describe a torch module, in the form of tests/support/tensorflow_objects.py.
"""

import random
from collections.abc import Mapping
from itertools import count
from typing import Any, Final, NamedTuple

import torch
from tensorflow_process import RawTensor
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.objects.checkpoint import Checkpoint

CONTAINERS: Final = ("module", "dict", "list", "tuple")
OPTIMIZERS: Final = ("adam", "momentum", "adagrad")
LOCAL_NAMES: Final = (
    "a", "b", "kernel", "bias", "layers", "w_1", "a/b", "a/b/c", "c/", "x.y", "d/.S", "a.Sb", ".OPTIMIZER_SLOT",
    "größe", "日本語", "two words", "7", "-1", "A", "_private", "%s",
)  # fmt: skip
# TensorFlow writes these, but cannot read them back.
WRITE_ONLY_NAMES: Final = (".ATTRIBUTES", "d/.ATTRIBUTES/f")
DTYPES: Final = (
    torch.float32, torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.uint8, torch.int8, torch.bool, torch.complex64,
)  # fmt: skip
SHAPES: Final = ((), (1,), (5,), (2, 3), (0,), (3, 1, 2))
SLOTS: Final = {
    ("adam", "m"): "exp_avg", ("adam", "v"): "exp_avg_sq",
    ("momentum", "momentum"): "momentum_buffer", ("adagrad", "accumulator"): "sum",
}  # fmt: skip
# As in tests/support/tensorflow_objects.py, which cannot be imported here: it imports TensorFlow.
LEARNING_RATE, MOMENTUM, BETAS = 0.5, 0.5, (0.5, 0.75)

Slot = tuple[int, int, str, RawTensor]  # optimizer, variable, slot name, value


class Tree(NamedTuple):
    """A tree in the form of tests/support/tensorflow_objects.py."""

    nodes: list[tuple[str, Any]]
    kwargs: list[tuple[str, int]]
    root: int | None = None

    def of_kind(self, *kinds: str) -> list[int]:
        """The positions of all nodes of some kinds."""
        return [place for place, (kind, _) in enumerate(self.nodes) if kind in kinds]


class Pool(NamedTuple):
    """Building blocks for names."""

    names: tuple[str, ...]
    numbers: "count[int]"


def generated(seed: int, *, optimizers: bool = False) -> Tree:
    """Nested modules, lists, dicts and tuples, with shared variables and modules, cycles, and names to be escaped.

    Every tenth tree has names that TensorFlow cannot read back.
    """
    rng = random.Random(seed)
    tree = Tree([], [])
    pool = Pool(LOCAL_NAMES + WRITE_ONLY_NAMES if seed % 10 == 9 else LOCAL_NAMES, count())
    root = _module(rng, tree, pool, 0) if seed % 4 == 3 else None
    names = rng.sample(pool.names, rng.randint(1, 5))
    if root is not None:
        names = [name for name in names if name not in dict(tree.nodes[root][1])]
    tree.kwargs.extend((name, _node(rng, tree, pool, 0)) for name in names)
    tree.kwargs.append(("at_least_one", _variable(rng, tree, pool, torch.float32)))
    if optimizers:
        trained = [place for place in tree.of_kind("variable") if tree.nodes[place][1][1].dtype == "float32"]
        for kind in rng.sample(OPTIMIZERS, rng.randint(1, 3)):
            chosen = rng.sample(trained, rng.randint(1, len(trained)))
            tree.nodes.append((kind, chosen))
            tree.kwargs.append((f"my.{kind}" if rng.random() < 0.5 else f"{kind}/1", len(tree.nodes) - 1))
    return tree._replace(root=root)


def _node(rng: random.Random, tree: Tree, pool: Pool, depth: int) -> int:
    """The position of a new or an existing node."""
    shared = tree.of_kind("variable", "module")
    if shared and rng.random() < 0.15:
        return rng.choice(shared)
    if depth == 4 or rng.random() < 0.4:
        return _variable(rng, tree, pool, rng.choice(DTYPES))
    kind = rng.choice(CONTAINERS)
    if kind == "module":
        return _module(rng, tree, pool, depth)
    place = len(tree.nodes)
    tree.nodes.append((kind, []))
    # The second of two empty containers inside another is a value in ours, and TensorFlow creates no object for ().
    size = rng.randint(1 if depth or kind == "tuple" else 0, 4)
    if kind == "dict":
        names = rng.sample(pool.names, size)
        payload: list[Any] = [(name, _node(rng, tree, pool, depth + 1)) for name in names]
    else:
        payload = [_node(rng, tree, pool, depth + 1) for _ in range(size)]
    tree.nodes[place] = (kind, payload)
    return place


def _module(rng: random.Random, tree: Tree, pool: Pool, depth: int) -> int:
    place = len(tree.nodes)
    tree.nodes.append(("module", []))
    names = rng.sample(pool.names, rng.randint(0, 5))
    tree.nodes[place] = ("module", [(name, _node(rng, tree, pool, depth + 1)) for name in names])
    return place


def _variable(rng: random.Random, tree: Tree, pool: Pool, dtype: torch.dtype) -> int:
    shape = rng.choice(SHAPES)
    # Multiples of 1/4, so that an optimizer step is exact on both sides.
    elements = [rng.randint(0, 100) / (4 if dtype.is_floating_point else 1) for _ in range(torch.Size(shape).numel())]
    value = torch.tensor(elements, dtype=dtype).reshape(shape)
    name = f"{rng.choice(('v', 'scope/v', 'a/b/v', 'v.'))}{next(pool.numbers)}"
    tree.nodes.append(("variable", (name, RawTensor.of(value))))
    return len(tree.nodes) - 1


def tensor_of(raw: RawTensor) -> torch.Tensor:
    """A tensor with the same bytes."""
    dtype = getattr(torch, raw.dtype)
    flat = torch.frombuffer(bytearray(raw.data), dtype=dtype) if raw.data else torch.empty(0, dtype=dtype)
    return flat.reshape(raw.shape).clone()


class Node:
    """An object that lists its children in any order."""

    def __init__(self) -> None:
        self.children: dict[str, object] = {}

    def _trackable_children(self) -> dict[str, object]:
        return self.children


class Built:
    """The objects of a tree, and our checkpoint of them."""

    def __init__(self, tree: Tree, values: Mapping[int, RawTensor] | None = None, slots: list[Slot] | None = None):
        """`values` are those of all variables (default: zeros); `slots` is the optimizers' state (default: none)."""
        self._tree = tree
        self.tensors = {
            place: tensor_of(tree.nodes[place][1][1] if values is None else values[place])
            for place in tree.of_kind("variable")
        }
        if values is None:
            for tensor in self.tensors.values():
                tensor.zero_()
        self.objects: list[Any] = [Node() if kind == "module" else None for kind, _ in tree.nodes]
        for place, tensor in self.tensors.items():
            self.objects[place] = tfckpt.Variable(tensor, tree.nodes[place][1][0])
        for place in reversed(tree.of_kind("dict", "list", "tuple")):
            self.objects[place] = self._container(*tree.nodes[place])
        for place in tree.of_kind("module"):
            self.objects[place].children = {name: self.objects[child] for name, child in tree.nodes[place][1]}
        for place in tree.of_kind(*OPTIMIZERS):
            kind, trained = tree.nodes[place]
            self.objects[place] = optimizer_of(kind, [self.tensors[each] for each in trained])
            for optimizer, variable, slot, value in slots or ():
                if optimizer == place:
                    state = self.objects[place].state[self.tensors[variable]]
                    state[SLOTS[kind, slot]] = tensor_of(value)
                    if kind != "momentum":
                        state["step"] = torch.tensor(1.0)
        root = None if tree.root is None else self.objects[tree.root]
        self.checkpoint = Checkpoint(root, **{name: self.objects[place] for name, place in tree.kwargs})

    def _container(self, kind: str, payload: list[Any]) -> object:
        if kind == "dict":
            return {key: self.objects[child] for key, child in payload}
        items = [self.objects[child] for child in payload]
        return items if kind == "list" else tuple(items)

    def values(self) -> dict[int, RawTensor]:
        """Position of each variable -> its value."""
        return {place: RawTensor.of(tensor) for place, tensor in self.tensors.items()}

    def slot(self, optimizer: int, variable: int, slot: str) -> RawTensor:
        """The value of one slot variable."""
        kind, _ = self._tree.nodes[optimizer]
        return RawTensor.of(self.objects[optimizer].state[self.tensors[variable]][SLOTS[kind, slot]])


def optimizer_of(kind: str, tensors: list[torch.Tensor]) -> torch.optim.Optimizer:
    """torch's counterpart of the optimizer in tests/support/tensorflow_objects.py."""
    if kind == "adam":
        return torch.optim.Adam(tensors, LEARNING_RATE, BETAS)
    if kind == "momentum":
        return torch.optim.SGD(tensors, LEARNING_RATE, MOMENTUM)
    return torch.optim.Adagrad(tensors, LEARNING_RATE)


def described(module: nn.Module) -> Tree:
    """A torch module as a tree for TensorFlow: tf.Modules with the same attributes. The module is `model`.

    An object that is reached twice is one node.
    """
    nodes: list[tuple[str, Any]] = []
    places: dict[int, int] = {}

    def place_of(item: nn.Module | torch.Tensor) -> int:
        if id(item) in places:
            return places[id(item)]
        place = places[id(item)] = len(nodes)
        if isinstance(item, torch.Tensor):
            nodes.append(("variable", (f"v{place}", RawTensor.of(item))))
            return place
        nodes.append(("module", []))
        parts: list[tuple[str, Any]] = [
            *item._parameters.items(),
            *((n, b) for n, b in item._buffers.items() if n not in item._non_persistent_buffers_set),
            *item._modules.items(),
        ]
        nodes[place] = ("module", [(name, place_of(part)) for name, part in parts if part is not None])
        return place

    model = place_of(module)
    return Tree(nodes, [("model", model)])
