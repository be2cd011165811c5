"""Checkpoints of public projects become files for torch: all is accounted for, and TensorFlow's bytes come back."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt import KeyRule
from torch_tfckpt.models.rules.key_mapper import Rules

# What a layout does to the values, written down once more: the axes of torch's tensor in TensorFlow's.
AXES = {"same": None, "dense": (1, 0), "conv1d": (2, 1, 0), "conv2d": (3, 2, 0, 1)}
# Reasons that name what a tensor is. "no rule matches it" is not one of them.
EXPLAINED = {
    "optimizer state", "a moving average", "a counter", "the object graph", "a rule leaves it out",
    "not a weight: a string, a metric or auxiliary state",
}  # fmt: skip
LINEAR: Rules = [(r"(.*)/kernel", r"\1.weight", "dense"), (r"(.*)/bias", r"\1.bias")]


class Case(NamedTuple):
    """A checkpoint, and what turns it.

    Attributes:
        folder: In the corpus.
        rules: None if the names of the module are those of the checkpoint.
        build: The module that the target is for; None if only rules are known.
    """

    folder: str
    rules: Rules | None
    build: Callable[[], nn.Module] | None = None


class ActorCritic(nn.Module):
    """Layers of a policy for a robot among pedestrians: an LSTM over the others, then dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(7, 64, batch_first=True)
        self.layer1, self.layer2 = nn.Linear(68, 256), nn.Linear(256, 256)
        self.fullyconnected1 = nn.Linear(256, 256)
        self.logits_p, self.logits_v = nn.Linear(256, 15), nn.Linear(256, 1)


class CharacterModel(nn.Module):
    """A model of characters with the names of TensorFlow 0.x."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(65, 128)
        self.lstm = nn.LSTM(128, 128, 2)
        self.softmax = nn.Linear(128, 65)


class Sentiment(nn.Module):
    """An LSTM over word vectors, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(300, 64)
        self.out = nn.Linear(64, 3)


class Sequence(nn.Module):
    """An LSTM and a dense layer of a Keras Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 32, batch_first=True)
        self.dense = nn.Linear(32, 1)


class Digits(nn.Module):
    """Two convolutions and two dense layers, in the order of an Estimator's model function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d, self.conv2d_1 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dense, self.dense_1 = nn.Linear(64, 512), nn.Linear(512, 10)


