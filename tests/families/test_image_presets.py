"""Presets of image models: what TensorFlow stored is loaded into the real modules, which then compute the same."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from image_models import MODELS, WithoutPaddingInAverages
from layer_twins import tensor
from tensorflow_process import TensorFlowProcess
from torch_families import family

import torch_tfckpt as tfckpt


class Stored(NamedTuple):
    """Checkpoints of one model, and what TensorFlow computed with it."""

    prefix: str
    images: torch.Tensor
    outputs: torch.Tensor


class Case(NamedTuple):
    """A model of TensorFlow, the preset for it and the module."""

    kind: str
    preset: str
    module: str
    scope: str = ""


CASES = [
    Case("ResNet", "resnet", "keras resnet"),
    Case("MobileNet", "mobilenet-v1", "mobilenet-v1", "MobilenetV1"),
    Case("MobileNetV2", "mobilenet-v2", "mobilenet-v2", "MobilenetV2"),
    Case("MobileNetV2", "mobilenet-v2-timm", "mobilenet-v2-timm", "MobilenetV2"),
    Case("MobileNetV3Small", "mobilenet-v3-small", "mobilenet-v3-small", "MobilenetV3"),
    Case("MobileNetV3Small", "mobilenet-v3-small-timm", "mobilenet-v3-small-timm", "MobilenetV3"),
    Case("EfficientNetB0", "efficientnet", "efficientnet b0", "efficientnet-b0"),
    Case("EfficientNetB0", "efficientnet-timm", "efficientnet-timm b0", "efficientnet-b0"),
    Case("VGG16", "vgg16", "vgg16", "vgg_16"),
    Case("VGG16", "vgg16-timm", "vgg16-timm", "vgg_16"),
    Case("DenseNet", "densenet", "densenet", "densenet121"),
]
HEAVY_CASES = [
    Case("InceptionV3", "inception-v3", "inception-v3"),
    Case("MobileNetV3Large", "mobilenet-v3-large", "mobilenet-v3-large", "MobilenetV3"),
    Case("MobileNetV3Large", "mobilenet-v3-large-timm", "mobilenet-v3-large-timm", "MobilenetV3"),
    Case("EfficientNetB1", "efficientnet", "efficientnet b1", "efficientnet-b1"),
    Case("EfficientNetB1", "efficientnet-timm", "efficientnet-timm b1", "efficientnet-b1"),
    Case("VGG19", "vgg19", "vgg19", "vgg_19"),
    Case("VGG19", "vgg19-timm", "vgg19-timm", "vgg_19"),
    Case("InceptionV3", "inception-v3", "inception-v3 timm"),
]
SLIM = [
    Case("save_slim_resnet", "resnet", "slim resnet", "resnet_v1_50"),
    Case("InceptionV3", "inception-v3", "inception-v3 with auxiliary classifier", "InceptionV3"),
]
HEAVY_SLIM = [
    Case("InceptionV3", "inception-v3", "inception-v3 timm with auxiliary classifier", "InceptionV3"),
    Case("save_slim_inception_v4", "inception-v4", "inception-v4", "InceptionV4"),
]
ALL_KERAS = [*CASES, *(pytest.param(each, marks=pytest.mark.heavy) for each in HEAVY_CASES)]
ALL_OTHERS = [
    *(each for each in (*CASES, *SLIM) if each.scope),
    *(pytest.param(each, marks=pytest.mark.heavy) for each in (*HEAVY_CASES, *HEAVY_SLIM) if each.scope),
]
SIZES = {"VGG16": 224, "VGG19": 224, "InceptionV3": 128}


@pytest.fixture(scope="module")
def stored(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Models"]:
    """Models of TensorFlow, each saved when it is first used."""
    yield Models(tensorflow, tmp_path_factory.mktemp("images"))


class Models:
    """Saves each model once."""

    def __init__(self, tensorflow: TensorFlowProcess, folder: Path) -> None:
        self._tensorflow, self._folder = tensorflow, folder
        self._saved: dict[str, Stored] = {}

    def __getitem__(self, kind: str) -> Stored:
        if kind not in self._saved:
            prefix = str(self._folder / kind)
            if kind.startswith("save_slim"):
                told = self._tensorflow.call(f"tensorflow_images.{kind}", prefix, 96)
            else:
                told = self._tensorflow.call("tensorflow_images.save_keras", kind, prefix, SIZES.get(kind, 64))
            self._saved[kind] = Stored(prefix, tensor(told["in"]).permute(0, 3, 1, 2), tensor(told["out"]))
        return self._saved[kind]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("case", ALL_KERAS, ids=lambda case: case.module)
def test_keras_applications(stored: Models, case: Case, tmp_path: Path) -> None:
    """Keras's names and objects are loaded strictly, the outputs are equal, and the names are restored."""
    model = MODELS[case.module]()
    saved = stored[case.kind]
    tfckpt.load_model(model, f"{saved.prefix}.names", mapper=tfckpt.KeyMapper.preset(case.preset))
    _check_outputs(model, saved)
    by_objects = MODELS[case.module]()
    tfckpt.load_model(by_objects, f"{saved.prefix}.objects", mapper=tfckpt.KeyMapper.preset(case.preset))
    assert _equal(by_objects.state_dict(), model.state_dict())
    back = tfckpt.save_model(model, tmp_path / "back", mapper=tfckpt.KeyMapper.preset(case.preset, scope=""))
    wanted = {
        name for name, _ in tfckpt.list_variables(f"{saved.prefix}.names") if not name.startswith("normalization/")
    }
    _check_restored(back, f"{saved.prefix}.names", {name: name for name in wanted})


