"""An optimizer in a checkpoint: its counters and hyperparameters."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import ObjectGraph
from torch_tfckpt.optimizers.kinds import ADADELTA, ADAGRAD, ADAM, ADAMAX, NADAM, RMSPROP, SGD, kind_of
from torch_tfckpt.optimizers.slots import number_nodes, slot_variables
from torch_tfckpt.text import quoted

GLOBAL_STEP: Final = "global_step"
_CONFIGURED: Final = (
    "learning_rate",
    "decay",
    "beta_1",
    "beta_2",
    "momentum",
    "rho",
)  # in the configuration of a Keras file
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredOptimizer:
    """An optimizer in a checkpoint.

    Attributes:
        name: Name for messages.
        keys: Name as in Keras 2 or TensorFlow 1 -> key of a counter or hyperparameter.
        slots: Names of all slots of the optimizer, as in Keras; empty for a name-based optimizer of TensorFlow 1.
        called: TensorFlow's name for it: "Adam", "rmsprop"; "" if unknown.
        corrects_bias: False if it is an Adam that does not divide the moments by 1 - beta**step, such as BERT's.
        used: Names in `keys` that were read.
    """

    reader: CheckpointReader
    name: str
    keys: Mapping[str, str]
    slots: frozenset[str] = frozenset()
    called: str = ""
    corrects_bias: bool = True
    used: set[str] = field(default_factory=set)

    @classmethod
    def at(cls, reader: CheckpointReader, graph: ObjectGraph, node_id: int) -> "StoredOptimizer":
        """Return the optimizer at a node of an object graph, with the program's global_step if it is unique."""
        keys = {name: graph.value_key(child) for name, child in number_nodes(graph, node_id).items()}
        named = (key for key in map(graph.value_key, range(len(graph.nodes))) if key is not None)
        counters = {key for key in named if key.partition("/.ATTRIBUTES/")[0].rpartition("/")[2] == GLOBAL_STEP}
        if len(counters) == 1:
            keys.setdefault(GLOBAL_STEP, counters.pop())
        variables = slot_variables(graph, node_id)
        slots = frozenset(slot.slot_name for slot in variables)
        stored_keys = {name: key for name, key in keys.items() if key is not None}
        called = ""
        for attribute in graph.nodes[variables[0].slot_variable_node_id].attributes if variables else ():
            called = attribute.full_name.partition("/")[0]
        return cls(reader, graph.name(node_id), stored_keys, slots, called)

    @property
    def is_keras(self) -> bool:
        """Whether this is an optimizer of Keras, which counts its own steps."""
        return "iter" in self.keys

    def read(self, name: str) -> float | None:
        """Return a number, perhaps of the configuration of a Keras file; None if it is not stored.

        Raises InvalidArgumentError if it is not a real number.
        """
        key = self.keys.get(name)
        keras = self.reader.keras
        if key is None and name in _CONFIGURED and keras is not None and keras.config is not None:
            value = None if keras.config.optimizer is None else keras.config.optimizer.settings.get(name)
            return float(value) if isinstance(value, int | float) else None
        if key is None or key not in self.reader or self.reader.shape(key) != ():
            return None
        value = self.reader.get_tensor(key)
        if not isinstance(value, torch.Tensor) or value.is_complex():
            found = value.dtype if isinstance(value, torch.Tensor) else "string"
            raise InvalidArgumentError(f"{self.reader.path}: {quoted(key)} should be a real number, but is {found}")
        self.used.add(name)
        return float(value)


def hyperparameters(optimizer: torch.optim.Optimizer, stored: StoredOptimizer) -> dict[str, Any]:
    """Return the hyperparameters that Keras stored and torch also has, by torch's names."""
    steps, kind = stored.read("iter"), kind_of(optimizer)
    if steps is None:
        return {}
    found: dict[str, Any] = {"lr": stored.read("learning_rate")}
    decay = stored.read("decay")
    if kind is ADAGRAD:
        found["lr_decay"] = decay or 0.0  # same definition as in Keras
    elif kind is NADAM:
        # Keras 2 stores torch's momentum_decay as "decay". Keras 3 always uses 1.
        found["momentum_decay"] = 1.0 if "u_product" in stored.keys else decay
    elif found["lr"] is not None and decay:
        found["lr"] /= 1.0 + decay * steps
        _log.warning(
            "%s: the stored learning rate decays. The optimizer uses the rate of the next step, %g; to continue the "
            "decay, use a scheduler",
            stored.reader.path,
            found["lr"],
        )
    if kind in (ADAM, ADAMAX, NADAM):
        betas = stored.read("beta_1"), stored.read("beta_2")
        found["betas"] = None if None in betas else betas
    if kind in (SGD, RMSPROP):
        found["momentum"] = stored.read("momentum")
    if kind in (RMSPROP, ADADELTA):
        found["alpha" if kind is RMSPROP else "rho"] = stored.read("rho")
    return {name: value for name, value in found.items() if value is not None}