class Convolutions(nn.Module):
    """Ten convolutions in a list."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [1, *[32] * 9, 1]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))


def dense_layers(*sizes: int) -> Callable[[], nn.Sequential]:
    return lambda: nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


def lstm(kernel: str, bias: str, name: str) -> list[KeyRule]:
    """Rules for a cell of TensorFlow 1: one kernel for input and state, and a bias to which 1 is added for f."""
    return [
        KeyRule(kernel, (name.format("weight_ih"), name.format("weight_hh")), "lstm_tf1", axis=1),
        KeyRule(bias, name.format("bias_ih"), "lstm_tf1"),
        KeyRule(None, name.format("bias_hh"), fill=0.0),
    ]


KERAS: Rules = [
    (r"layer_with_weights-(\d+)/kernel", r"\1.weight", "dense"),
    (r"layer_with_weights-(\d+)/bias", r"\1.bias"),
]
KERAS_NET: Rules = [
    (r"net/layer_with_weights-(\d+)/kernel", r"\1.weight", "dense"),
    (r"net/layer_with_weights-(\d+)/bias", r"\1.bias"),
]
CELLS, MATRIX, BIAS = "rnnlm/MultiRNNCell/Cell", "BasicLSTMCell/Linear/Matrix", "BasicLSTMCell/Linear/Bias"
GAMMON: Rules = [
    (r"(layer\d)/weight", r"\1.weight", "dense"),
    (r"(layer\d)/bias", r"\1.bias"),
    (r"(?:apply_gradients/trace|game/).*", None),
]
TAXI: Rules = [
    (r"dnn/(hiddenlayer_\d|logits)/kernel", r"\1.weight", "dense"),
    (r"dnn/(hiddenlayer_\d|logits)/bias", r"\1.bias"),
    ("linear/linear_model/bias_weights", "linear.bias"),
    (r"linear/linear_model/(\w+)/weights", r"linear.\1.weight", "same"),
]
CASES = [
    Case(
        "cadrl",
        [
            (r"(layer\d|fullyconnected1|logits_\w)/kernel:0", r"\1.weight", "dense"),
            (r"(layer\d|fullyconnected1|logits_\w)/bias:0", r"\1.bias"),
            *lstm("rnn/lstm_cell/kernel:0", "rnn/lstm_cell/bias:0", "rnn.{}_l0"),
        ],
        ActorCritic,
    ),
    Case(
        "carmageddon-cnn",
        {f"wc{number}": (f"conv{number}.weight", "conv2d") for number in range(1, 6)}
        | {f"fc{number}": (f"fc{number}.weight", "dense") for number in range(2, 6)}
        | {f"Variable{f'_{number}' if number else ''}": f"biases.{number}" for number in range(9)},
    ),
    Case(
        "charrnn-calebfoss",
        [
            ("rnnlm/embedding", "embedding.weight", "same"),
            ("rnnlm/softmax_w", "softmax.weight", "dense"),
            ("rnnlm/softmax_b", "softmax.bias"),
            ("Variable", None),
            *lstm(f"{CELLS}0/{MATRIX}", f"{CELLS}0/{BIAS}", "lstm.{}_l0"),
            *lstm(f"{CELLS}1/{MATRIX}", f"{CELLS}1/{BIAS}", "lstm.{}_l1"),
        ],
        CharacterModel,
    ),
    Case(
        "cloudml-babyweight-ckpt",
        [
            (r"dnn/(hiddenlayer_\d|logits)/kernel", r"\1.weight", "dense"),
            (r"dnn/(hiddenlayer_\d|logits)/bias", r"\1.bias"),
            KeyRule(r"dnn/hiddenlayer_(\d)/(batchnorm_\d)", r"hiddenlayer_\1.\2", module=True),
            (r"dnn/input_from_feature_columns/input_layer/(\w+)/embedding_weights", r"inputs.\1.weight", "same"),
        ],
    ),
    Case("coriander-half_plus_two_sharded-v1", [("([ab])", r"\1")]),
    Case("coriander-tfprof-v1", {"DW": ("0.weight", "conv2d"), "DW2": ("1.weight", "conv2d")}),
    Case("cosmostat-mri", None, Convolutions),
    Case("eos-ckpt-155", KERAS_NET),
    Case("eos-cp-braces", KERAS),
    Case("fontgans-disc", KERAS, dense_layers(10, 10, 10, 20, 20, 20, 30, 30, 1)),
    Case("paulzhou-cartpole", KERAS, dense_layers(4, 24, 24, 2)),
    Case("pinn-variant", KERAS_NET),
    Case(
        "ppo-embersarc",
        [(r"(dense\w*)/kernel", r"\1.weight", "dense"), ("log_sigma_squared", "log_variance"), ("last_reward", None)],
    ),
    Case("rlcode-mario", LINEAR),
    Case("rust-regression-model-tf1", {"w": "w", "b": "b"}),
    Case("rust-regression-savedmodel", {"w": "w", "b": "b"}),
    Case(
        "sentiment-uicjohn",
        [
            ("Variable", "out.weight", "dense"),
            ("Variable_1", "out.bias"),
            *lstm("rnn/basic_lstm_cell/kernel", "rnn/basic_lstm_cell/bias", "rnn.{}_l0"),
        ],
        Sentiment,
    ),
    Case("serving-half_plus_two-v1-sharded", [("([ab])", r"\1")]),
    Case("serving-half_plus_two_tf2", [("([abc])", r"\1")]),
    Case(
        "t2t-transformer_test_ckpt",
        [
            (r"transformer/body/(.*)/multihead_attention/(\w+)/kernel", r"\1.attention.\2.weight", "dense"),
            (r"transformer/body/(.*)/ffn/(conv\d)/kernel", r"\1.ffn.\2.weight", "dense"),
            (r"transformer/body/(.*)/ffn/(conv\d)/bias", r"\1.ffn.\2.bias"),
            (r"transformer/body/(.*)/layer_norm/layer_norm_scale", r"\1.norm.weight"),
            (r"transformer/body/(.*)/layer_norm/layer_norm_bias", r"\1.norm.bias"),
            ("transformer/body/target_space_embedding/kernel", "target_space_embedding.weight", "same"),
            KeyRule(
                tuple(f"transformer/symbol_modality_8190_16/shared/weights_{number}" for number in range(16)),
                "embedding.weight",
                "same",
                sizes=(*[512] * 14, 511, 511),
            ),
            (r"losses_avg/.*|train_stats/.*", None),
        ],
    ),
    Case("td-gammon-v2", GAMMON, None),
    Case("tf-embedding-ckpt", {"my_embedding": ("weight", "same")}, lambda: nn.Embedding(3, 2)),
    Case("tf-lso-ckpt-tf22", KERAS, dense_layers(2, 2)),
    Case("tf-lso-savedmodel-tf22", KERAS, dense_layers(2, 2)),
    Case("tf-old_string_tensors", {"floats": ("floats", "same")}),
    Case("tf-trt-mnist-ckpt", None, Digits),
    Case("tf2onnx-regression", {"W": "weight", "b": "bias"}),
    Case("tfnet-lstm_from_sequential", None, Sequence),
    Case(
        "tftext-segmenter",
        [
            (r"feedforward_model/(\w+_emb)", r"\1.weight", "same"),
            ("feedforward_model/conv1d/kernel", "conv.weight", "conv1d"),
            ("feedforward_model/conv1d/bias", "conv.bias"),
            ("dense/kernel", "out.weight", "dense"),
            ("dense/bias", "out.bias"),
        ],
    ),
    Case("tfx-chicago-taxi-ckpt", TAXI),
    Case("tfx-chicago-taxi-eval-savedmodel", TAXI),
    Case("tract-keras-tf2", KERAS, dense_layers(100, 32, 1)),
    Case("tslnihao-saved_model", KERAS, dense_layers(784, 64, 64, 10)),
    Case("tslnihao-weights", LINEAR),
    Case(
        "v1-avdetect",
        {
            "Variable": ("0.weight", "conv2d"),
            "Variable_1": "0.bias",
            "Variable_2": ("1.weight", "conv2d"),
            "Variable_3": "1.bias",
            "Variable_4": ("2.weight", {"kind": "dense_after_flatten", "height": 16, "width": 16}),
            "Variable_5": "2.bias",
            "Variable_6": ("3.weight", "dense"),
            "Variable_7": "3.bias",
        },
    ),
    Case(
        "v1-ddpg-floodsung", [(r"theta_(p|q)/(\d)w", r"\1.\2.weight", "dense"), (r"theta_(p|q)/(\d)b", r"\1.\2.bias")]
    ),
    Case("v1-dqn-haoweiliang", [(r"W(\d)", r"\1.weight", "dense"), (r"b(\d)", r"\1.bias")]),
    Case(
        "v1-quant-sharded",
        [
            (r"linear/(\w+)/weight", r"\1.weight", "same"),
            ("linear/bias_weight", "bias"),
            ("centered_bias_weight", None),
        ],
    ),
    Case(
        "v1-steering-angle",
        [
            (r"(conv\w+)/Variable", r"\1.weight", "conv2d"),
            (r"(l\w+)/Variable", r"\1.weight", "dense"),
            (r"(\w+)/biases", r"\1.bias"),
        ],
    ),
    Case("v1-td-gammon", GAMMON),
    Case(
        "v1-traffic-signs",
        {"Variable": ("0.weight", "conv2d"), "Variable_1": ("1.weight", "conv2d")}
        | {f"Variable_{number}": (f"{number}.weight", "dense") for number in range(2, 5)}
        | {f"Variable_{number + 5}": f"{number}.bias" for number in range(5)},
    ),
    Case(
        "v1-vocal-autoencoder",
        {"Variable": ("0.weight", "dense"), "Variable_2": ("1.weight", "dense")}
        | {f"Variable_{number}": f"biases.{number}" for number in (1, 3, 4, 5)},
    ),
]


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return content


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


def digest(tensor: torch.Tensor) -> str:
    return sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)
def test_there_and_back(corpus: Path, tmp_path: Path, case: Case) -> None:
    """Each stored tensor has new names or a reason; torch loads the file; turned back, the bytes are TensorFlow's."""
    expected = content_of(corpus / case.folder)
    source = corpus / case.folder / expected["prefix"]
    target = tmp_path / ("net.pt" if len(case.folder) % 2 else "net.safetensors")
    report = tfckpt.convert(source, target, to_torch=True, map=case.rules, check=case.build)
    assert {row.name for row in report.outcomes} == expected["tensors"].keys()
    reasons = {row.reason for row in report.outcomes if row.new_name is None}
    assert reasons <= EXPLAINED
    found = read(target)
    assert found and {row.new_name for row in report.outcomes} - {None} == found.keys() - report.filled.keys()
    if case.build is not None:
        case.build().load_state_dict(found, strict=True)
    check_values(expected["tensors"], report, found)

    tfckpt.convert(target, tmp_path / "back", to_tf=True, map=case.rules, check=case.build)
    back = tfckpt.load_file(tmp_path / "back")
    turned = {row.name for row in report.outcomes if row.new_name is not None}
    adds = {row.name for row in report.outcomes if row.transform == "lstm_tf1" and len(row.shape) == 1}
    stored = tfckpt.load_file(source) if adds else {}
    names = {key: key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for key in turned}
    if case.rules is not None:
        assert set(names.values()) == back.keys()
    for key, name in names.items():
        if name in back:
            value = back[name]
            assert isinstance(value, torch.Tensor)
            if key in adds:  # rounded when 1 was added
                torch.testing.assert_close(value, stored[key], rtol=0, atol=1e-6)
            else:
                assert digest(value) == expected["tensors"][key]["sha256"], key


