"""convert with a preset writes what load_model loads with it, with and without the module, and turns it back.

The checkpoints are written by save_model with random weights; that the names are TensorFlow's is tested next to this.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tensorflow_families as families
import torch
from image_models import CLASSES, MODELS
from language_models import SIZES, bert_settings, gpt2_settings, language_model, random_values, t5_settings
from torch import nn
from torch_families import family

import torch_tfckpt as tfckpt

GENERATOR = SIZES | {"hidden": 10, "heads": 2, "inner": 14}
BERT = bert_settings(SIZES)
ALBERT = BERT | {"embedding_size": 9, "num_hidden_groups": 2, "inner_group_num": 1}
ELECTRA = BERT | {"embedding_size": 9}
ELECTRA_GENERATOR = bert_settings(GENERATOR, embedding_size=9)
GPT2 = gpt2_settings(SIZES)
T5 = t5_settings(SIZES)
T5_NEWER = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


class Text(NamedTuple):
    """A preset, a class of transformers that has all that is stored, and the variables of the checkpoint."""

    preset: str
    kind: str
    configuration: dict[str, Any]
    shapes: Callable[[], families.Shapes]


def bert_shapes() -> families.Shapes:
    return families.bert_shapes(SIZES) | families.bert_head_shapes(SIZES, SIZES["hidden"])


TEXTS = [
    Text("bert", "BertForPreTraining", BERT, bert_shapes),
    Text("bert", "BertModel", BERT, lambda: families.bert_shapes(SIZES)),
    Text("albert", "AlbertForPreTraining", ALBERT, lambda: families.albert_shapes(SIZES)),
    Text("electra", "ElectraForPreTraining", ELECTRA, lambda: families.electra_shapes(SIZES, GENERATOR)),
    Text(
        "electra-generator", "ElectraForMaskedLM", ELECTRA_GENERATOR, lambda: families.electra_shapes(SIZES, GENERATOR)
    ),
    Text("gpt2", "GPT2LMHeadModel", GPT2, lambda: families.gpt2_shapes(SIZES)),
    Text("t5", "T5ForConditionalGeneration", T5, lambda: families.t5_shapes(SIZES, newer=False)),
    Text("t5-1.1", "T5ForConditionalGeneration", T5_NEWER, lambda: families.t5_shapes(SIZES, newer=True)),
    Text("t5-encoder", "T5EncoderModel", T5, lambda: families.t5_shapes(SIZES, newer=False)),
    Text("bert-tf2", "BertForPreTraining", BERT, lambda: families.garden_shapes(SIZES)),
]


class Image(NamedTuple):
    """A preset, a module and a scope."""

    preset: str
    module: str
    scope: str = ""


IMAGES = [
    Image("resnet", "slim resnet", "resnet_v1_50"),
    Image("resnet", "keras resnet"),
    Image("mobilenet-v1", "mobilenet-v1", "MobilenetV1"),
    Image("mobilenet-v2", "mobilenet-v2", "MobilenetV2"),
    Image("mobilenet-v2-timm", "mobilenet-v2-timm"),
    Image("mobilenet-v3-small", "mobilenet-v3-small", "MobilenetV3"),
    Image("mobilenet-v3-small-timm", "mobilenet-v3-small-timm"),
    Image("efficientnet-timm", "efficientnet-timm b0"),
    Image("densenet", "densenet", "densenet121"),
]
HEAVY_IMAGES = [
    Image("inception-v3", "inception-v3 with auxiliary classifier", "InceptionV3"),
    Image("efficientnet", "efficientnet b0", "efficientnet-b0"),
    Image("vgg16", "vgg16", "vgg_16"),
    Image("vgg16-timm", "vgg16-timm"),
    Image("vgg19", "vgg19"),
    Image("vgg19-timm", "vgg19-timm", "vgg_19"),
    Image("mobilenet-v3-large", "mobilenet-v3-large"),
    Image("mobilenet-v3-large-timm", "mobilenet-v3-large-timm", "MobilenetV3"),
    Image("inception-v4", "inception-v4", "InceptionV4"),
]
ALL_IMAGES = [*IMAGES, *(pytest.param(each, marks=pytest.mark.heavy) for each in HEAVY_IMAGES)]


def check_both_ways(model: nn.Module, source: Path, preset: str, scope: str, folder: Path, *, whole: bool) -> None:
    """Convert with and without the module, compare both files with the loaded module, and convert them back.

    Args:
        whole: Whether the module has all that is stored.
    """
    tfckpt.load_model(model, source, mapper=tfckpt.KeyMapper.preset(preset), ema="ignore")
    expected = model.state_dict()
    tfckpt.convert(source, folder / "checked.pt", to_torch=True, preset=preset, check=model)
    checked = torch.load(folder / "checked.pt", weights_only=True)
    assert checked.keys() == expected.keys()
    assert all(torch.equal(checked[name], value) for name, value in expected.items())

    report = tfckpt.convert(source, folder / "bare.pt", to_torch=True, preset=preset)
    bare = torch.load(folder / "bare.pt", weights_only=True)
    assert not [remark for remark in report.remarks if "matches nothing" in remark]
    base = tfckpt.KeyMapper.preset(preset).base
    inside = {name if name in expected else name.removeprefix(f"{base}."): value for name, value in bare.items()}
    assert not whole or inside.keys() <= expected.keys()
    both = inside.keys() & expected.keys()
    assert both and all(torch.equal(inside[name], expected[name]) for name in both)

    original = tfckpt.load_file(source)
    names = {name for name in original if not name.endswith((".shared", "num_batches_tracked"))}
    for name, check in (("checked.pt", model), ("bare.pt", None)):
        tfckpt.convert(folder / name, folder / "back", to_tf=True, check=check, preset=preset, scope=scope)
        back = tfckpt.load_file(folder / "back")
        assert back and all(_same(value, original[key], shapes=check is not None) for key, value in back.items())
        assert not whole or back.keys() == names


def _same(first: object, second: object, *, shapes: bool) -> bool:
    """Return whether two tensors have the same bytes, and also shapes: without a module, bert-tf2 writes no heads."""
    assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    return torch.equal(first.reshape(-1), second.reshape(-1)) and (not shapes or first.shape == second.shape)


@pytest.mark.parametrize("case", TEXTS, ids=lambda case: f"{case.preset}-{case.kind}")
def test_language_presets(case: Text, tmp_path: Path) -> None:
    """Without the module, presets give the layouts."""
    values = {name: torch.from_numpy(value) for name, value in random_values(case.shapes()).items()}
    tfckpt.save_file(values, tmp_path / "model.ckpt")
    model = language_model(case.kind, case.configuration)
    if case.configuration is T5_NEWER:
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    whole = case.preset not in ("electra", "electra-generator", "t5-encoder")
    check_both_ways(model, tmp_path / "model.ckpt", case.preset, "", tmp_path, whole=whole)


def randomized(model: nn.Module) -> nn.Module:
    """Set all parameters and statistics to random values, but the scales of norms to 1, as some are not stored."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            is_norm = isinstance(module, nn.BatchNorm2d)
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if tensor.is_floating_point() and not (is_norm and name == "weight"):
                    tensor.uniform_(0.1, 1)
    return model


