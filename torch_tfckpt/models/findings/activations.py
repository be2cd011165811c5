"""The function that comes directly after a layer, in torch and in the configuration of a Keras model.

    Keras    Dense(5, activation="gelu"), or a layer Activation, ReLU, LeakyReLU, ... that takes the output
    torch    nn.GELU or functional.gelu in the symbolic run of the forward method, if nothing else takes the output

What does not change single values, such as Dropout, Flatten, and moved axes, may come in between. Contract: a function
is known, or there certainly is none ("linear"), only if nothing else is possible; else the result is None. Softmax is
never known, since many modules return logits instead.
"""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any, Final, NamedTuple

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from torch_tfckpt.keras_files.layer_graph import LayerGraph
from torch_tfckpt.keras_files.layers import KerasLayer
from torch_tfckpt.models.findings.symbolic_run import SymbolicRun

_CLOSE: Final = 1e-6  # relative


class Activation(NamedTuple):
    """A function of single values.

    Attributes:
        name: Its name in Keras 3, "gelu_tanh" for the tanh form of gelu, "hard_sigmoid_2" for that of Keras 1 and 2.
        value: The slope or alpha, 0 for functions without.
    """

    name: str
    value: float = 0.0

    def equals(self, other: "Activation") -> bool:
        """Return whether both are the same function."""
        return self.name == other.name and abs(self.value - other.value) <= _CLOSE * max(abs(self.value), 1.0)

    def __str__(self) -> str:
        parameter = {"leaky_relu": "slope", "elu": "alpha"}.get(self.name)
        return _SHOWN.get(self.name, self.name) + (f" with {parameter} {self.value:g}" if parameter else "")


LINEAR: Final = Activation("linear")
GELU: Final = "gelu"
HARD_SIGMOID_2: Final = "hard_sigmoid_2"
_SHOWN: Final = {
    "linear": "no activation",
    "gelu": "gelu (the exact form)",
    "gelu_tanh": "gelu (the tanh form)",
    "hard_sigmoid": "hard_sigmoid, relu6(x + 3) / 6,",
    "hard_sigmoid_2": "hard_sigmoid, clip(0.2 * x + 0.5, 0, 1),",
}
# Names in Keras -> function, if the name is the function.
_OF_KERAS: Final[Mapping[str, Activation]] = {
    **{
        name: Activation(name)
        for name in (
            "linear", "relu", "relu6", "selu", "silu", "hard_silu", "gelu", "sigmoid", "tanh", "softplus", "softsign",
            "mish", "hard_sigmoid",
        )
    },
    "swish": Activation("silu"),
    "hard_swish": Activation("hard_silu"),
    "elu": Activation("elu", 1.0),
    "leaky_relu": Activation("leaky_relu", 0.2),
}  # fmt: skip
_OF_MODULES: Final[Mapping[type[nn.Module], str]] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SELU: "selu", nn.SiLU: "silu", nn.Hardswish: "hard_silu",
    nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Softsign: "softsign", nn.Mish: "mish", nn.Hardsigmoid: "hard_sigmoid",
}  # fmt: skip
_OF_FUNCTIONS: Final[Mapping[str, str]] = {
    **{name: name for name in ("relu", "relu6", "selu", "silu", "sigmoid", "tanh", "softsign", "mish")},
    "hardswish": "hard_silu",
    "hardsigmoid": "hard_sigmoid",
    "relu_": "relu",
    "sigmoid_": "sigmoid",
    "tanh_": "tanh",
}
_WITH_VALUE: Final = {"leaky_relu": ("negative_slope", 0.01), "elu": ("alpha", 1.0)}
_TRANSPARENT_FUNCTIONS: Final = frozenset((
    "dropout", "dropout1d", "dropout2d", "dropout3d", "permute", "transpose", "movedim", "moveaxis", "swapaxes",
    "flatten", "contiguous", "squeeze", "unsqueeze", "reshape", "view",
))  # fmt: skip
_TRANSPARENT_MODULES: Final = (nn.modules.dropout._DropoutNd, nn.Identity, nn.Flatten)
_TRANSPARENT_LAYERS: Final = frozenset((
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Flatten", "Reshape", "Permute",
))  # fmt: skip
_WITH_WEIGHTS: Final = (
    _ConvNd,
    nn.Linear,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RNNBase,
    nn.MultiheadAttention,
)
_LAYERS_WITH_WEIGHTS: Final = (
    "Dense",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "Normalization",
    "Transpose",
    "LSTM",
    "GRU",
    "RNN",
)


def activation_named(name: object, *, keras_2: bool) -> Activation | None:
    """Return the function of a setting such as `activation`; None if it is not known.

    Args:
        keras_2: Whether Keras 1 or 2 wrote the file. Then "gelu" may be a function of the program, and hard_sigmoid is
            a different function.
    """
    found = LINEAR if name is None else _OF_KERAS.get(name) if isinstance(name, str) else None
    if found is None or not keras_2:
        return found
    if found.name == "hard_sigmoid":
        return Activation(HARD_SIGMOID_2)
    return None if found.name in (GELU, "leaky_relu") else found


