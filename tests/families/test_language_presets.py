"""Presets for language models: checkpoints with the original names fill the classes of transformers, and come back.

The values are random; TensorFlow writes the checkpoints and computes the outputs that are compared.
"""

from pathlib import Path
from typing import Any, NamedTuple

import language_models
import numpy as np
import pytest
import tensorflow_families as families
import torch
from language_models import (
    bert_settings,
    factored_slots,
    gpt2_settings,
    language_model,
    outputs,
    random_values,
    slots_like,
    t5_settings,
)
from tensorflow_process import RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt

SIZES = language_models.SIZES | {"layers": 12, "inner_groups": 2}
GENERATOR = {**SIZES, "layers": 2, "hidden": 10, "heads": 2, "inner": 14}
T5_SIZES = {**SIZES, "heads": 4}
BERT = bert_settings(SIZES, hidden_act="gelu_new")
ALBERT = {**BERT, "embedding_size": 9, "num_hidden_groups": 2, "inner_group_num": 2}
ELECTRA = {**BERT, "embedding_size": 9, "hidden_act": "gelu"}
ELECTRA_GENERATOR = bert_settings(GENERATOR, embedding_size=9, hidden_act="gelu")
GPT2 = gpt2_settings(SIZES)
T5 = t5_settings(T5_SIZES)
T5_NEWER = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
IDS = np.random.default_rng(2).integers(1, 37, (2, 13))


class Case(NamedTuple):
    """A checkpoint, a preset for it, and a class of transformers with the outputs that TensorFlow's model has, too.

    Attributes:
        outputs: Name of an output of the class -> name of an output in tensorflow_families.
        ignored: Beginnings of the names of stored weights that the class does not have.
    """

    preset: str
    kind: str
    configuration: dict[str, Any]
    outputs: dict[str, str]
    ignored: tuple[str, ...] = ()


ORDER, WORDS = "cls/seq_relationship", "cls/predictions"
CASES = [
    Case("bert", "BertForPreTraining", BERT, {"prediction_logits": "words", "seq_relationship_logits": "order"}),
    Case("bert", "BertModel", BERT, {"last_hidden_state": "hidden", "pooler_output": "pooled"}, ("cls/",)),
    Case("bert", "BertForMaskedLM", BERT, {"logits": "words"}, ("bert/pooler", ORDER)),
    Case("bert", "BertForNextSentencePrediction", BERT, {"logits": "order"}, (WORDS,)),
    Case("bert", "BertLMHeadModel", BERT | {"is_decoder": True}, {}, ("bert/pooler", ORDER)),
    Case("albert", "AlbertForPreTraining", ALBERT, {"prediction_logits": "words", "sop_logits": "order"}),
    Case("albert", "AlbertModel", ALBERT, {"last_hidden_state": "hidden", "pooler_output": "pooled"}, ("cls/",)),
    Case("albert", "AlbertForMaskedLM", ALBERT, {"logits": "words"}, ("bert/pooler", ORDER)),
    Case("electra", "ElectraForPreTraining", ELECTRA, {"logits": "logits"}, ("generator",)),
    Case("electra", "ElectraModel", ELECTRA, {"last_hidden_state": "hidden"}, ("generator", "discriminator")),
    Case("electra-generator", "ElectraForMaskedLM", ELECTRA_GENERATOR, {"logits": "logits"},
         ("electra/encoder", "electra/embeddings_project", "discriminator")),
    Case("gpt2", "GPT2LMHeadModel", GPT2, {"logits": "logits"}),
    Case("gpt2", "GPT2Model", GPT2, {"last_hidden_state": "hidden"}),
    Case("t5", "T5ForConditionalGeneration", T5, {"logits": "logits", "encoder_last_hidden_state": "hidden"}),
    Case("t5-encoder", "T5EncoderModel", T5, {"last_hidden_state": "hidden"}, ("decoder",)),
    Case("t5-1.1", "T5ForConditionalGeneration", T5_NEWER, {"logits": "logits"}),
    Case("t5-1.1", "MT5ForConditionalGeneration", T5_NEWER, {"logits": "logits"}),
    Case("t5-1.1", "T5Model", T5_NEWER, {"encoder_last_hidden_state": "hidden"}, ("decoder/logits",)),
]  # fmt: skip


