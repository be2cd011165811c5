"""KeyMapper.infer: checkpoints of BERT, GPT-2 and LeNet fill models of transformers and plain torch modules.

TensorFlow writes the checkpoints, by names and as objects, and computes the outputs. No rules are given.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_families as families
import torch
from language_models import bert_settings, gpt2_settings, language_model, outputs, random_values
from plain_transformers import (
    HEADS,
    HIDDEN,
    INNER,
    POSITIONS,
    VOCABULARY,
    FusedAttention,
    PlainBert,
    PlainGpt,
    SeparateAttention,
    TorchAttention,
)
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt

LAYERS = 3
SIZES = {
    "vocabulary": VOCABULARY, "positions": POSITIONS, "layers": LAYERS, "hidden": HIDDEN, "heads": HEADS,
    "head": HIDDEN // HEADS, "inner": INNER,
}  # fmt: skip
BERT = bert_settings(SIZES, hidden_act="gelu_new")
GPT2 = gpt2_settings(SIZES)
IDS = np.random.default_rng(2).integers(1, VOCABULARY, (2, 13))

MODELS: dict[str, tuple[str, Callable[[], torch.nn.Module]]] = {
    "BertModel": ("bert", lambda: language_model("BertModel", BERT)),
    "bert-separate": ("bert", lambda: PlainBert(SeparateAttention, LAYERS)),
    "bert-torch": ("bert", lambda: PlainBert(TorchAttention, LAYERS)),
    "GPT2Model": ("gpt2", lambda: language_model("GPT2Model", GPT2)),
    "gpt2-fused": ("gpt2", lambda: PlainGpt(FusedAttention, LAYERS)),
}


def write(tensorflow: TensorFlowProcess, values: dict[str, np.ndarray], prefix: Path, *, by_objects: bool) -> None:
    if by_objects:
        paths = {name: name.replace("/", ".") for name in values}
        tensorflow.call("tensorflow_families.write_objects", str(prefix), values, paths)
    else:
        tensorflow.call("save_v2", str(prefix), values)


@pytest.mark.parametrize("by_objects", [False, True], ids=["names", "objects"])
@pytest.mark.parametrize("name", MODELS)
def test_no_rules_are_needed(tensorflow: TensorFlowProcess, tmp_path: Path, name: str, by_objects: bool) -> None:
    """The outputs are TensorFlow's. The heads of BERT's pre-training, which no model here has, are omitted."""
    family, build = MODELS[name]
    bert = families.bert_shapes(SIZES) | families.bert_head_shapes(SIZES, HIDDEN)
    values = random_values(bert if family == "bert" else families.gpt2_shapes(SIZES))
    write(tensorflow, values, tmp_path / "model", by_objects=by_objects)
    wanted = tensorflow.call("tensorflow_families.run", family, values, SIZES, IDS)["hidden"]
    model = build().eval()
    mapper = tfckpt.KeyMapper.infer(tmp_path / "model", model)
    tfckpt.load_model(model, tmp_path / "model", mapper=mapper)
    np.testing.assert_allclose(hidden_states(model), wanted, rtol=0, atol=1e-4)


def hidden_states(model: torch.nn.Module) -> np.ndarray:
    ids = torch.from_numpy(IDS)
    found: Any = outputs(model, input_ids=ids) if hasattr(model, "config") else outputs(model, ids=ids)
    found = found.last_hidden_state if hasattr(model, "config") else found
    array: np.ndarray = (found[0] if isinstance(found, tuple) else found).numpy()
    return array


@pytest.mark.parametrize("by_objects", [False, True], ids=["names", "objects"])
@pytest.mark.parametrize("scope", ["", "cls/seq_relationship/"], ids=["fine-tuned", "pre-trained"])
def test_a_classifier_of_bert(tensorflow: TensorFlowProcess, tmp_path: Path, scope: str, by_objects: bool) -> None:
    """output_weights and output_bias are a layer. That the other head is not used is confirmed by proposed rules."""
    shapes = families.bert_shapes(SIZES) | families.bert_head_shapes(SIZES, HIDDEN)
    if not scope:
        shapes = families.bert_shapes(SIZES) | {"output_weights": (2, HIDDEN), "output_bias": (2,)}
    values = random_values(shapes)
    write(tensorflow, values, tmp_path / "model", by_objects=by_objects)
    pooled = tensorflow.call("tensorflow_families.run", "bert", values, SIZES, IDS)["pooled"]
    model = PlainBert(SeparateAttention, LAYERS, classes=2).eval()
    rules = tfckpt.KeyMapper({})
    if scope:
        with pytest.raises(tfckpt.InvalidArgumentError, match='"cls/predictions/output_bias"') as caught:
            tfckpt.KeyMapper.infer(tmp_path / "model", model)
        proposed = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]
        (tmp_path / "rules.toml").write_text("\n".join(proposed))
        rules = tfckpt.KeyMapper.from_file(tmp_path / "rules.toml")
    mapper = tfckpt.KeyMapper.infer(tmp_path / "model", model, rules=rules)
    tfckpt.load_model(model, tmp_path / "model", mapper=mapper)
    wanted = pooled @ values[f"{scope}output_weights"].T + values[f"{scope}output_bias"]
    np.testing.assert_allclose(outputs(model, ids=torch.from_numpy(IDS))[1].numpy(), wanted, rtol=0, atol=1e-4)


class LeNet(torch.nn.Module):
    """Its first Linear multiplies a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(1, 6, 5, padding=2), torch.nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = torch.nn.Linear(400, 120), torch.nn.Linear(120, 84), torch.nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.avg_pool2d(self.conv1(x).tanh(), 2)
        x = torch.nn.functional.avg_pool2d(self.conv2(x).tanh(), 2).flatten(1)
        output: torch.Tensor = self.fc3(self.fc2(self.fc1(x).tanh()).tanh())
        return output


@pytest.mark.parametrize("by_objects", [False, True], ids=["names", "objects"])
def test_lenet(tensorflow: TensorFlowProcess, tmp_path: Path, by_objects: bool) -> None:
    """The inputs of the Linear after the flattened map are reordered."""
    wanted = tensorflow.call("tensorflow_families.lenet", str(tmp_path / "model"), by_objects=by_objects)
    model = LeNet().eval()
    tfckpt.load_model(model, tmp_path / "model", mapper=tfckpt.KeyMapper.infer(tmp_path / "model", model))
    with torch.no_grad():
        output = model(torch.from_numpy(wanted["in"]).permute(0, 3, 1, 2))
    np.testing.assert_allclose(output.numpy(), wanted["out"], rtol=1e-5, atol=1e-5)
