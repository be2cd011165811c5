"""Functions that ranks run: restore modules and optimizers that are spread over them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_processes import Rank
from sharded import Blocks, numbered, sharded, spread
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import torch_tfckpt as tfckpt
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.save_restore.builder import BaseSaverBuilder, BulkSaverBuilder
from torch_tfckpt.save_restore.restore import restore_saveables
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.saveables.var_list import VarList

WIDTH, INNER = 6, 12
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "adamw, foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, foreach=True),
    "adamw, fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "adamw, amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True, foreach=False),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
}


def alone(rank: Rank, work: Callable[[], object]) -> None:
    """Do something on one rank after the other: a collective in it would wait for ranks that wait for this one."""
    if rank.rank:
        rank.store.wait([f"done {rank.rank - 1}"])
    work()
    rank.store.set(f"done {rank.rank}", "")


def restored(var_list: Any, path: str, builder: BaseSaverBuilder | None = None, **options: Any) -> None:
    """Restore as a Saver does, without the agreement of the ranks."""
    with CheckpointReader(path) as reader:
        saveables = VarList(var_list, sharded=True).to_restore(reader)
        restore_saveables(builder or BulkSaverBuilder(), reader, saveables, **options)


def whole(value: Any) -> Any:
    """The full tensor of a DTensor; other values as they are. All ranks must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def trained(optimizer: str, steps: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Blocks, torch.optim.Optimizer]:
    """A small module after some steps, the same in every process."""
    torch.manual_seed(0)
    module = Blocks(WIDTH, INNER)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    module.to(dtype)
    made = OPTIMIZERS[optimizer](module.parameters())
    for _ in range(steps):
        step(module, made)
    return module, made


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(7)
    dtype = next(module.parameters()).dtype
    module(torch.rand((4, WIDTH), generator=generator).to(dtype)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save_trained(rank: Rank, folder: str, optimizer: str, dtype: torch.dtype = torch.float32) -> str:
    """One process, and nothing that is spread. Run where the result is compared: it depends on the thread count."""
    module, made = trained(optimizer, dtype=dtype)
    return str(tfckpt.Saver({"model": module, "optim": made}).save(str(Path(folder) / optimizer.replace(", ", "-"))))


def restore_trained(
    rank: Rank, path: str, kind: str, optimizer: str, *, first_step: bool = False, dtype: torch.dtype = torch.float32
) -> dict[str, str]:
    """Restore a checkpoint of one process into a spread module and optimizer, and take a step as the process would.

    Returns:
        Name of each parameter -> how its moments are spread, after asserting that all values are those of the file.
    """
    expected, expected_optimizer = trained(optimizer, dtype=dtype)
    torch.manual_seed(1)
    module = sharded(kind, Blocks(WIDTH, INNER).to(dtype))
    made = OPTIMIZERS[optimizer](module.parameters())
    if first_step:
        step(module, made)
    parameters = dict(module.named_parameters())
    alone(rank, lambda: restored({"model": module, "optim": made}, path))
    layouts = {}
    for name, parameter in module.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(whole(parameter), expected.get_parameter(name)), name
        state, wanted = made.state[parameter], expected_optimizer.state[expected.get_parameter(name)]
        assert state.keys() == wanted.keys()
        for slot, value in wanted.items():
            here = state[slot]
            assert isinstance(here, DTensor) == (isinstance(parameter, DTensor) and value.shape == parameter.shape)
            assert torch.equal(whole(here), value), (name, slot)
            if isinstance(here, DTensor) and isinstance(parameter, DTensor):
                assert here.placements == parameter.placements
                assert here.device_mesh == parameter.device_mesh
                layouts[name] = str(here.placements)
    assert int(module.get_buffer("steps")) == 7
    if kind != "tp":  # a LayerNorm of plain tensors between DTensors
        step(module, made)
        step(expected, expected_optimizer)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(whole(parameter), expected.get_parameter(name))
    return layouts


def restore_layouts(rank: Rank, path: str, layouts: Any, dtypes: Any) -> int:
    """Restore "name dtype" for all layouts and dtypes into zeros, in three ways; compare with what torch spreads."""
    pairs = [(layout, dtype) for layout in layouts for dtype in dtypes]
    for way in ("together", "one by one", "in place"):
        targets: dict[str, Any] = {}
        for (name, shape, mesh_shape, placements), dtype in pairs:
            targets[f"{name} {dtype}"] = spread(torch.zeros(shape, dtype=dtype), mesh_shape, placements)
        memory = {name: each.to_local().data_ptr() for name, each in targets.items()}
        if way == "in place":
            with CheckpointReader(path) as reader:
                saveables = [VariableSaveable(target, "", name) for name, target in targets.items()]
                restore_saveables(BulkSaverBuilder(), reader, saveables, held_bytes=0)
        else:
            restored(targets, path, restore_sequentially=way == "one by one")
        for (name, shape, mesh_shape, placements), dtype in pairs:
            here = targets[f"{name} {dtype}"].to_local()
            wanted = spread(numbered(shape, dtype), mesh_shape, placements).to_local()
            assert here.data_ptr() == memory[f"{name} {dtype}"]
            assert torch.equal(_bytes(here), _bytes(wanted)), (name, dtype)
    return 3 * len(pairs)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


class Tied(nn.Module):
    """Two names for one tensor, a hook that must see what is loaded, and a module that restores itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.hooked = nn.Linear(4, 5)
        hooked: Any = self.hooked
        hooked.register_load_state_dict_post_hook(lambda module, keys: None)


def restore_tied(rank: Rank, path: str) -> list[str]:
    """Tied weights stay tied; a module with a hook of its own is restored by load_state_dict."""
    module: Any = fully_shard(Tied(), mesh=init_device_mesh("cpu", (rank.world_size,)))
    alone(rank, lambda: restored({"model": module}, path))
    assert module.out.weight is module.embed.weight
    values = tfckpt.load_file(path)
    for name, parameter in module.named_parameters():
        assert torch.equal(whole(parameter), values[f"model/{name}"]), name
        assert isinstance(parameter, DTensor)
    return [saveable.name for saveable in VarList({"model": module}, sharded=True).to_save()]


class Averages:
    """State with a tensor that is spread and one that is not."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.state: dict[str, Any] = {"mean": tensor, "count": torch.tensor(0), "scale": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


def restore_state(rank: Rank, path: str) -> None:
    """Objects with state_dict, dicts and lists: spread like what is there now."""
    averages = Averages(spread(torch.zeros(5, 3), (rank.world_size,), [0]))
    kept = spread(torch.zeros(5, 3), (rank.world_size,), [0])
    container = {"ema": [kept, torch.zeros(2)], "at": 0}
    alone(rank, lambda: restored({"averages": averages, "state": container}, path))
    mean = averages.state["mean"]
    assert isinstance(mean, DTensor)
    assert torch.equal(mean.full_tensor(), numbered((5, 3)))
    assert (int(averages.state["count"]), averages.state["scale"]) == (4, 0.5)
    assert container["ema"][0] is kept  # type: ignore[index]
    assert torch.equal(kept.full_tensor(), numbered((5, 3)) + 1)
    assert container["at"] == 3


def restore_with_reshape(rank: Rank, path: str) -> None:
    """A stored [15] into a spread [5, 3]: the whole is read."""
    tensor = spread(torch.zeros(5, 3), (rank.world_size,), [0])
    with CheckpointReader(path) as reader:
        saveables = VarList({"flat": tensor}, sharded=True).to_restore(reader)
        restore_saveables(BulkSaverBuilder(), reader, saveables, reshape=True)
    assert torch.equal(tensor.full_tensor(), numbered((5, 3)))


def load_like(rank: Rank, path: str, layouts: Any, dtypes: Any) -> int:
    """load_file(like=) of every layout and dtype, each rank alone: new tensors, spread as torch does."""
    like: dict[str, Any] = {}
    for name, shape, mesh_shape, placements in layouts:
        for dtype in dtypes:
            like[f"{name} {dtype}"] = spread(torch.zeros(shape, dtype=dtype), mesh_shape, placements)
    like["plain"] = torch.zeros(3)
    like["meta"] = torch.zeros(3, device="meta")
    loaded: dict[str, Any] = {}
    alone(rank, lambda: loaded.update(tfckpt.load_file(path, like=like)))
    assert list(loaded) == list(like)
    for name, shape, mesh_shape, placements in layouts:
        for dtype in dtypes:
            here, template = loaded[f"{name} {dtype}"], like[f"{name} {dtype}"]
            wanted = spread(numbered(shape, dtype), mesh_shape, placements).to_local()
            assert (here.placements, here.device_mesh, here.shape, here.dtype) == (
                *(template.placements, template.device_mesh, template.shape, template.dtype),
            )
            assert here is not template
            assert torch.equal(_bytes(here.to_local()), _bytes(wanted)), (name, dtype)
            assert not template.to_local().any()
    assert not isinstance(loaded["plain"], DTensor)
    assert loaded["plain"].tolist() == loaded["meta"].tolist() == [1, 2, 3]
    assert loaded["meta"].device.type == "cpu"
    return len(loaded)


def load_own_bytes(rank: Rank, path: str) -> int:
    """How many bytes of a large file one rank reads for its quarter."""
    like = {"large": spread(torch.zeros(4096, 256), (rank.world_size,), [0])}
    before = _bytes_read()
    tfckpt.load_file(path, like=like, verify=False)
    return _bytes_read() - before


def _bytes_read() -> int:
    """Bytes that this process has read from files."""
    return int(Path("/proc/self/io").read_text().split()[1])


def restore_late_parameters(rank: Rank, path: str) -> None:
    """State that is kept until add_param_group adds the parameter is spread like the parameter then."""
    expected, expected_optimizer = trained("adamw")
    module = sharded("fsdp", Blocks(WIDTH, INNER))
    made = torch.optim.AdamW(module.up.parameters(), lr=0.01)
    restored({"model": module, "optim": made}, path)
    made.add_param_group({"params": [*module.down.parameters(), *module.norm.parameters()]})
    for name, parameter in module.named_parameters():
        wanted = expected_optimizer.state[expected.get_parameter(name)]
        here = made.state[parameter]["exp_avg"]
        assert isinstance(here, DTensor), name
        assert torch.equal(here.full_tensor(), wanted["exp_avg"]), name


def refused_without_ranks(rank: Rank, folder: str) -> list[str]:
    """Everything that would save or restore DTensors on this rank alone; nothing is written."""
    tensor = spread(torch.zeros(5, 3), (rank.world_size,), [0])
    module = sharded("fsdp", Blocks(WIDTH, INNER))
    path = str(Path(folder) / f"alone-{rank.rank}")
    late: dict[str, Any] = {"x": torch.zeros(2)}
    saver = tfckpt.Saver({"state": late, "n": torch.zeros(1)})
    stored = saver.save(str(Path(folder) / f"stored-{rank.rank}"))
    late["x"] = tensor
    tree: Any = tfckpt.Checkpoint(model=module)
    objects = tfckpt.Checkpoint(model=Blocks(WIDTH, INNER)).save(str(Path(folder) / f"objects-{rank.rank}"))
    with tfckpt.load_checkpoint(stored) as reader:
        calls: list[Callable[[], object]] = [
            lambda: tfckpt.Saver({"x": tensor}),
            lambda: tfckpt.Saver({"model": module}),
            lambda: tfckpt.Saver({"optim": torch.optim.SGD([("x", nn.Parameter(tensor))], lr=1.0, momentum=0.9)}),
            lambda: tfckpt.save_file({"x": tensor}, path),
            lambda: saver.save(path),
            lambda: tree.save(path),
            lambda: tree.restore(objects),
            lambda: reader.get_tensor("n", out=spread(torch.zeros(1), (rank.world_size,), ["R"])),
        ]
        return [_message(call) for call in calls]


def _message(call: Callable[[], object]) -> str:
    try:
        call()
    except tfckpt.InvalidArgumentError as error:
        return str(error)
    return "not refused"


def barrier(rank: Rank) -> None:
    dist.barrier()
