"""KeyMapper.infer: what names and shapes determine is mapped; for the rest, rules that settle it are proposed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_families import family

import torch_tfckpt as tfckpt
from torch_tfckpt.models.rules.key_mapper import KeyMapper

Shapes = Mapping[str, tuple[int, ...]]


def dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def norm(name: str, size: int) -> Shapes:
    return {f"{name}/gamma": (size,), f"{name}/beta": (size,)}


def batch_norm(name: str, size: int) -> Shapes:
    return {**norm(name, size), f"{name}/moving_mean": (size,), f"{name}/moving_variance": (size,)}


def conv(name: str, size: int, inputs: int, outputs: int) -> Shapes:
    return {f"{name}/kernel": (size, size, inputs, outputs)}


def saved(path: Path, *parts: Shapes) -> str:
    """A checkpoint with random values."""
    shapes = {name: shape for part in parts for name, shape in part.items()}
    return tfckpt.save_file({name: torch.rand(shape) for name, shape in shapes.items()}, path / "model")


def module(**parts: nn.Module) -> Any:
    return nn.ModuleDict(parts)


def loaded(path: str, model: nn.Module, mapper: KeyMapper) -> dict[str, str]:
    """Name of a tensor -> where a strict load reads it."""
    report = tfckpt.load_model(model, path, mapper=mapper)
    assert (report.missing, report.unexpected, report.unused_rules) == ([], [], [])
    return report.sources


def bert(layers: int, size: int) -> list[Shapes]:
    """The variables of google-research/bert, with the heads of pre-training."""
    parts = [
        {
            "bert/embeddings/word_embeddings": (30, size),
            "bert/embeddings/position_embeddings": (16, size),
            "bert/embeddings/token_type_embeddings": (2, size),
        },
        norm("bert/embeddings/LayerNorm", size),
    ]
    for layer in range(layers):
        scope = f"bert/encoder/layer_{layer}"
        parts += [dense(f"{scope}/attention/self/{name}", size, size) for name in ("query", "key", "value")]
        parts += [
            dense(f"{scope}/attention/output/dense", size, size),
            norm(f"{scope}/attention/output/LayerNorm", size),
        ]
        parts += [dense(f"{scope}/intermediate/dense", size, 2 * size), dense(f"{scope}/output/dense", 2 * size, size)]
        parts += [norm(f"{scope}/output/LayerNorm", size)]
    return [*parts, dense("bert/pooler/dense", size, size)]


def bert_heads(size: int) -> list[Shapes]:
    return [
        dense("cls/predictions/transform/dense", size, size),
        norm("cls/predictions/transform/LayerNorm", size),
        {"cls/predictions/output_bias": (30,)},
        {"cls/seq_relationship/output_weights": (2, size), "cls/seq_relationship/output_bias": (2,)},
    ]


@pytest.mark.filterwarnings("ignore")
def test_bert(tmp_path: Path) -> None:
    """Original names against transformers' BertModel: patterns for the layers; the heads are omitted."""
    transformers = family("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=6, num_hidden_layers=11, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertModel(config)
    path = saved(tmp_path, *bert(11, 6), *bert_heads(6))
    mapper = KeyMapper.infer(path, model)
    sources = loaded(path, model, mapper)
    for name, source in sources.items():
        if "_embeddings" not in name:
            layer = source.removeprefix("bert/").rpartition("/")[0]
            assert layer.replace("layer_", "layer/").replace("/", ".") == name.rpartition(".")[0]
    assert mapper.find("cls/predictions/output_bias") is not None
    assert len(mapper.sources) < 45


@pytest.mark.filterwarnings("ignore")
def test_gpt2(tmp_path: Path) -> None:
    """openai/gpt-2: shapes that are not square show that the square ones are only squeezed, not transposed."""
    transformers = family("transformers")
    parts: list[Shapes] = [{"model/wte": (30, 6), "model/wpe": (16, 6)}]
    for layer in range(11):
        for name, inputs, outputs in (
            ("attn/c_attn", 6, 18), ("attn/c_proj", 6, 6), ("mlp/c_fc", 6, 24), ("mlp/c_proj", 24, 6),
        ):  # fmt: skip
            parts.append({f"model/h{layer}/{name}/w": (1, inputs, outputs), f"model/h{layer}/{name}/b": (outputs,)})
        parts += [{f"model/h{layer}/{name}/{leaf}": (6,) for name in ("ln_1", "ln_2") for leaf in "gb"}]
    parts.append({"model/ln_f/g": (6,), "model/ln_f/b": (6,)})
    path = saved(tmp_path, *parts)
    config = transformers.GPT2Config(vocab_size=30, n_embd=6, n_layer=11, n_head=2, n_positions=16)
    model = transformers.GPT2Model(config)
    mapper = KeyMapper.infer(path, model)
    assert loaded(path, model, mapper)["h.10.attn.c_proj.weight"] == "model/h10/attn/c_proj/w"
    tfckpt.save_model(model, tmp_path / "back", mapper=mapper)
    assert tfckpt.list_variables(tmp_path / "back") == tfckpt.list_variables(path)
    assert torch.equal(model.h[10].attn.c_proj.weight, tfckpt.load_file(path)["model/h10/attn/c_proj/w"][0])
    mapper.to_file(tmp_path / "map.toml")
    assert KeyMapper.from_file(tmp_path / "map.toml") == mapper


class LeNet(nn.Module):
    """Its first Linear multiplies a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.f1, self.f2, self.f3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(self.c2(torch.max_pool2d(self.c1(x).relu(), 2)).relu(), 2)
        output: torch.Tensor = self.f3(self.f2(self.f1(x.flatten(1)).relu()).relu())
        return output


def test_a_flattened_map(tmp_path: Path) -> None:
    """The inputs of the Linear after it are reordered; the mapper says so."""
    path = saved(
        tmp_path, conv("conv2d", 5, 1, 6), {"conv2d/bias": (6,)}, conv("conv2d_1", 5, 6, 16), {"conv2d_1/bias": (16,)},
        dense("dense", 400, 120), dense("dense_1", 120, 84), dense("dense_2", 84, 10),
    )  # fmt: skip
    model = LeNet()
    mapper = KeyMapper.infer(path, model)
    loaded(path, model, mapper)
    kernel = tfckpt.load_file(path)["dense/kernel"]
    assert torch.equal(model.f1.weight, kernel.reshape(5, 5, 16, 120).permute(3, 2, 0, 1).reshape(120, 400))
    assert "flattened feature map" in mapper.explanations["dense/kernel"]


def test_automatic_numbers_need_confirmation(tmp_path: Path) -> None:
    """dense, dense_1, dense_2 are created in this order: believed if layers of other shapes agree."""
    model = module(fc1=nn.Linear(3, 5), fc2=nn.Linear(5, 5), fc3=nn.Linear(5, 5), fc4=nn.Linear(5, 2))
    path = saved(tmp_path, dense("dense", 3, 5), dense("dense_1", 5, 5), dense("dense_2", 5, 5), dense("dense_3", 5, 2))
    assert loaded(path, model, KeyMapper.infer(path, model))["fc3.weight"] == "dense_2/kernel"
    path = saved(tmp_path, dense("dense_3", 3, 5), dense("dense", 5, 5), dense("dense_1", 5, 5), dense("dense_2", 5, 2))
    with pytest.raises(tfckpt.InvalidArgumentError, match='"dense", "dense_1" may be "fc2", "fc3"'):
        KeyMapper.infer(path, model)


def test_optimizer_state_is_ignored(tmp_path: Path) -> None:
    """Slots and steps are not weights."""
    slots = {f"{name}/Adam": shape for name, shape in dense("dense", 3, 5).items()}
    path = saved(tmp_path, dense("dense", 3, 5), slots, {"beta1_power": ()})
    model = module(fc=nn.Linear(3, 5))
    assert KeyMapper.infer(path, model).sources == ["dense/kernel", "dense/bias"]


def resnet_names(naming: Callable[[int, int, str], str]) -> list[Shapes]:
    parts = [conv("stem/conv", 7, 3, 4), batch_norm("stem/bn", 4)]
    for stage, (inputs, outputs) in enumerate(((4, 4), (4, 8)), 1):
        for block in (1, 2):
            first = inputs if block == 1 else outputs
            for number, size in ((1, first), (2, outputs)):
                parts.append(conv(naming(stage, block, f"conv{number}"), 3, size, outputs))
                parts.append(batch_norm(naming(stage, block, f"bn{number}"), outputs))
            if first != outputs:
                parts.append(conv(naming(stage, block, "shortcut_conv"), 1, first, outputs))
                parts.append(batch_norm(naming(stage, block, "shortcut_bn"), outputs))
    return [*parts, dense("logits", 8, 10)]


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs)
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


@pytest.mark.parametrize("separator", ["/", "_"])
def test_a_resnet(tmp_path: Path, separator: str) -> None:
    """block1/unit_1 is layer1.0: numbered alike, from another start."""
    path = saved(
        tmp_path, *resnet_names(lambda stage, block, name: f"block{stage}{separator}unit_{block}{separator}{name}")
    )
    stages = {
        f"layer{stage}": nn.Sequential(BasicBlock(inputs, outputs), BasicBlock(outputs, outputs))
        for stage, (inputs, outputs) in enumerate(((4, 4), (4, 8)), 1)
    }
    model = module(conv1=nn.Conv2d(3, 4, 7, bias=False), bn1=nn.BatchNorm2d(4), **stages, fc=nn.Linear(8, 10))
    sources = loaded(path, model, KeyMapper.infer(path, model))
    unit = f"block2{separator}unit_"
    assert sources["layer2.0.downsample.1.weight"] == f"{unit}1{separator}shortcut_bn/gamma"
    assert sources["layer2.1.bn1.running_mean"] == f"{unit}2{separator}bn1/moving_mean"
    assert sources["layer1.1.conv2.weight"] == f"block1{separator}unit_2{separator}conv2/kernel"


AMBIGUOUS: dict[str, tuple[list[Shapes], Callable[[], nn.Module]]] = {
    "twins": (
        [dense("left", 5, 5), dense("right", 5, 5)],
        lambda: module(a=nn.Linear(5, 5), b=nn.Linear(5, 5)),
    ),
    "automatic numbers": (
        [dense("dense", 5, 5), dense("dense_1", 5, 5)],
        lambda: module(fc1=nn.Linear(5, 5), fc2=nn.Linear(5, 5)),
    ),
    "query and key by order": (
        [dense(f"attention/dense{number}", 4, 4) for number in ("", "_1", "_2")],
        lambda: module(q_proj=nn.Linear(4, 4), k_proj=nn.Linear(4, 4), v_proj=nn.Linear(4, 4)),
    ),
    "towers": (
        [dense(f"tower_{side}/{name}", 4, 4) for side in ("x", "y") for name in ("hidden", "out")],
        lambda: module(
            one=module(hidden=nn.Linear(4, 4), out=nn.Linear(4, 4)),
            two=module(hidden=nn.Linear(4, 4), out=nn.Linear(4, 4)),
        ),
    ),
    "shortcut or last convolution": (
        [conv(f"conv2d{number}", 1, *sizes) for number, sizes in (("", (3, 3)), ("_1", (3, 6)), ("_2", (3, 6)))],
        lambda: module(
            conv1=nn.Conv2d(3, 3, 1, bias=False),
            conv2=nn.Conv2d(3, 6, 1, bias=False),
            downsample=nn.Conv2d(3, 6, 1, bias=False),
        ),
    ),
    "the student or the teacher": (
        [dense("student/fc", 4, 3), dense("teacher/fc", 4, 3)],
        lambda: module(fc=nn.Linear(4, 3)),
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_models(tmp_path: Path, name: str) -> None:
    """Refused with the candidates; with the proposed rules as a map file, the module loads."""
    parts, build = AMBIGUOUS[name]
    path = saved(tmp_path, *parts)
    with pytest.raises(tfckpt.InvalidArgumentError, match="nothing is guessed") as caught:
        KeyMapper.infer(path, build())
    text = str(caught.value)
    assert len(text) < 4000
    rules = "\n".join(line.strip() for line in text.splitlines() if line.startswith("  "))
    if name == "the student or the teacher":  # the other is then left over, in a scope of its own
        assert "student/fc" in rules
    (tmp_path / "rules.toml").write_text(rules)
    given = KeyMapper.from_file(tmp_path / "rules.toml")
    model = build()
    mapper = KeyMapper.infer(path, model, rules=given)
    sources = loaded(path, model, mapper)
    for stored, target in given.names.items():
        assert sources[str(target.target)] == stored


def test_a_swap_by_rule(tmp_path: Path) -> None:
    """One rule for a layer of a tower settles the whole tower, also the other way round."""
    parts, build = AMBIGUOUS["towers"]
    path = saved(tmp_path, *parts)
    mapper = KeyMapper.infer(path, build(), rules={"tower_y/hidden/kernel": ("one.hidden.weight", "dense")})
    assert loaded(path, build(), mapper)["two.out.bias"] == "tower_x/out/bias"


def test_missing_and_unused(tmp_path: Path) -> None:
    """A module that the checkpoint lacks, and weights inside a scope in use, are errors; a whole scope is omitted."""
    path = saved(tmp_path, dense("net/fc", 3, 5), dense("net/out", 5, 2), dense("old_head", 5, 9))
    with pytest.raises(tfckpt.NotFoundError, match=r"new.weight \[7,5\], new.bias \[7\]: nothing fits"):
        KeyMapper.infer(path, module(fc=nn.Linear(3, 5), out=nn.Linear(5, 2), new=nn.Linear(5, 7)))
    model = module(fc=nn.Linear(3, 5), out=nn.Linear(5, 2))
    mapper = KeyMapper.infer(path, model)
    loaded(path, model, mapper)
    assert mapper.explanations["old_head/.*"] == "not used: the module has nothing like it"
    path = saved(tmp_path, dense("a/x/fc", 3, 5), dense("a/x/gone", 4, 9), dense("b", 5, 2))
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'no place in the module.*"a/x/gone/bias"'):
        KeyMapper.infer(path, model)


def test_square_weights_with_a_name_of_torch(tmp_path: Path) -> None:
    """ "w" of a square Linear: its order of axes is unknown, unless a Linear that is not square tells it."""
    path = saved(tmp_path, {"fc/w": (4, 4), "fc/b": (4,)})
    with pytest.raises(tfckpt.InvalidArgumentError, match="order of the axes"):
        KeyMapper.infer(path, module(fc=nn.Linear(4, 4)))
    path = saved(tmp_path, {"fc/w": (4, 4), "fc/b": (4,), "out/w": (4, 3), "out/b": (3,)})
    model = module(fc=nn.Linear(4, 4), out=nn.Linear(4, 3))
    mapper = KeyMapper.infer(path, model)
    found = mapper.find("fc/w")
    assert found is not None
    assert found.layout == "dense"


def test_modules_on_the_meta_device(tmp_path: Path) -> None:
    """Only shapes matter."""
    path = saved(tmp_path, dense("dense", 3, 5))
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 5))
    assert KeyMapper.infer(path, model).names["dense/bias"].target == "0.bias"


def test_the_base_of_given_rules_is_kept(tmp_path: Path) -> None:
    """Rules for a model with heads infer the rest of its base model, and the result loads it."""
    path = saved(tmp_path, dense("bert/a", 3, 3), dense("bert/b", 3, 3))
    rules = KeyMapper({"bert/a/bias": "bert.first.bias"}, base="bert")
    model = module(first=nn.Linear(3, 3), second=nn.Linear(3, 3))
    mapper = KeyMapper.infer(path, model, rules=rules)
    assert mapper.base == "bert"
    assert loaded(path, model, mapper)["second.weight"] == "bert/b/kernel"


def test_recurrent_layers_are_saved_after_training(tmp_path: Path) -> None:
    """The second bias, which TensorFlow does not store, is added to the first; the kernels keep their names."""
    model = module(lstm=nn.LSTM(3, 5, 2, bidirectional=True), cell=nn.LSTMCell(3, 4), rnn=nn.RNN(3, 6))
    tfckpt.save_model(model, tmp_path / "first", naming="tf")
    mapper = KeyMapper.infer(tmp_path / "first", model)
    tfckpt.load_model(model, tmp_path / "first", mapper=mapper)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    inputs = torch.randn(4, 2, 3)
    trained = [model.lstm(inputs)[0], model.cell(inputs[0])[0], model.rnn(inputs)[0]]
    tfckpt.save_model(model, tmp_path / "trained", mapper=mapper)
    assert tfckpt.list_variables(tmp_path / "trained") == tfckpt.list_variables(tmp_path / "first")
    tfckpt.load_model(model, tmp_path / "trained", mapper=mapper)
    torch.testing.assert_close([model.lstm(inputs)[0], model.cell(inputs[0])[0], model.rnn(inputs)[0]], trained)


def test_the_cell_of_tensorflow_1_is_saved_after_training(tmp_path: Path) -> None:
    """Its gates have another order, and TensorFlow adds a constant to one of them."""
    path = saved(tmp_path, {"rnn/basic_lstm_cell/kernel": (8, 20), "rnn/basic_lstm_cell/bias": (20,)})
    model = module(lstm=nn.LSTM(3, 5))
    mapper = KeyMapper.infer(path, model)
    tfckpt.load_model(model, path, mapper=mapper)
    with torch.no_grad():
        model.lstm.bias_hh_l0 += torch.arange(20.0)
    wanted = model.lstm(torch.ones(4, 2, 3))[0]
    tfckpt.save_model(model, tmp_path / "trained", mapper=mapper)
    tfckpt.load_model(model, tmp_path / "trained", mapper=mapper)
    torch.testing.assert_close(model.lstm(torch.ones(4, 2, 3))[0], wanted)


class Tied(nn.Module):
    """The head has the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.fc, self.lm_head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.lm_head.weight = self.wte.weight


COPIES = [
    ("wte", "lm_head/kernel"),
    ("wte", "lm_head/weight"),
    ("table_a", "table_b"),
    ("x/embeddings", "y/embeddings"),
]


@pytest.mark.parametrize("names", COPIES, ids=[" ".join(names).replace("/", "-") for names in COPIES])
def test_tied_weights_stored_twice(tmp_path: Path, names: tuple[str, str]) -> None:
    """One copy is loaded, and the rule for the other tells that it is a copy; also of a transposed matrix."""
    table = torch.randn(9, 6)
    first, second = (f"net/lm/{name}" for name in names)
    stored = {"net/lm/fc/kernel": torch.randn(6, 6), "net/lm/fc/bias": torch.randn(6), first: table, second: table}
    if second.endswith("kernel"):
        stored[second] = table.t().contiguous()
    path = tfckpt.save_file(stored, tmp_path / "model")
    model = Tied()
    mapper = KeyMapper.infer(path, model)
    loaded(path, model, mapper)
    assert torch.equal(model.wte.weight, table)
    assert mapper.explanations[second] == f'not used: a copy of "{first}"'


def test_equal_constants_are_not_copies(tmp_path: Path) -> None:
    """Before training, weights of the same shape may be equal by chance."""
    stored = {"net/lm/table_a": torch.zeros(9, 6), "net/lm/table_b": torch.zeros(9, 6)}
    path = tfckpt.save_file(stored, tmp_path / "model")
    with pytest.raises(tfckpt.InvalidArgumentError, match="nothing is guessed"):
        KeyMapper.infer(path, module(embedding=nn.Embedding(9, 6)))
