"""Presets for language models: heads of fine-tuned models, what weights do not tell, and models of other sizes."""

from pathlib import Path
from typing import Any

import pytest
import tensorflow_families as families
import torch
from language_models import SIZES, bert_settings, gpt2_settings, language_model, outputs, random_values, t5_settings

import torch_tfckpt as tfckpt

BERT = bert_settings(SIZES, hidden_act="gelu_new")
GPT2 = gpt2_settings(SIZES)


def write(path: Path, shapes: families.Shapes) -> dict[str, torch.Tensor]:
    values = {name: torch.from_numpy(value) for name, value in random_values(shapes).items()}
    tfckpt.save_file(values, path)
    return values


@pytest.mark.parametrize(
    ("family", "kind", "labels", "scope", "head"),
    [
        ("bert", "BertForSequenceClassification", 3, "", "classifier"),
        ("bert", "BertForQuestionAnswering", 2, "cls/squad/", "qa_outputs"),
        ("albert", "AlbertForSequenceClassification", 3, "", "classifier"),
        ("albert", "AlbertForQuestionAnswering", 2, "cls/squad/", "qa_outputs"),
    ],
)
def test_heads_of_fine_tuned_models(family: str, kind: str, labels: int, scope: str, head: str, tmp_path: Path) -> None:
    """run_classifier.py and run_squad.py store the weights of their heads as [labels, hidden]."""
    sizes = SIZES | {"groups": 1}
    shapes = families.bert_shapes(SIZES) if family == "bert" else families.albert_shapes(sizes)
    shapes |= {f"{scope}output_weights": (labels, 15), f"{scope}output_bias": (labels,)}
    values = write(tmp_path / "model.ckpt-1000", shapes)
    more = {"num_labels": labels} | ({"embedding_size": 9, "num_hidden_groups": 1} if family == "albert" else {})
    model = language_model(kind, BERT | more)
    tfckpt.load_model(model, tmp_path / "model.ckpt-1000", mapper=tfckpt.KeyMapper.preset(family))
    assert torch.equal(getattr(model, head).weight, values[f"{scope}output_weights"])
    ids = torch.arange(1, 9)[None]
    hidden = outputs(getattr(model, family), input_ids=ids)
    found = outputs(model, input_ids=ids)
    if head == "classifier":
        expected = hidden.pooler_output @ values["output_weights"].T + values["output_bias"]
        assert torch.allclose(found.logits, expected, atol=1e-5)
    else:
        expected = hidden.last_hidden_state @ values["cls/squad/output_weights"].T + values["cls/squad/output_bias"]
        assert torch.allclose(torch.stack([found.start_logits, found.end_logits], -1), expected, atol=1e-5)


def test_a_new_head_is_missing(tmp_path: Path) -> None:
    """A pretrained model has no classifier: strict loading says so, and strict=False leaves it as it is."""
    write(tmp_path / "bert_model.ckpt", families.bert_shapes(SIZES) | families.bert_head_shapes(SIZES, 15))
    mapper = tfckpt.KeyMapper.preset("bert")
    model = language_model("BertForSequenceClassification", BERT)
    before = model.classifier.weight.clone()
    with pytest.raises(tfckpt.NotFoundError, match=r'Missing.*"classifier\.weight"'):
        tfckpt.load_model(model, tmp_path / "bert_model.ckpt", mapper=mapper)
    report = tfckpt.load_model(model, tmp_path / "bert_model.ckpt", mapper=mapper, strict=False)
    assert report.missing == ["classifier.weight", "classifier.bias"] and torch.equal(model.classifier.weight, before)


@pytest.mark.parametrize(
    ("preset", "shapes", "kind", "configuration", "findings"),
    [
        ("bert", families.bert_shapes(SIZES), "BertModel", BERT, set()),
        ("bert", families.bert_shapes(SIZES), "BertModel", BERT | {"hidden_act": "gelu"}, {"gelu_form"}),
        ("bert", families.bert_shapes(SIZES), "BertModel", BERT | {"layer_norm_eps": 1e-5}, {"layer_norm_epsilon"}),
        ("gpt2", families.gpt2_shapes(SIZES), "GPT2Model", GPT2, set()),
        ("gpt2", families.gpt2_shapes(SIZES), "GPT2Model", GPT2 | {"activation_function": "gelu"}, {"gelu_form"}),
    ],
    ids=["bert", "bert-gelu", "bert-epsilon", "gpt2", "gpt2-gelu"],
)
def test_settings_that_weights_do_not_tell(
    preset: str, shapes: families.Shapes, kind: str, configuration: dict[str, Any], findings: set[str], tmp_path: Path
) -> None:
    """The form of GELU and the epsilon of norms are reported if they differ from the original program's."""
    write(tmp_path / "model.ckpt", shapes)
    model = language_model(kind, configuration)
    report = tfckpt.load_model(model, tmp_path / "model.ckpt", mapper=tfckpt.KeyMapper.preset(preset))
    assert {finding.name for finding in report.semantics} == findings


