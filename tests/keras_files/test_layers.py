"""The configuration of a Keras file: its layers and settings, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from golden_files import KERAS_FILES

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main
from torch_tfckpt.keras_files.config import layers_of, read_config
from torch_tfckpt.keras_files.layer_graph import LayerGraph
from torch_tfckpt.keras_files.layers import MAX_CONFIG_BYTES, MAX_LAYERS, MAX_NESTED, parse_config
from torch_tfckpt.models.findings.activations import activation_after_layer
from torch_tfckpt.models.findings.keras_flattening import flattened_map


def layer(class_name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": config}


MODEL = layer(
    "Functional",
    name="net",
    layers=[
        layer("InputLayer", name="given"),
        layer("Conv2D", name="conv", padding="same", strides=[2, 2], kernel_initializer={"class_name": "Zeros"}),
        layer("Sequential", name="tower", layers=[layer("Dense", name="fc", activation="relu")]),
        layer("TimeDistributed", name="each", layer=layer("LayerNormalization", name="norm", epsilon=1e-6)),
        {"module": "mine", "registered_name": "Mine", **layer("Mine", name="own", width=3)},
        layer("Lambda", name="code", function=layer("__lambda__", code="4wEAAAA=")),
    ],
)


def test_layers_of_a_model() -> None:
    """Models inside of models and wrapped layers are listed; each setting of a layer that is not an object is kept."""
    found = {each.path: each for each in parse_config(json.dumps(MODEL)).model.walk()}
    assert list(found) == ["given", "conv", "tower", "tower/fc", "each", "each/norm", "own", "code"]
    assert found["conv"].settings == {"padding": "same", "strides": [2, 2]}
    assert found["tower/fc"].settings == {"activation": "relu"}
    assert found["each/norm"].settings["epsilon"] == 1e-6
    assert [path for path, each in found.items() if not each.is_builtin] == ["own"]
    assert found["code"].class_name == "Lambda"


def test_policies_and_functions_are_shown_by_name() -> None:
    policy = {"class_name": "DTypePolicy", "config": {"name": "mixed_bfloat16"}}
    relu = {"class_name": "function", "config": "relu"}
    described = layer("Dense", name="x", dtype=policy, activation=relu, units=float("nan"))
    settings = parse_config(json.dumps(described)).model.settings
    assert (settings["dtype"], settings["activation"]) == ("mixed_bfloat16", "relu")


def test_real_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A .keras file of Keras 3, its configuration alone, and the command."""
    path = KERAS_FILES / "m.keras"
    assert {each.path: each.class_name for each in layers_of(path)} == {"input_layer": "InputLayer", "fc": "Dense"}
    assert layers_of(path)[1].settings["units"] == 1
    assert main(["show", str(path), "--config"]) == 0
    assert "fc           Dense" in capsys.readouterr().out
    assert main(["show", str(path), "--config", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["class"] == "Sequential" and content["layers"][1]["settings"]["activation"] == "linear"
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    assert main(["show", str(tmp_path / "model.json"), "--config"]) == 0
    assert "tower/fc" in capsys.readouterr().out


def test_files_without_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(tfckpt.NotFoundError, match="without the configuration of the model"):
        read_config(KERAS_FILES / "m.weights.h5")
    with pytest.raises(tfckpt.NotFoundError, match="no such file"):
        read_config(tmp_path / "m.keras")
    assert main(["show", str(KERAS_FILES / "m.keras"), "m/fc/kernel", "--config"]) == 2
    assert "Omit NAME" in capsys.readouterr().err


INNER = ("layers", "layer", "backward_layer", "cell", "cells", "inner_optimizer")  # settings that contain layers


def nested(depth: int) -> dict[str, Any]:
    described = layer("Dense", name="x")
    for _ in range(depth):
        described = layer("Sequential", name="m", layers=[described])
    return described


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not an object"),
        ("{}", "where a layer was expected"),
        ('{"class_name": "Dense", "config": 3}', "where a layer was expected"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
        ('{"class_name":' * 50_000, "nested too deeply|not valid JSON"),
        (" " * (MAX_CONFIG_BYTES + 1), "at most 16.8 MB are read"),
        (json.dumps(nested(MAX_NESTED + 1)), "layers nested more than"),
        (json.dumps(layer("Dense", name="x" * 2000)), "of 2000 characters"),
        (json.dumps(layer("Sequential", layers=[layer("Dense")] * MAX_LAYERS)), "more than 100,000 layers"),
        (json.dumps(layer("B", **{key: [layer("D")] * 20_000 for key in INNER})), "more than 100,000 layers"),
        ('{"class_name": "Dense", "config": {"units": 1%s}}' % ("0" * 5000), "not valid JSON"),
    ],
    ids=["cut", "list", "empty", "number", "deep lists", "deep objects", "large", "nested", "long name", "many", "more",
         "long number"],
)  # fmt: skip
def test_hostile_configurations(text: str, problem: str) -> None:
    """Errors that say what is wrong, whatever the size and depth."""
    with pytest.raises(tfckpt.DataLossError, match=problem):
        parse_config(text)


def test_settings_of_any_type() -> None:
    """Values that are not settings, such as a vocabulary, are left out; nothing raises."""
    odd = [
        float("inf"),
        float("nan"),
        -(10**4000),
        1e308,
        None,
        True,
        1,
        1.5,
        "x",
        [],
        {},
        [1] * 1000,
        [[1] * 100],
        {"a": [1]},
        [{"class_name": 3}],
        [[[1]]],
    ]
    for value in odd:
        described = layer("Dense", **{key: value for key in ("layers", "layer", "cell", "units", "name", "trainable")})
        parse_config(json.dumps(described))


def _called(class_name: str, name: str, *inputs: str, **config: Any) -> dict[str, Any]:
    """A layer of a functional model of Keras 2 that takes the outputs of others."""
    nodes = [[[each, 0, 0, {}] for each in inputs]]
    return {**layer(class_name, name=name, **config), "inbound_nodes": nodes}


def test_connections_of_layers() -> None:
    """Of functional models by the names in `inbound_nodes`, of Sequential models by the order."""
    inner = layer("Sequential", name="tower", layers=[layer("Dense", name="a"), layer("ReLU", name="b")])
    last = {**inner, "inbound_nodes": [{"args": [{"config": {"keras_history": ["sum", 0, 0]}}], "kwargs": {}}]}
    layers = [_called("Dense", "one"), _called("ReLU", "two", "one"), _called("Add", "sum", "one", "two"), last]
    model = parse_config(json.dumps(layer("Functional", name="net", layers=layers))).model
    graph, found = LayerGraph(model), {each.path: each for each in model.walk()}
    assert [each.name for each in graph.after(found["one"])] == ["two", "sum"]
    assert [each.name for each in graph.before(found["sum"])] == ["one", "two"]
    assert [each.path for each in graph.before(found["tower"])] == ["sum"]
    assert [each.path for each in graph.after(found["tower/a"])] == ["tower/b"]
    assert graph.after(found["tower/b"]) == graph.before(found["one"]) == ()


def test_cyclic_connections_end() -> None:
    """Nothing follows from a configuration in which layers take their own outputs."""
    layers = [
        _called("Dropout", "a", "b"),
        _called("Dropout", "b", "a"),
        _called("Dense", "fc", "a", activation="linear"),
    ]
    model = parse_config(json.dumps(layer("Functional", name="net", layers=layers))).model
    graph, found = LayerGraph(model), {each.name: each for each in model.walk()}
    assert flattened_map(found["fc"], graph) is None
    assert activation_after_layer(found["fc"], graph, keras_2=False) is None
