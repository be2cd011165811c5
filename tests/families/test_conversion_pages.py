"""The pages "start to end" of docs/conversion: their blocks run on checkpoints with the names of the released ones.

Blocks marked "not run: needs ..." run here. The files that the page downloads are written first, with random values.
Blocks with another reason, such as a download, do not run.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from doc_page import run_page
from torch_families import family

from torch_tfckpt import KeyMapper, load_file, save_file, save_model

PAGES = Path(__file__).resolve().parents[2] / "docs" / "conversion"
NEEDS = re.compile(r"<!-- not run: needs .+ -->\n")
SIZES = {
    "vocab_size": 37, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "max_position_embeddings": 16, "type_vocab_size": 2, "hidden_act": "gelu",
}  # fmt: skip


def write_bert() -> None:
    """The released files, and those of a classifier with three labels that run_classifier.py trained."""
    transformers = family("transformers")
    Path("bert").mkdir()
    Path("bert/bert_config.json").write_text(json.dumps(SIZES))
    config = transformers.BertConfig(**SIZES)
    preset = KeyMapper.preset("bert")
    save_model(transformers.BertForPreTraining(config), "bert/bert_model.ckpt", mapper=preset)
    tuned = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=3))
    save_model(tuned, "output/model.ckpt-343", mapper=preset)


def write_gpt2() -> None:
    """The released checkpoint, with the sizes of the smallest model."""
    transformers = family("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    save_model(model, "models/124M/model.ckpt", mapper=KeyMapper.preset("gpt2"))
    Path("models/124M/checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')


def write_resnet() -> None:
    """ResNet-50 of TF-slim, and of Keras, whose convolutions have biases."""
    models = family("torchvision").models
    weights = without_counts(models.resnet50(num_classes=1000))
    save_model(weights, "resnet_v1_50.ckpt", mapper=KeyMapper.preset("resnet", scope="resnet_v1_50"))
    for module in list(weights.modules()):
        if isinstance(module, torch.nn.Conv2d):
            module.bias = torch.nn.Parameter(torch.zeros(module.out_channels))
    save_model(weights, "resnet50_keras", mapper=KeyMapper.preset("resnet", scope=""))


def without_counts(model: torch.nn.Module) -> torch.nn.Module:
    """Without counts of batches, which TensorFlow does not store."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked = None
    return model


def write_efficientnet() -> None:
    """B0 of tensorflow/tpu, with an average of each variable."""
    model = without_counts(family("timm").create_model("tf_efficientnet_b0"))
    save_model(model, "plain", mapper=KeyMapper.preset("efficientnet-timm", scope="efficientnet-b0"))
    values = load_file("plain")
    averages = {f"{name}/ExponentialMovingAverage": value for name, value in values.items()}
    save_file(values | averages, "efficientnet-b0/model.ckpt")


FILES: dict[str, Callable[[], None]] = {
    "bert": write_bert,
    "from-transformers": write_gpt2,
    "resnet": write_resnet,
    "efficientnet": write_efficientnet,
}


@pytest.mark.filterwarnings("ignore")  # of transformers and timm
@pytest.mark.parametrize("name", FILES)
def test_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page but the downloads, in order; the files of the download are written first."""
    for package in ("transformers", "timm", "torchvision"):
        family(package)
    monkeypatch.chdir(tmp_path)
    FILES[name]()
    text, count = NEEDS.subn("", (PAGES / f"{name}.md").read_text(encoding="utf-8"))
    assert count > 0
    page = tmp_path / "page.md"
    page.write_text(f"```bash\ncp -r {tmp_path}/. . && rm page.md\n```\n\n{text}")
    assert run_page(page) > count
