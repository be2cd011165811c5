"""Functions that ranks run to save and load with torch.distributed.checkpoint (see rank_processes.py)."""

import warnings
from typing import Any, cast

import torch
from rank_processes import Rank
from sharded import Blocks, numbered, sharded, spread
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

import torch_tfckpt as tfckpt

warnings.filterwarnings("ignore", module="torch.distributed")

# Name -> shape, dtype, and the dimensions of Shards for a mesh of one dimension and of two; "R" for Replicate.
LAYOUTS: dict[str, tuple[tuple[int, ...], torch.dtype, list[Any], list[Any]]] = {
    "rows": ((8, 3), torch.float32, [0], [0, "R"]),
    "columns": ((3, 8), torch.float32, [1], [1, "R"]),
    "both": ((6, 10), torch.float32, [0], [0, 1]),
    "both turned": ((6, 10), torch.float64, [1], [1, 0]),
    "copied rows": ((5, 3), torch.float32, [0], ["R", 0]),
    "copies": ((3, 2), torch.float32, ["R"], ["R", "R"]),
    "uneven": ((7, 3), torch.float32, [0], [0, 0]),
    "empty shards": ((1, 3), torch.float32, [0], [0, 1]),
    "last of three": ((2, 3, 7), torch.float32, [2], [0, 2]),
    "scalar": ((), torch.float32, ["R"], ["R", "R"]),
    "no elements": ((0, 3), torch.float32, [0], [0, 1]),
    "no elements in rows": ((0, 3), torch.float32, [1], [1, "R"]),
    "bfloat16": ((8, 3), torch.bfloat16, [0], [0, 1]),
    "half": ((8, 3), torch.float16, [0], [0, 1]),
    "bool": ((9, 2), torch.bool, [0], [0, 1]),
    "int64": ((4, 4), torch.int64, [1], [0, 1]),
    "complex": ((4, 4), torch.complex64, [1], [0, 1]),
}
WIDTH = 6
HALF = "half"  # TensorFlow does not join its slices


def full_tensor(name: str) -> torch.Tensor:
    """The whole tensor of a layout."""
    shape, dtype, _, _ = LAYOUTS[name]
    return numbered(shape, dtype) if dtype != torch.bool else numbered(shape) % 3 == 0


def full_tensors() -> dict[str, torch.Tensor]:
    """All tensors of `layouts_state`, whole."""
    tensors = {name: full_tensor(name) for name in LAYOUTS}
    tensors["plain"] = numbered((3, 2))
    tensors["float8"] = numbered((4, 2)).to(torch.float8_e4m3fn)
    return tensors


def layouts_state(rank: Rank) -> dict[str, torch.Tensor]:
    """A DTensor for each layout, on a mesh of two dimensions for 4 ranks, and tensors that all ranks have."""
    state: dict[str, torch.Tensor] = {"plain": numbered((3, 2)), "float8": full_tensors()["float8"]}
    for name, (_, _, line, square) in LAYOUTS.items():
        mesh, placements = ((2, 2), square) if rank.world_size == 4 else ((rank.world_size,), line)
        state[name] = spread(full_tensor(name), mesh, placements)
    return state


LEAVES: dict[str, Any] = {
    "step": 7,
    "nested": {
        "betas": (0.9, 0.999),
        "limits": [float("inf"), -0.0, None, True],
        "raw": b"\x80\x04bytes",
        "groups": [{"lr": 1e-3, "params": ["a", "b"]}, {"lr": 2.0, "params": []}],
        "$dollar": "a key like a tag",
        "dtype": torch.bfloat16,
        "pair": (torch.tensor([1.0, 2.0]), 3),
    },
}