def stored(case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The weights of a checkpoint, and what an optimizer stores beside them."""
    family = case.preset
    step = {"global_step": np.asarray(7)}
    if family == "bert":
        shapes = families.bert_shapes(SIZES) | families.bert_head_shapes(SIZES, SIZES["hidden"])
    elif family == "albert":
        shapes = families.albert_shapes(SIZES)
    elif family.startswith("electra"):
        shapes = families.electra_shapes(SIZES, GENERATOR)
    elif family == "gpt2":
        weights = random_values(families.gpt2_shapes(SIZES))
        powers = {name: np.asarray(0.9, np.float32) for name in ("beta1_power", "beta2_power")}
        return weights, slots_like(weights, ["/Adam", "/Adam_1"]) | powers
    else:
        weights = random_values(families.t5_shapes(T5_SIZES, newer=family == "t5-1.1"))
        return weights, factored_slots(weights) | step
    weights = random_values(shapes)
    return weights, slots_like(weights, ["/adam_m", "/adam_v"]) | step


def build(case: Case) -> Any:
    model = language_model(case.kind, case.configuration)
    if case.configuration is T5_NEWER and hasattr(model, "lm_head"):
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def inputs(case: Case) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(IDS)
    has_decoder = case.preset.startswith("t5") and case.kind != "T5EncoderModel"
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if has_decoder else {})


@pytest.mark.parametrize("case", CASES, ids=[f"{case.preset}-{case.kind}" for case in CASES])
def test_presets_both_ways(case: Case, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A strict load gives TensorFlow's outputs, reports the parts that were not loaded, and is undone by save_model."""
    weights, others = stored(case)
    sizes = T5_SIZES if case.preset.startswith("t5") else GENERATOR if case.preset.endswith("generator") else SIZES
    tensorflow.call("save_v2", str(tmp_path / "model.ckpt"), weights | others)
    mapper = tfckpt.KeyMapper.preset(case.preset)
    model = build(case)
    accept = ("gelu_form",) if case.configuration.get("hidden_act") == "gelu" else ()
    report = tfckpt.load_model(model, tmp_path / "model.ckpt", mapper=mapper, accept=accept, strict="semantics")

    family = "t5" if case.preset.startswith("t5") else case.preset.replace("-", "_")
    wanted = tensorflow.call("tensorflow_families.run", family, weights, sizes, IDS)
    found = outputs(model, **inputs(case))
    for name, other in case.outputs.items():
        np.testing.assert_allclose(found[name].numpy(), wanted[other], rtol=0, atol=1e-4)

    left = [name for name in weights if case.ignored and name.startswith(case.ignored)]
    assert set(report.ignored) == {*left, *others}
    assert report.unused_rules == [] and all(remark.startswith("not loaded") for remark in report.remarks)
    assert bool(report.remarks) == bool(left) and all(slot not in str(report.remarks) for slot in others)

    tfckpt.save_model(model, tmp_path / "back", mapper=mapper)
    back = tensorflow.call("restore_all", str(tmp_path / "back"))
    assert back.keys() - {".shared"} == weights.keys() - set(left)
    assert all(RawTensor.of(weights[name]) == value for name, value in back.items() if name != ".shared")


def garden(tensorflow: TensorFlowProcess, prefix: Path, *, as_layer: bool) -> dict[str, np.ndarray]:
    """Write a checkpoint of TensorFlow's model garden; return the values by full name."""
    values = random_values(families.garden_shapes(SIZES))
    if as_layer:
        values = {name: value for name, value in values.items() if "logits" not in name}
    paths = {name: families.garden_path(name, SIZES["layers"], as_layer=as_layer) for name in values}
    # A program of another structure names its variables differently.
    named = {f"{'net/' if as_layer else ''}{name}": value for name, value in values.items()}
    paths = dict(zip(named, paths.values(), strict=True))
    tensorflow.call("tensorflow_families.write_objects", str(prefix), named, paths)
    return values


@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertModel"])
@pytest.mark.parametrize("as_layer", [False, True])
def test_model_garden(as_layer: bool, kind: str, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Object-based checkpoints of BERT, by full names and by keys; weights have an axis for the heads."""
    if as_layer and kind == "BertForPreTraining":
        kind = "BertForMaskedLM"
    values = garden(tensorflow, tmp_path / "model.ckpt", as_layer=as_layer)
    model = language_model(kind, BERT)
    mapper = tfckpt.KeyMapper.preset("bert-tf2")
    report = tfckpt.load_model(model, tmp_path / "model.ckpt", mapper=mapper, strict="semantics")
    assert report.unused_rules == [] and all(each.startswith("not loaded") for each in report.remarks)

    logits = {
        "predictions/transform/logits/kernel": np.zeros((15, 2)),
        "predictions/transform/logits/bias": np.zeros(2),
    }
    logits = {name: value.astype(np.float32) for name, value in logits.items()}
    wanted = tensorflow.call("tensorflow_families.run", "garden", logits | values, SIZES, IDS)
    found = outputs(model, input_ids=torch.from_numpy(IDS))
    names = {"last_hidden_state": "hidden", "pooler_output": "pooled"} if kind == "BertModel" else {"logits": "words"}
    if kind == "BertForPreTraining":
        names = {"prediction_logits": "words", "seq_relationship_logits": "order"}
    for name, other in names.items():
        np.testing.assert_allclose(found[name].numpy(), wanted[other], rtol=0, atol=1e-4)

    tfckpt.save_model(model, tmp_path / "back", mapper=mapper)
    back = tensorflow.call("restore_all", str(tmp_path / "back"))
    back.pop(".shared", None)
    heads = ("masked_lm", "classification") if kind == "BertModel" else ("encoder/_pooler_layer",)
    left = [key for key in report.ignored if key.startswith(heads) and "OPTIMIZER_SLOT" not in key]
    assert len(back) == len(values) - len(left)
    same = {name: RawTensor.of(value) for name, value in values.items()}
    assert all((same[name].shape, same[name].data) == (value.shape, value.data) for name, value in back.items())


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_keras_hub(kind: str, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A checkpoint of a Keras model with the structure of KerasHub's BertBackbone. It has no head."""
    wanted = tensorflow.call("tensorflow_families.keras_hub_bert", str(tmp_path / "ckpt"), SIZES, IDS)
    model = language_model(kind, BERT)
    mapper = tfckpt.KeyMapper.preset("bert-keras-hub")
    report = tfckpt.load_model(model, tmp_path / "ckpt", mapper=mapper, strict=kind == "BertModel")
    assert all(name.startswith("cls.") for name in report.missing)
    base = model if kind == "BertModel" else model.bert
    found = outputs(base, input_ids=torch.from_numpy(IDS))
    np.testing.assert_allclose(found.last_hidden_state.numpy(), wanted["hidden"], rtol=0, atol=1e-4)
    if kind == "BertModel":
        np.testing.assert_allclose(found.pooler_output.numpy(), wanted["pooled"], rtol=0, atol=1e-4)
        tfckpt.save_model(model, tmp_path / "back", mapper=mapper)
        back = tensorflow.call("restore_all", str(tmp_path / "back"))
        stored_names = wanted.keys() - {"hidden", "pooled"}
        assert back.keys() == stored_names
        assert all(back[name].shape == wanted[name].shape for name in stored_names)
        assert all(back[name].data == wanted[name].tobytes() for name in stored_names)


@pytest.mark.parametrize("release", ["2.0", "2.3"])
def test_names_of_other_releases(release: str, tmp_path: Path) -> None:
    """Aliases: earlier full names give the same model."""
    values = {name: value for name, value in random_values(families.garden_shapes(SIZES)).items() if "cls/" not in name}
    values = {name: value for name, value in values.items() if "logits" not in name}
    older = {
        "word_embeddings/embeddings": "bert_model/word_embeddings/embeddings",
        "position_embedding/embeddings": "bert_model/embedding_postprocessor/position_embeddings",
        "type_embeddings/embeddings": "bert_model/embedding_postprocessor/type_embeddings",
    }

    def renamed(name: str) -> str:
        name = name.replace("self_attention/attention_output", "self_attention_output")
        if release == "2.3":
            return name.replace("pooler_transform", "next_sentence/pooler_dense")
        name = name.replace("embeddings/layer_norm", "embedding_postprocessor/layer_norm")
        return older.get(name, "bert_model/" + name.replace("transformer/", "encoder/"))

    tfckpt.save_file({renamed(name): torch.from_numpy(value) for name, value in values.items()}, tmp_path / "other")
    tfckpt.save_file({name: torch.from_numpy(value) for name, value in values.items()}, tmp_path / "newest")
    mapper = tfckpt.KeyMapper.preset("bert-tf2")
    states = []
    for name in ("other", "newest"):
        model = language_model("BertModel", BERT)
        assert tfckpt.load_model(model, tmp_path / name, mapper=mapper).unused_rules == []
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