@pytest.mark.thinned(2)
@pytest.mark.parametrize("case", ALL_OTHERS, ids=lambda case: case.module)
def test_slim_and_tpu(stored: Models, case: Case, tmp_path: Path) -> None:
    """The names of TF-slim and tensorflow/tpu are loaded strictly, with averages where there are any, and restored.

    Slots, steps, means of images and, of Inception v4, the auxiliary classifier are ignored.
    """
    model = MODELS[case.module]()
    saved = stored[case.kind]
    path = f"{saved.prefix}.others"
    report = tfckpt.load_model(model, path, mapper=tfckpt.KeyMapper.preset(case.preset), ema="prefer")
    averaged = {name for name, _ in tfckpt.list_variables(path) if name.endswith("/ExponentialMovingAverage")}
    assert bool(averaged) == case.kind.startswith("EfficientNet")
    assert len(report.averaged) == len(averaged)
    _check_outputs(model, saved)
    mapper = tfckpt.KeyMapper.preset(case.preset, scope=case.scope)
    back = tfckpt.save_model(model, tmp_path / "back", mapper=mapper)
    weights = [name for name in report.sources.values() if not name.endswith("/ExponentialMovingAverage")]
    average = "/ExponentialMovingAverage"
    pairs = {name: name for name in weights} | {name.removesuffix(average): name for name in averaged}
    assert len(pairs) == len(report.sources)
    _check_restored(back, path, pairs)


FINDINGS = {
    "resnet50": ("resnet", {"batch_norm_epsilon", "same_padding_stride", "same_padding_pool"}),
    "mobilenet_v2": ("mobilenet-v2", {"batch_norm_epsilon", "same_padding_stride"}),
    "mobilenet_v3_small": ("mobilenet-v3-small", {"same_padding_stride", "hard_sigmoid_form"}),
    "efficientnet_b0": ("efficientnet", {"batch_norm_epsilon", "same_padding_stride"}),
    "timm/mobilenetv1_100": ("mobilenet-v1", {"batch_norm_epsilon", "same_padding_stride"}),
    "timm/mobilenetv2_100": ("mobilenet-v2-timm", {"batch_norm_epsilon", "same_padding_stride"}),
    "timm/tf_mobilenetv3_small_100": ("mobilenet-v3-small-timm", {"hard_sigmoid_form"}),
    "timm/tf_efficientnet_b0": ("efficientnet-timm", set()),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_what_weights_do_not_tell(name: str, tmp_path: Path) -> None:
    """The report names the settings of the libraries' modules that are not TensorFlow's."""
    library, _, model_name = name.rpartition("/")
    models = family(library or "torchvision")
    model = models.create_model(model_name) if library else getattr(models.models, model_name)()
    preset, findings = FINDINGS[name]
    scope = "resnet_v1_50" if preset == "resnet" else ""
    path = tfckpt.save_model(model, tmp_path / "net", mapper=tfckpt.KeyMapper.preset(preset, scope=scope))
    report = tfckpt.load_model(model, path, mapper=tfckpt.KeyMapper.preset(preset))
    assert {finding.name for finding in report.semantics} == findings


def _check_outputs(model: torch.nn.Module, saved: Stored) -> None:
    model.eval()
    averages = WithoutPaddingInAverages() if "Inception" in type(model).__name__ else nullcontext()
    with torch.no_grad(), averages:
        outputs = model(saved.images)
    outputs = getattr(outputs, "logits", outputs)
    largest = saved.outputs.abs().max().item()
    assert (saved.outputs[0] - saved.outputs[1]).abs().max().item() > 1e-2 * largest, "the images make no difference"
    torch.testing.assert_close(outputs, saved.outputs, rtol=1e-4, atol=1e-4 * max(1.0, largest))


def _check_restored(back: str, path: str, pairs: Mapping[str, str]) -> None:
    """Check that each variable of `back` has the bytes of its pair in `path`."""
    again, original = tfckpt.load_file(back), tfckpt.load_file(path)
    assert pairs and set(pairs) <= set(again)
    assert _equal({name: again[name] for name in pairs}, {name: original[other] for name, other in pairs.items()})


def _equal(first: Mapping[str, object], second: Mapping[str, object]) -> bool:
    assert first.keys() == second.keys()
    return all(
        isinstance(a := first[name], torch.Tensor) and isinstance(b := second[name], torch.Tensor) and torch.equal(a, b)
        for name in first
    )