def zeroed(value: Any) -> Any:
    """A state_dict of the same structure, with other values."""
    if isinstance(value, DTensor):
        return torch.zeros_like(value)
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, dict):
        return {key: zeroed(item) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [zeroed(item) for item in value]
    return "another value"


def same(one: Any, other: Any) -> bool:
    """Whether two state_dicts are equal; DTensors by what this rank has."""
    if isinstance(one, DTensor) and isinstance(other, DTensor):
        return same(one.to_local(), other.to_local())
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and type(one) is type(other)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Keys with different values."""
    return [key for key in one if not same(one[key], other[key])]


def save_layouts(rank: Rank, path: str, **options: Any) -> None:
    """Save all layouts, and values that are not tensors."""
    state = {**layouts_state(rank), **LEAVES}
    save(state, storage_writer=tfckpt.TFCheckpointWriter(path, **options))


def load_layouts(rank: Rank, path: str, **options: Any) -> list[str]:
    """Load all layouts, and return the names of the values that are wrong."""
    wanted = {**layouts_state(rank), **LEAVES}
    state = zeroed(wanted)
    load(state, storage_reader=tfckpt.TFCheckpointReader(path, **options))
    return differing(wanted, state)


def trained(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    """Train a model for two steps, with the same data on all ranks."""
    decayed = [value for name, value in model.named_parameters() if name.endswith("weight")]
    others = [value for name, value in model.named_parameters() if not name.endswith("weight")]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": others, "lr": 0.02}]
    if kind == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(5, WIDTH, generator=generator)).square().sum().backward()
        optimizer.step()
    return optimizer


def model_and_optimizer(kind: str, optimizer: str, *, train: bool) -> tuple[Any, torch.optim.Optimizer]:
    """A model spread over the ranks ("plain": over none), and its optimizer."""
    model: Any = Blocks(WIDTH, 10)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-1, 1 + number, parameter.numel()).reshape(parameter.shape))
    if kind != "plain":
        model = sharded(kind, model)
    if train:
        return model, trained(model, optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model, trained(model, optimizer)


def whole(value: Any) -> Any:
    """A state_dict with whole tensors instead of DTensors."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return value


def _options(flat: bool) -> StateDictOptions:
    return StateDictOptions(flatten_optimizer_state_dict=flat)


def save_training(rank: Rank, path: str, kind: str, optimizer: str, *, flat: bool = False) -> Any:
    """Train on all ranks, save, and return the whole state."""
    model, used = model_and_optimizer(kind, optimizer, train=True)
    of_model, of_optimizer = get_state_dict(model, used, options=_options(flat))
    save({"model": of_model, "optim": of_optimizer}, storage_writer=tfckpt.TFCheckpointWriter(path))
    return training_state(model, used)


def load_training(rank: Rank, path: str, kind: str, optimizer: str, *, flat: bool = False) -> Any:
    """Load into a model that has been trained differently, and return the whole state."""
    model, used = model_and_optimizer(kind, optimizer, train=False)
    of_model, of_optimizer = get_state_dict(model, used, options=_options(flat))
    state: dict[str, Any] = {"model": of_model, "optim": of_optimizer}
    load(state, storage_reader=tfckpt.TFCheckpointReader(path))
    set_state_dict(
        model,
        used,
        model_state_dict=state["model"],
        optim_state_dict=state["optim"],
        options=_options(flat),
    )
    return training_state(model, used)


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state by the names of parameters."""
    of_model, of_optimizer = cast("tuple[Any, Any]", get_state_dict(model, optimizer))
    groups = of_optimizer["param_groups"]
    return {
        "model": whole(dict(of_model)),
        "state": whole(of_optimizer["state"]),
        "groups": {
            name: {key: value for key, value in group.items() if key not in ("params", "param_names")}
            for group in groups
            for name in group["params"]
        },
    }


def load_named(rank: Rank, path: str, names: list[str]) -> list[str]:
    """Load some of the layouts, and return the names of those that are wrong."""
    wanted = {name: tensor for name, tensor in layouts_state(rank).items() if name in names}
    assert len(wanted) == len(names)
    state = zeroed(wanted)
    load(state, storage_reader=tfckpt.TFCheckpointReader(path))
    return differing(wanted, state)


def pipeline(rank: Rank, path: str, *, saves: bool) -> Any:
    """Each rank has a layer of its own, as in pipeline parallelism; the optimizers are flattened."""
    layers = {f"layer{number}": nn.Linear(3, 3) for number in range(4)}
    own = nn.ModuleDict({name: layer for number, (name, layer) in enumerate(layers.items()) if _is_of(number, rank)})
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter.copy_(numbered(parameter.shape) + len(name) + int(name[5]) if saves else torch.zeros(()))
    groups = [{"params": list(layer.parameters()), "lr": 0.1 * (1 + int(name[5]))} for name, layer in own.items()]
    optimizer = torch.optim.AdamW(groups)
    for layer in own.values():
        layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    of_model, of_optimizer = get_state_dict(own, optimizer, options=_options(True))
    state: dict[str, Any] = {"model": of_model, "optim": of_optimizer}
    if saves:
        save(state, storage_writer=tfckpt.TFCheckpointWriter(path))
    else:
        load(state, storage_reader=tfckpt.TFCheckpointReader(path))
        set_state_dict(
            own, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"], options=_options(True)
        )
    return training_state(own, optimizer)


def _is_of(number: int, rank: Rank) -> bool:
    return number * rank.world_size // 4 == rank.rank


def load_mapped(rank: Rank, path: str) -> dict[str, Any]:
    """Load a TensorFlow model with kernels in another order of axes, and return the whole state."""
    rules: Any = [
        ("dense/kernel", "up.weight", "dense"),
        ("out/kernel", "down.weight", "dense"),
        ("(dense|out)/bias", lambda match: {"dense": "up", "out": "down"}[match[1]] + ".bias"),
    ]
    model = sharded("fsdp", Blocks(WIDTH, 10))
    state = {"model": {name: value for name, value in model.state_dict().items() if "norm" not in name}}
    del state["model"]["steps"]
    load(state, storage_reader=tfckpt.TFCheckpointReader(path, mapper=tfckpt.KeyMapper(rules)))
    return {name: value.full_tensor() for name, value in state["model"].items()}