@pytest.mark.parametrize("configuration", [{"num_hidden_layers": 1}, {"hidden_size": 18}, {"num_hidden_layers": 3}])
def test_a_model_of_another_size(configuration: dict[str, int], tmp_path: Path) -> None:
    """Fewer or more layers, or other widths: nothing is loaded, whatever is optional."""
    write(tmp_path / "model.ckpt", families.bert_shapes(SIZES))
    model = language_model("BertModel", BERT | configuration)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(tfckpt.CheckpointError, match=r"Unexpected|Missing|size mismatch"):
        tfckpt.load_model(model, tmp_path / "model.ckpt", mapper=tfckpt.KeyMapper.preset("bert"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_two_matrices_for_one_tensor(tmp_path: Path) -> None:
    """T5 1.1 stores the matrix of the logits: if the model has tied it to the embeddings, that is reported."""
    write(tmp_path / "model.ckpt", families.t5_shapes(SIZES, newer=True))
    configuration = t5_settings(SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model = language_model("T5ForConditionalGeneration", configuration)
    mapper = tfckpt.KeyMapper.preset("t5-1.1")
    [remark, _] = tfckpt.load_model(model, tmp_path / "model.ckpt", mapper=mapper).remarks
    assert "stored with different values" in remark and "decoder/logits/kernel" in remark


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("scales", [False, True])
def test_scaled_logits(newer: bool, scales: bool, tmp_path: Path) -> None:
    """T5 scales before it multiplies by the embeddings; T5 1.1 has another matrix, and does not scale."""
    write(tmp_path / "model.ckpt", families.t5_shapes(SIZES, newer=newer))
    kind = "gated-gelu" if newer else "relu"
    configuration = t5_settings(SIZES, feed_forward_proj=kind, tie_word_embeddings=scales)
    model = language_model("T5ForConditionalGeneration", configuration)
    if newer:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(37, 15))
    mapper = tfckpt.KeyMapper.preset("t5-1.1" if newer else "t5")
    report = tfckpt.load_model(model, tmp_path / "model.ckpt", mapper=mapper)
    assert [finding.name for finding in report.semantics] == (["scaled_logits"] if newer == scales else [])


def test_targets_without_a_module() -> None:
    """Every preset gives complete names and layouts of axes by itself, as conversion without a module needs."""
    shapes = {
        "bert": families.bert_shapes(SIZES) | families.bert_head_shapes(SIZES, 15),
        "albert": families.albert_shapes(SIZES | {"groups": 1}),
        "gpt2": families.gpt2_shapes(SIZES),
        "t5": families.t5_shapes(SIZES, newer=False),
        "t5-1.1": families.t5_shapes(SIZES, newer=True),
        "bert-tf2": families.garden_shapes(SIZES),
    }
    for preset, stored in shapes.items():
        mapper = tfckpt.KeyMapper.preset(preset)
        for name, shape in stored.items():
            found = mapper.find(name)
            assert found is not None and isinstance(found.target, str), name
            assert found.target.endswith(("weight", "bias")), name
            assert found.layout is not None or len(shape) == 1, name


def test_renamed_cells(tmp_path: Path) -> None:
    """Old names of recurrent cells: the renamed checkpoint fills an LSTM, and keeps its slots."""
    old = {f"rnnlm/MultiRNNCell/Cell{cell}/BasicLSTMCell/Linear/Matrix": torch.randn(6, 12) for cell in range(2)}
    old |= {f"rnnlm/MultiRNNCell/Cell{cell}/BasicLSTMCell/Linear/Bias": torch.randn(12) for cell in range(2)}
    old |= {f"{name}/Adam": value for name, value in old.items()} | {"rnnlm/softmax_b": torch.ones(3)}
    old |= {"rnn/gru_cell/gates/weights": torch.randn(5, 4), "encoder/nas_rnn/recurrent_weights": torch.randn(2, 2)}
    tfckpt.save_file(old, tmp_path / "model.ckpt-1")
    renames = tfckpt.KeyMapper.preset("tf-rnn-1.0").renames(tmp_path / "model.ckpt-1")
    tfckpt.convert(tmp_path / "model.ckpt-1", tmp_path / "new.ckpt-1", to="tf", rename=renames)
    new = tfckpt.load_file(tmp_path / "new.ckpt-1")
    cell = "rnnlm/multi_rnn_cell/cell_1/basic_lstm_cell"
    assert len(new) == len(old) and {f"{cell}/kernel/Adam", f"{cell}/bias", "rnnlm/softmax_b"} < new.keys()
    assert {"rnn/gru_cell/gates/kernel", "encoder/nas_rnn/recurrent_kernel"} < new.keys()
    lstm = torch.nn.LSTM(3, 3, 2)
    tfckpt.load_model(torch.nn.ModuleDict({"rnnlm": lstm}), tmp_path / "new.ckpt-1", strict="shapes")
    kernel = old["rnnlm/MultiRNNCell/Cell1/BasicLSTMCell/Linear/Matrix"]
    assert torch.equal(lstm.state_dict()["weight_ih_l1"][:3], kernel[:3, :3].T)


def test_names_of_presets_are_listed(tmp_path: Path) -> None:
    """An unknown preset is an error with all names."""
    with pytest.raises(tfckpt.NotFoundError, match=r"Closest: \"bert\".*Presets: albert, .*bert-tf2.*tf-rnn-1.0"):
        tfckpt.KeyMapper.preset("bertt")
    with pytest.raises(tfckpt.UnimplementedError, match="does more than rename"):
        path = tfckpt.save_file({"bert/pooler/dense/kernel": torch.ones(2, 2)}, tmp_path / "x.ckpt-1")
        tfckpt.KeyMapper.preset("bert").renames(path)