def check_values(
    stored: Mapping[str, Mapping[str, Any]], report: tfckpt.ConvertReport, found: Mapping[str, torch.Tensor]
) -> None:
    """Check each tensor that has one source and a plain layout against what TensorFlow read."""
    for row in report.outcomes:
        axes = AXES.get(row.transform, ())
        if row.new_name is None or axes == ():
            continue
        value = found[row.new_name]
        assert tuple(value.shape) == row.new_shape
        if axes is not None and value.dim() > 1:
            value = value.permute(sorted(range(len(axes)), key=axes.__getitem__))
        assert digest(value) == stored[row.name]["sha256"], row.name


# Names such as "Variable" and "softmax_w" do not tell the kind of a layer.
UNNAMED = {"charrnn-calebfoss", "sentiment-uicjohn"}
INFERRED = [case for case in CASES if case.build is not None]


@pytest.mark.parametrize("case", INFERRED, ids=lambda case: case.folder)
def test_inferred_rules_agree(corpus: Path, tmp_path: Path, case: Case) -> None:
    """Rules that are found give the same file as those that are given; names that tell nothing are refused."""
    source = corpus / case.folder / content_of(corpus / case.folder)["prefix"]
    tfckpt.convert(source, tmp_path / "given.pt", to_torch=True, map=case.rules, check=case.build)
    if case.folder in UNNAMED:
        with pytest.raises(tfckpt.NotFoundError, match="no stored layer fits"):
            tfckpt.convert(source, tmp_path / "found.pt", to_torch=True, infer=case.build)
        return
    tfckpt.convert(source, tmp_path / "found.pt", to_torch=True, infer=case.build)
    given, found = read(tmp_path / "given.pt"), read(tmp_path / "found.pt")
    assert given.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in given.items())
