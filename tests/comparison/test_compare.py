"""compare_model: right modules are equal to TensorFlow's graphs; of wrong ones, the first wrong layer is named."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorflow_process import TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt


@pytest.fixture(scope="module")
def graphs(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of tensorflow_comparison, in a directory."""
    directory = tmp_path_factory.mktemp("graphs")
    tensorflow.call("tensorflow_comparison.save_all", str(directory))
    return directory


def imported(graphs: Path, name: str) -> tfckpt.ImportedMetaGraph:
    if (graphs / name).is_dir():
        return tfckpt.import_meta_graph(graphs / name)
    graph = tfckpt.import_meta_graph(graphs / f"{name}.meta")
    assert graph.saver is not None
    graph.saver.restore(graphs / name)
    return graph


class Images(nn.Module):
    """The right module: TensorFlow pads more at the end when the stride is 2."""

    def __init__(self) -> None:
        super().__init__()
        self.pad1 = nn.ZeroPad2d((0, 1, 0, 1))
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4, eps=1e-3)
        self.act1, self.act2, self.act3 = nn.ReLU(inplace=True), nn.ReLU(inplace=True), nn.ReLU6()
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, eps=1e-3)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, eps=1e-3)
        self.logits = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shortcut = self.act1(self.bn1(self.conv1(self.pad1(x))))
        features = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(shortcut))))) + shortcut
        return features, self.logits(self.act3(features).mean((2, 3)))


def flattened() -> nn.Module:
    layers = {"conv1": nn.Conv2d(2, 3, 3, padding=1), "act1": nn.ReLU(), "pool": nn.MaxPool2d(2), "flat": nn.Flatten()}
    return _sequential(**layers, logits=nn.Linear(27, 4), out=nn.Softmax(1))


