"""Keys and paths inside stored states follow a rename; everything else stays as it is, byte for byte."""

import json

import pytest

from torch_tfckpt.conversion.state_editing import edit_state, referenced_tensors

STATE = {
    "optimizer": "Adam",
    "param_shapes": {"model/w": [2]},
    "param_groups": [{"lr": 0.1, "betas": {"$tuple": [0.9, 0.999]}, "params": ["model/w"]}],
    "state": {"model/w": {"step": {"$tensor": "k/step"}, "exp_avg": {"$tensor": "k/m"}}},
    "other_state": {"x": "model/w"},
}


def test_an_optimizer() -> None:
    text = json.dumps(STATE).encode()
    assert referenced_tensors(text) == ["k/m", "k/step"]
    found = edit_state(text, {"k/step": "n/step"}, {"model/w": "net/w"})
    expected = (
        json.dumps(STATE).replace("k/step", "n/step").replace("model/w", "net/w").replace('"x": "net', '"x": "model')
    )
    assert found.decode() == expected
    assert edit_state(text, {}, {}) is text


def test_paths_that_begin_with_a_dollar_sign() -> None:
    """Keys of a JSON object that begin with "$" have a meaning of their own."""
    text = json.dumps(STATE).encode()
    there = edit_state(text, {}, {"model/w": "$w"})
    assert json.loads(there)["param_shapes"] == {"$dict": [["$w", [2]]]}
    assert edit_state(there, {}, {"$w": "model/w"}) == text


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff", b"no JSON", b"[" * 100_000, b'{"$tensor": 3}', b'{"$tensor": "k", "more": 1}', b'"k/step"', b" 1"],
)
def test_anything_else_stays(text: bytes) -> None:
    """The string of a PythonState, for example, is not changed."""
    assert edit_state(text, {"k/step": "x", "k": "x"}, {"model/w": "x"}) is text
    assert referenced_tensors(text) == []


@pytest.mark.parametrize(
    "damaged",
    [{"param_groups": 3}, {"param_groups": [3, {"params": 4}]}, {"state": [1]}, {"param_shapes": {"$dict": [1]}}],
)
def test_states_that_cannot_be(damaged: dict[str, object]) -> None:
    """They are left to the reader to refuse."""
    text = json.dumps({**STATE, **damaged}).encode()
    assert b"n/step" in edit_state(text, {"k/step": "n/step"}, {"model/w": "net/w"}) or "state" in damaged


def test_wrapped_optimizers_and_dtypes_are_renamed_too() -> None:
    """The state of an optimizer in an attribute has the same form."""
    state = {"optimizer": "SGD", "param_shapes": {"a": [1]}, "param_dtypes": {"a": "bfloat16"}, "param_groups": [
        {"params": ["a"]}], "state": {"a": {}}}  # fmt: skip
    text = json.dumps({**state, "wrapped": {"base": state}}).encode()
    edited = json.loads(edit_state(text, {}, {"a": "b"}))
    for each in (edited, edited["wrapped"]["base"]):
        assert each["param_dtypes"] == {"b": "bfloat16"} and each["param_groups"] == [{"params": ["b"]}]
        assert each["param_shapes"] == {"b": [1]} and each["state"] == {"b": {}}
