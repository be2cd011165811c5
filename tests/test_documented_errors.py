"""What docs/errors.md says about wrong arguments is what the functions raise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import InvalidArgumentError, Saver, load_file, load_model, load_variable, save_file
from torch_tfckpt.save_restore.exit_status import STATUS

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
V = {"v": torch.zeros(1)}
ANY: Any = None
FLOAT: Any = 1.5
INT: Any = 3
STR: Any = "loss"

CALLS: dict[str, tuple[type[Exception], str, Callable[[str], object]]] = {
    "load_file(None)": (InvalidArgumentError, "expected a path", lambda path: load_file(ANY)),
    "save_file(None)": (InvalidArgumentError, "expected a path", lambda path: save_file(V, ANY)),
    "latest_checkpoint(None)": (InvalidArgumentError, "expected a path", lambda path: tfckpt.latest_checkpoint(ANY)),
    "restore(None)": (InvalidArgumentError, "when it is None", lambda path: Saver(V).restore(None)),
    "no such device": (InvalidArgumentError, "nonsense", lambda path: load_file(path, device="nonsense")),
    "a device of a wrong type": (InvalidArgumentError, "is a float", lambda path: load_file(path, device=FLOAT)),
    "a name of a wrong type": (InvalidArgumentError, "must be a str", lambda path: load_variable(path, INT)),
    "no name": (InvalidArgumentError, "must be a str", lambda path: load_variable(path, ANY)),
    "an option of a wrong type": (InvalidArgumentError, "KeepBest", lambda path: Saver(V, keep_best=STR)),
    "a wrong var_list": (TypeError, "Pass a dict", lambda path: Saver(3)),
    "a value that cannot be saved": (TypeError, "Not a variable", lambda path: Saver({"x": object()})),
    "a wrong model": (TypeError, r"Pass a torch\.nn\.Module", lambda path: load_model(ANY, path)),
    "an unknown argument": (TypeError, "unexpected keyword", lambda path: save_file(V, path, **{"device": ANY})),
    "a value of a Checkpoint": (ValueError, "was expecting x", lambda path: tfckpt.Checkpoint(x=object())),
    "a status": (
        AssertionError,
        "could not be restored",
        lambda path: tfckpt.Checkpoint(x=torch.ones(1)).restore(path).assert_consumed(),
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_wrong_arguments(call: str, tmp_path: Path) -> None:
    """Each raises the documented class, with a message that names the finding."""
    kind, text, action = CALLS[call]
    path = save_file(V, tmp_path / "m")
    with pytest.raises(kind, match=text) as raised:
        action(path)
    assert type(raised.value) is kind


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where CUDA is not available")
def test_a_device_without_cuda(tmp_path: Path) -> None:
    """device="cuda" on a machine without CUDA is an invalid argument, and says what to pass."""
    path = save_file(V, tmp_path / "m")
    with pytest.raises(InvalidArgumentError, match=r"CUDA is not available in this process\. Pass device='cpu'"):
        load_file(path, device="cuda")


def test_the_frequent_message_on_several_checkpoints(tmp_path: Path) -> None:
    """The message that the document quotes is the one that is raised."""
    for number in range(3):
        save_file(V, tmp_path / f"m-{number}")
    quoted = "has 3 checkpoints, and no `checkpoint` file"
    assert quoted in DOCUMENT.read_text()
    with pytest.raises(InvalidArgumentError, match=quoted):
        load_file(tmp_path)


def test_the_frequent_messages_on_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home directory, a URL that was a Path, a URL given to convert, and a name that is too long."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = save_file(V, tmp_path / "m")
    calls: dict[str, Callable[[], object]] = {
        "is not expanded in paths. Pass os.path.expanduser(...)": lambda: load_file("~/m"),
        "was a URL, but pathlib has removed one of its slashes": lambda: save_file(V, Path("s3://bucket/m")),
        "is a URL, and convert writes local files only": lambda: tfckpt.convert(path, "s3://bucket/m.npz"),
        "the file name has 275 bytes, and file systems accept at most 255": lambda: save_file(
            V, tmp_path / ("m" * 255)
        ),
    }
    text = DOCUMENT.read_text()
    for message, call in calls.items():
        assert f"| `{message}` |" in text
        with pytest.raises(InvalidArgumentError) as raised:
            call()
        assert message.replace("(...)", "(") in str(raised.value)


def test_the_frequent_messages_on_saves() -> None:
    """They are those of a save by a signal handler, and of a program whose last save failed (status 120)."""
    text = DOCUMENT.read_text()
    assert "was called during Saver.save of the same object in the same thread" in text
    assert "exit status 120" in text and STATUS == 120
    saver: list[Saver] = []

    class Saves(dict[str, torch.Tensor]):
        """A state whose collection saves, as a signal handler may."""

        def state_dict(self) -> dict[str, torch.Tensor]:
            if saver:
                saver[0].save("again")
            return dict(self)

        def load_state_dict(self, state: object) -> None: ...

    state = Saves(V)
    holder = Saver({"state": state})
    saver.append(holder)
    with pytest.raises(tfckpt.FailedPreconditionError, match=r"was called during Saver\.save of the same object"):
        holder.save("x")