@pytest.mark.thinned(2)
@pytest.mark.parametrize("case", ALL_IMAGES, ids=lambda case: case.module)
def test_image_presets(case: Image, tmp_path: Path) -> None:
    """The scope is given to write TensorFlow's names."""
    model = randomized(MODELS[case.module]())
    mapper = tfckpt.KeyMapper.preset(case.preset, scope=case.scope)
    tfckpt.save_model(model, tmp_path / "model.ckpt", mapper=mapper)
    check_both_ways(model, tmp_path / "model.ckpt", case.preset, case.scope, tmp_path, whole=True)


@pytest.mark.parametrize(
    ("preset", "module", "scope", "bare"),
    [
        ("resnet", "resnet26", "resnet_v1_26", {"num_classes": 0}),
        ("mobilenet-v3-small-timm", "tf_mobilenetv3_small_100", "MobilenetV3", {"num_classes": 0}),
        ("mobilenet-v2-timm", "mobilenetv2_035", "MobilenetV2", {"num_classes": 0}),
        ("mobilenet-v1", "mobilenetv1_100", "MobilenetV1", {"num_classes": 0}),
        ("efficientnet-timm", "tf_efficientnet_b0", "efficientnet-b0", {"num_classes": 0}),
        ("inception-v3", "inception_v3", "InceptionV3", {"aux_logits": False}),
    ],
)
def test_modules_without_a_head(preset: str, module: str, scope: str, bare: dict[str, Any], tmp_path: Path) -> None:
    """Feature extractors of timm, and Inception v3 without the auxiliary classifier; a remark lists what is left."""
    timm = family("timm")
    more = {"aux_logits": True} if "aux_logits" in bare else {}
    whole = randomized(timm.create_model(module, **({"num_classes": CLASSES} | more)))
    tfckpt.save_model(whole, tmp_path / "saved", mapper=tfckpt.KeyMapper.preset(preset, scope=scope))
    # TensorFlow has no counters.
    tfckpt.convert(tmp_path / "saved", tmp_path / "model.ckpt", to="tf", exclude=["num_batches_tracked$"])
    model = timm.create_model(module, **({"num_classes": CLASSES} | bare))
    report = tfckpt.load_model(model, tmp_path / "model.ckpt", mapper=tfckpt.KeyMapper.preset(preset))
    expected = whole.state_dict()
    found = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    [remark] = [each for each in report.remarks if each.startswith("not loaded")]
    assert scope in remark
    assert report.unused_rules == []
