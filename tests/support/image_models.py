"""Image models of torchvision and timm that compute what TensorFlow's compute: padding, epsilon, strides."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode
from torch_families import family

CLASSES = 11


def with_epsilon(model: nn.Module, epsilon: float) -> nn.Module:
    """Set the epsilon of every BatchNorm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = epsilon
    return model


def with_same_padding(model: nn.Module) -> nn.Module:
    """Pad the inputs of every convolution with a stride as TensorFlow's SAME does."""

    def padded(module: Any, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        around: list[int] = []
        for size, kernel, stride in zip(inputs[0].shape[:1:-1], module.kernel_size, module.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            around += [total // 2, total - total // 2]
        return pad(inputs[0], around)

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and max(module.kernel_size) > 1:
            module.padding = (0, 0)
            module.register_forward_pre_hook(padded)
    return model


class WithoutPaddingInAverages(TorchFunctionMode):
    """Average only over the input, as TensorFlow's SAME does; torchvision and timm count the zeros of the padding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, `avg_pool2d` with count_include_pad=False."""
        kwargs = dict(kwargs or {})
        if func is nn.functional.avg_pool2d and len(args) <= 5:  # else the argument is given by position
            kwargs["count_include_pad"] = False
        return func(*args, **kwargs)


def _keras_resnet() -> nn.Module:
    models = family("torchvision").models.resnet
    model: nn.Module = with_epsilon(models.ResNet(models.Bottleneck, [2, 1, 2, 1], num_classes=CLASSES), 1.001e-5)
    for module in list(model.modules()):
        if isinstance(module, models.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
    return model


def _slim_resnet() -> nn.Module:
    timm = family("timm")
    units, channels = [2, 2, 3, 1], (8, 16, 24, 32)
    model = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, units, channels=channels, num_classes=CLASSES)
    for number in (1, 2, 3):
        layer = getattr(model, f"layer{number}")
        layer[-1].conv2.stride = (2, 2)
        layer[-1].downsample = nn.MaxPool2d(1, 2)
    for number in (2, 3, 4):
        first = getattr(model, f"layer{number}")[0]
        first.downsample[0].stride = (1, 1)
        if len(getattr(model, f"layer{number}")) > 1 or number == 4:
            first.conv2.stride = (1, 1)
    model.maxpool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
    return model  # type: ignore[no-any-return]


def _vgg(counts: tuple[int, ...]) -> nn.Module:
    models = family("torchvision").models.vgg
    model = models.VGG(models.make_layers(_vgg_layers(counts)), num_classes=CLASSES, init_weights=False)
    model.classifier[0], model.classifier[3] = nn.Linear(16 * 7 * 7, 64), nn.Linear(64, 64)
    model.classifier[6] = nn.Linear(64, CLASSES)
    return model  # type: ignore[no-any-return]


def _timm_vgg(counts: tuple[int, ...]) -> nn.Module:
    vgg = family("timm").models.vgg
    model = vgg.VGG(_vgg_layers(counts), num_classes=CLASSES)
    model.pre_logits = vgg.ConvMlp(16, 64, act_layer=nn.ReLU)
    model.head.fc = nn.Linear(64, CLASSES)
    return model  # type: ignore[no-any-return]


def _vgg_layers(counts: tuple[int, ...]) -> list[Any]:
    blocks = zip(counts, (4, 8, 8, 12, 16), strict=True)
    return [each for count, channels in blocks for each in [*[channels] * count, "M"]]


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: family("timm").create_model(name, num_classes=CLASSES, **options)


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = getattr(family("torchvision").models, name)(num_classes=CLASSES, **options)
        return with_epsilon(with_same_padding(model), 1e-3)

    return make


def _inception(**options: Any) -> Callable[[], nn.Module]:
    return lambda: family("torchvision").models.inception_v3(num_classes=CLASSES, init_weights=False, **options)


def _timm_inception() -> nn.Module:
    model: Any = _timm("inception_v3", aux_logits=True)()
    model.aux_logits = False  # do not run it: it is for larger images
    return model  # type: ignore[no-any-return]


def _densenet() -> nn.Module:
    return with_epsilon(family("torchvision").models.DenseNet(32, (2, 3, 2, 2), 64, num_classes=CLASSES), 1.001e-5)


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "keras resnet": _keras_resnet,
    "slim resnet": _slim_resnet,
    "mobilenet-v1": _timm("mobilenetv1_100", pad_type="same", bn_eps=1e-3, act_layer=nn.ReLU6),
    "mobilenet-v2": _torchvision("mobilenet_v2", width_mult=0.35),
    "mobilenet-v2-timm": _timm("mobilenetv2_035", pad_type="same", bn_eps=1e-3),
    "mobilenet-v3-small": _torchvision("mobilenet_v3_small"),
    "mobilenet-v3-small-timm": _timm("tf_mobilenetv3_small_100"),
    "mobilenet-v3-large": _torchvision("mobilenet_v3_large"),
    "mobilenet-v3-large-timm": _timm("tf_mobilenetv3_large_100"),
    "efficientnet b0": _torchvision("efficientnet_b0"),
    "efficientnet-timm b0": _timm("tf_efficientnet_b0"),
    "efficientnet b1": _torchvision("efficientnet_b1"),
    "efficientnet-timm b1": _timm("tf_efficientnet_b1"),
    "vgg16": lambda: _vgg((2, 2, 3, 3, 3)),
    "vgg16-timm": lambda: _timm_vgg((2, 2, 3, 3, 3)),
    "vgg19": lambda: _vgg((2, 2, 4, 4, 4)),
    "vgg19-timm": lambda: _timm_vgg((2, 2, 4, 4, 4)),
    "densenet": _densenet,
    "inception-v3": _inception(aux_logits=False),
    "inception-v3 with auxiliary classifier": _inception(),
    "inception-v3 timm": _timm("inception_v3", aux_logits=False),
    "inception-v3 timm with auxiliary classifier": _timm_inception,
    "inception-v4": _timm("inception_v4"),
}
"""Name of a case -> how to make the module."""