def activation_of_layer(layer: KerasLayer, *, keras_2: bool) -> Activation | None:
    """Return the function that a layer of Keras applies to its result; None if it is not known."""
    settings = layer.settings
    if not layer.is_builtin or "activation" in layer.objects:
        return None
    match layer.class_name:
        case "ReLU":
            return _of_relu(settings)
        case "LeakyReLU":
            slope = settings.get("negative_slope", settings.get("alpha"))
            return Activation("leaky_relu", slope) if isinstance(slope, int | float) else None
        case "ELU":
            alpha = settings.get("alpha", 1.0)
            return Activation("elu", alpha) if isinstance(alpha, int | float) else None
        case _ if "activation" in settings:
            return activation_named(settings["activation"], keras_2=keras_2)
    return LINEAR if layer.class_name.endswith(_LAYERS_WITH_WEIGHTS) else None


def _of_relu(settings: Mapping[str, Any]) -> Activation | None:
    slope, largest, threshold = (settings.get(name) for name in ("negative_slope", "max_value", "threshold"))
    if threshold:
        return None
    if largest is not None:
        return Activation("relu6") if largest == 6 and not slope else None
    return Activation("leaky_relu", slope) if isinstance(slope, int | float) and slope else Activation("relu")


def activation_after_layer(layer: KerasLayer, graph: LayerGraph, *, keras_2: bool) -> Activation | None:
    """Return the function of a layer of Keras, or that of the only layer that takes its output."""
    own = activation_of_layer(layer, keras_2=keras_2)
    if own != LINEAR:
        return own
    transparent = takewhile(lambda each: each.class_name in _TRANSPARENT_LAYERS, graph.line_after(layer))
    *_, last = layer, *transparent
    followers = graph.after(last)
    if not followers:
        return None
    if all(each.is_builtin and each.class_name.endswith(_LAYERS_WITH_WEIGHTS) for each in followers):
        return LINEAR
    return _of_activation_layer(followers[0], keras_2) if len(followers) == 1 else None


def _of_activation_layer(layer: KerasLayer, keras_2: bool) -> Activation | None:
    if layer.class_name not in ("Activation", "ReLU", "LeakyReLU", "ELU"):
        return None
    found = activation_of_layer(layer, keras_2=keras_2)
    return None if found == LINEAR else found


def activation_of_module(module: nn.Module | None) -> Activation | None:
    """Return the function of a module of torch; None if it is not one that is known."""
    if module is not None and type(module) in _OF_MODULES:
        return Activation(_OF_MODULES[type(module)])
    if type(module) is nn.GELU:
        return Activation(GELU if module.approximate == "none" else "gelu_tanh")
    if type(module) is nn.LeakyReLU:
        return Activation("leaky_relu", module.negative_slope)
    if type(module) is nn.ELU:
        return Activation("elu", module.alpha)
    if type(module) is nn.Softplus and (module.beta, module.threshold) == (1, 20):
        return Activation("softplus")
    return None


class Following(NamedTuple):
    """What comes after one call of a layer: the function, and its module if it is one."""

    activation: Activation | None
    module: nn.Module | None = None


def activations_after(run: SymbolicRun) -> dict[int, list[Following]]:
    """Return the id of each layer with weights -> what follows each of its calls in a symbolic run."""
    found: dict[int, list[Following]] = {}
    for _, graph in run.graphs():
        for node in graph.nodes:
            called = run.called(node)
            if isinstance(called, _WITH_WEIGHTS):
                found.setdefault(id(called), []).append(_following(run, node))
    return found


def _following(run: SymbolicRun, node: fx.Node) -> Following:
    while node not in run.doubtful and len(node.users) == 1:
        [node] = node.users
        called = run.called(node)
        if node.op == "output" or node in run.doubtful or len(node.all_input_nodes) != 1:
            break
        if called is not None:
            if isinstance(called, _WITH_WEIGHTS):
                return Following(LINEAR)
            if not isinstance(called, _TRANSPARENT_MODULES):
                return Following(activation_of_module(called), called)
            continue
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name not in _TRANSPARENT_FUNCTIONS:
            return Following(_of_function(name, node))
    return Following(None)


def _of_function(name: str, node: fx.Node) -> Activation | None:
    if name in _OF_FUNCTIONS:
        return Activation(_OF_FUNCTIONS[name])
    if name == "gelu":
        approximate = node.kwargs.get("approximate", "none")
        return Activation(GELU if approximate == "none" else "gelu_tanh")
    if name in _WITH_VALUE:
        keyword, default = _WITH_VALUE[name]
        value = node.args[1] if len(node.args) > 1 else node.kwargs.get(keyword, default)
        return Activation(name, value) if isinstance(value, int | float) else None
    return None