def _sequential(**layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def layered() -> nn.Module:
    return _sequential(
        fc1=nn.Linear(8, 8), act1=nn.Tanh(), fc2=nn.Linear(8, 8), act2=nn.GELU(), drop=nn.Dropout(), fc3=nn.Linear(8, 8)
    )


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.norm, self.fc = nn.Embedding(11, 6), nn.LayerNorm(6, eps=1e-3), nn.Linear(6, 6)
        self.act = nn.LeakyReLU(0.2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.act(self.fc(self.norm(self.embeddings(ids))))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.dense = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def loaded(model: nn.Module, graph: tfckpt.ImportedMetaGraph) -> nn.Module:
    """Copy the variables into a module whose layers have their scopes as names."""
    state = model.state_dict()
    for name, value in graph.variables.items():
        assert isinstance(value, torch.Tensor)
        scope, _, last = name.rpartition("/")
        if last == "kernel":
            key = f"{scope}.weight"
            value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.T
        else:
            key = f"{scope}.{NORM.get(last, last)}".lstrip(".")
        key = {"embeddings": "embeddings.weight", "bias": "norm.bias", "weight": "norm.weight"}.get(key, key)
        state[key].copy_(value)
    return model


def recurrent(graph: tfckpt.ImportedMetaGraph, gates: Sequence[int] = (0, 1, 2, 3)) -> nn.Module:
    """TensorFlow's gates are i, f, c, o, as torch's."""
    values = {tuple(value.shape): value for value in graph.variables.values() if isinstance(value, torch.Tensor)}

    def ordered(*shape: int) -> torch.Tensor:
        value = values[shape]
        return torch.cat([value[..., 4 * gate : 4 * gate + 4] for gate in gates], -1).t()

    model = Recurrent()
    state = model.state_dict()
    state["lstm.weight_ih_l0"].copy_(ordered(3, 16))
    state["lstm.weight_hh_l0"].copy_(ordered(4, 16))
    state["lstm.bias_ih_l0"].copy_(ordered(16))
    state["lstm.bias_hh_l0"].zero_()
    state["dense.weight"].copy_(values[4, 2].t())
    state["dense.bias"].copy_(values[(2,)])
    return model


Change = Callable[[Any], object]
WHAT: dict[str, dict[str, Any]] = {
    "images": {"inputs": ["x:0"], "outputs": ["features:0", "y:0"]},
    "flattened": {"inputs": ["x:0"], "outputs": ["y:0"]},
    "layers": {"inputs": ["x:0"], "outputs": ["y:0"], "constants": {"keep_prob:0": 1.0}},
    "embedded": {"inputs": ["ids:0"], "outputs": ["y:0"], "ranges": {"ids:0": (0, 11)}},
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "images": Images,
    "flattened": flattened,
    "layers": layered,
    "embedded": Embedded,
}


def right(graphs: Path, name: str) -> tuple[nn.Module, tfckpt.ImportedMetaGraph]:
    graph = imported(graphs, name)
    model = loaded(MODULES[name](), graph)
    if name == "flattened":
        weight = model.get_parameter("logits.weight")
        weight.data = weight.data.reshape(4, 3, 3, 3).permute(0, 3, 1, 2).reshape(4, 27)
    return model, graph


@pytest.mark.parametrize("name", WHAT)
def test_right_modules_are_equal(name: str, graphs: Path) -> None:
    """Within float32's rounding; modes and hooks are as before."""
    model, graph = right(graphs, name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = tfckpt.compare_model(model, graph, **WHAT[name])
    assert report.ok and report.first_difference is None, str(report)
    assert max(report.outputs.values()) < 2e-6
    assert list(report.outputs) == WHAT[name]["outputs"]
    assert "equal within 1e-05" in str(report)
    assert model.training and not any(each._forward_hooks for each in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def symmetric_padding(model: Any) -> None:
    model.pad1, model.conv1.padding = nn.Identity(), (1, 1)


def no_padding(model: Any) -> None:
    model.conv2.padding = (0, 0)


def transpose(*names: str) -> Change:
    def change(model: Any) -> None:
        for name in names:
            weight = model.get_parameter(name)
            weight.data = weight.data.mT.contiguous()

    return change


def other_epsilon(model: Any) -> None:
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d | nn.LayerNorm):
            each.eps = 1e-5


def replace(**layers: nn.Module) -> Change:
    def change(model: Any) -> None:
        for name, layer in layers.items():
            setattr(model, name, layer)

    return change


def no_bias(name: str) -> Change:
    return lambda model: model.get_submodule(name).register_parameter("bias", None)


def unordered(model: Any) -> None:
    weight = model.get_parameter("logits.weight")
    weight.data = weight.data.reshape(4, 3, 3, 3).permute(0, 2, 3, 1).reshape(4, 27)


WRONG: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "padding": ("images", symmetric_padding, ("conv1",)),
    "amount of padding": ("images", replace(pad1=nn.ZeroPad2d((1, 0, 1, 0))), ("conv1", "pad1")),
    "no padding": ("images", no_padding, ("conv2",)),
    "epsilon": ("images", other_epsilon, ("bn1",)),
    "epsilon of one layer": ("images", lambda model: setattr(model.bn3, "eps", 1e-5), ("bn3",)),
    "square filter": ("images", transpose("conv2.weight"), ("conv2",)),
    "activation in blocks": ("images", replace(act2=nn.SiLU()), ("act2",)),
    "relu6": ("images", replace(act3=nn.ReLU()), ("act3",)),
    "no bias of a convolution": ("images", no_bias("conv3"), ("conv3",)),
    "square kernel": ("layers", transpose("fc2.weight"), ("fc2",)),
    "last square kernel": ("layers", transpose("fc3.weight"), ("fc3",)),
    "two kernels": ("layers", transpose("fc1.weight", "fc3.weight"), ("fc1",)),
    "gelu": ("layers", replace(act2=nn.GELU("tanh")), ("act2",)),
    "relu": ("layers", replace(act2=nn.ReLU()), ("act2",)),
    "no bias": ("layers", no_bias("fc2"), ("fc2",)),
    "order of a flattened map": ("flattened", unordered, ("flat", "logits")),
    "pooling": ("flattened", replace(pool=nn.AvgPool2d(2)), ("pool",)),
    "log softmax": ("flattened", replace(out=nn.LogSoftmax(1)), ("out",)),
    "epsilon of layer norm": ("embedded", other_epsilon, ("norm",)),
    "slope": ("embedded", replace(act=nn.LeakyReLU(0.01)), ("act",)),
    "relu for leaky relu": ("embedded", replace(act=nn.ReLU()), ("act",)),
    "order of embeddings": (
        "embedded",
        lambda model: model.embeddings.weight.data.copy_(model.embeddings.weight.data.roll(1, 0)),
        ("embeddings",),
    ),
    "kernel of 3-d inputs": ("embedded", transpose("fc.weight"), ("fc",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_first_wrong_layer_is_named(case: str, graphs: Path) -> None:
    """For an error of each kind, also if later layers have it, too."""
    name, change, expected = WRONG[case]
    model, graph = right(graphs, name)
    change(model)
    report = tfckpt.compare_model(model, graph, **WHAT[name])
    assert not report.ok
    assert report.first_difference in expected, str(report)
    assert f'first difference: "{report.first_difference}"' in str(report)


def test_recurrent_layers(graphs: Path) -> None:
    """The loop of a SavedModel's LSTM: equal, and named if gates are swapped."""
    graph = imported(graphs, "lstm")
    what: dict[str, Any] = {"signature": "serving_default", "inputs": ["x"], "outputs": ["output_0"]}
    graph.run(graph.signatures["serving_default"].outputs["output_0"].name, {
        graph.signatures["serving_default"].inputs["x"].name: torch.zeros(1, 5, 3)
    })  # fmt: skip  # reads the variables
    report = tfckpt.compare_model(recurrent(graph), graph, **what)
    assert report.ok, str(report)
    report = tfckpt.compare_model(recurrent(graph, (1, 0, 2, 3)), graph, **what)
    assert not report.ok and report.first_difference == "lstm", str(report)


class Functional(nn.Module):
    """An activation that is not a layer, and wrong."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (model.get_submodule(name) for name in ("fc1", "fc2", "fc3"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(nn.functional.gelu(self.fc2(torch.sigmoid(self.fc1(x)))))  # type: ignore[no-any-return]


def test_what_is_not_a_layer_is_not_blamed_on_one(graphs: Path) -> None:
    """No layer is named; the explanation says between which layers they part."""
    model, graph = right(graphs, "layers")
    report = tfckpt.compare_model(Functional(model), graph, **WHAT["layers"])
    assert not report.ok and report.first_difference is None
    assert '"fc1" is in the graph' in report.explanation and '"fc2" is not' in report.explanation


def test_dropout_of_the_graph_is_refused(graphs: Path) -> None:
    model, graph = right(graphs, "layers")
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'"y:0" with random numbers.*keep_prob'):
        tfckpt.compare_model(model, graph, inputs=["x:0"], outputs=["y:0"])


def test_integers_need_a_range(graphs: Path) -> None:
    """Or samples."""
    model, graph = right(graphs, "embedded")
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'"ids:0" has integers.*ranges=\{"ids:0"'):
        tfckpt.compare_model(model, graph, inputs=["ids:0"], outputs=["y:0"])
    ids = torch.tensor([[1, 2, 3, 4, 10]])
    report = tfckpt.compare_model(
        model, graph, inputs={"ids:0": "ids"}, outputs={"y:0": None}, samples=[{"ids:0": ids}]
    )
    assert report.ok and report.samples == 1


def cube(graph: tfckpt.ImportedMetaGraph) -> dict[str, Any]:
    return {"inputs": ["x:0"], "outputs": ["y:0"], "shapes": {"x:0": (2, 3, 3, 3)}}


def test_a_layout_that_cannot_be_known_is_asked_for() -> None:
    """If the module runs with both and neither is equal."""
    data = tfckpt.GraphDef()
    data.node.add(name="x", op="Placeholder").attr["dtype"].type = 1  # type: ignore[assignment]  # DT_FLOAT
    data.node.add(name="y", op="Tanh", input=["x"]).attr["T"].type = 1  # type: ignore[assignment]
    graph = tfckpt.import_graph_def(data)
    assert tfckpt.compare_model(nn.Tanh(), graph, **cube(graph)).ok
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'layout of "x:0".*Give axes'):
        tfckpt.compare_model(nn.Sigmoid(), graph, **cube(graph))
    # If the same layer is wrong with both, the layout does not matter.
    assert tfckpt.compare_model(nn.Sequential(nn.Sigmoid()), graph, **cube(graph)).first_difference == "0"
    report = tfckpt.compare_model(nn.Sequential(nn.Sigmoid()), graph, **cube(graph), axes={"x:0": (0, 3, 1, 2)})
    assert not report.ok and report.first_difference == "0"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": ["z:0"]}, 'no node "z"'),
        ({"outputs": ["z:0"]}, '"z"'),
        ({"outputs": []}, "outputs is empty"),
        ({"outputs": {"y:0": 3}}, "returns no 3"),
        ({"inputs": {"x:0": 1}}, "positions"),
        ({"inputs": {"x:0": 1.5}}, "position or the name"),
        ({"samples": 0}, "at least one"),
        ({"samples": []}, "samples is empty"),
        ({"samples": [{"y:0": 1}]}, "each sample needs"),
        ({"samples": [{"x:0": ["a"]}]}, '"x:0": modules do not take strings'),
        ({"samples": [{"x:0": [[1], [1, 2]]}]}, '"x:0".*not an array'),
        ({"samples": [{"x:0": {}}]}, '"x:0".*not a tensor'),
        ({"axes": {"x": (0, 1)}}, "axes has"),
        ({"shapes": {"x:0": (0, 8)}}, "positive integers"),
        ({"ranges": {"x:0": (1, 1)}}, "contains nothing"),
        ({"signature": "serving_default"}, "no signature"),
        ({"shapes": {"x:0": (2, 9)}}, "x"),
        ({"shapes": {"x:0": (1 << 40, 8)}}, "limit"),
        ({"axes": {"x:0": (0, 0)}}, "axes"),
    ],
)  # fmt: skip
def test_wrong_arguments(changed: dict[str, Any], message: str, graphs: Path) -> None:
    """An InvalidArgumentError that names the argument or tensor."""
    model, graph = right(graphs, "layers")
    with pytest.raises(tfckpt.InvalidArgumentError, match=message):
        tfckpt.compare_model(model, graph, **{**WHAT["layers"], **changed})


def test_a_module_without_values_is_refused(graphs: Path) -> None:
    _, graph = right(graphs, "layers")
    with pytest.raises(tfckpt.InvalidArgumentError, match="meta device"):
        tfckpt.compare_model(layered().to("meta"), graph, **WHAT["layers"])


def test_a_constant_output_is_remarked(graphs: Path) -> None:
    """Equal constants prove little."""
    model, graph = right(graphs, "layers")
    sample = {"x:0": torch.ones(1, 8)}
    report = tfckpt.compare_model(model, graph, **{**WHAT["layers"], "samples": [sample, sample]})
    assert report.ok and "same for all inputs" in str(report)


def test_a_module_that_fails_is_different(graphs: Path) -> None:
    """With the failure as a remark, and the layer that made the wrong shape."""
    model, graph = right(graphs, "flattened")
    model.get_submodule("conv1").padding = (2, 2)  # type: ignore[assignment]
    model.add_module("pool", nn.MaxPool2d(2, ceil_mode=True))
    report = tfckpt.compare_model(model, graph, **WHAT["flattened"])
    assert not report.ok and report.first_difference == "conv1", str(report)
    assert "the module failed: RuntimeError" in str(report)


def test_a_module_of_another_dtype(graphs: Path) -> None:
    """Inputs are converted to it."""
    model, graph = right(graphs, "layers")
    assert tfckpt.compare_model(model.double(), graph, **WHAT["layers"]).ok
