"""The errors and their words: which builtin each is, how a text gets place and mend, how names appear in it."""

import difflib
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    IncompleteSaveError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
    as_data_loss,
    error_context,
    located,
)
from torch_tfckpt.text import and_more, did_you_mean, escaped, first_lines, listed, printable, quoted

BUILTINS = {
    NotFoundError: LookupError,
    DataLossError: ValueError,
    InvalidArgumentError: ValueError,
    UnimplementedError: NotImplementedError,
    FailedPreconditionError: RuntimeError,
    IncompleteSaveError: OSError,
}
# Any text a caller can hand over, halves of surrogate pairs included.
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=40)


@pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)
def test_each_error_is_ours_and_the_builtin_a_python_user_would_catch(kind: type[CheckpointError]) -> None:
    """One `except CheckpointError` catches all of them; `except ValueError` and its like catch what they should."""
    assert issubclass(kind, CheckpointError)
    assert issubclass(kind, BUILTINS[kind])
    assert str(kind("what happened")) == "what happened"


def test_every_kind_of_error_is_looked_at_above() -> None:
    """A new error joins the table of builtins."""
    assert set(CheckpointError.__subclasses__()) == set(BUILTINS)


# Place and mend.


def test_a_context_puts_place_before_and_mend_behind() -> None:
    """Place, finding, mend, with one full stop between finding and mend."""
    with pytest.raises(DataLossError) as raised, error_context("a.index", "Copy it again."):
        raise DataLossError("footer: bad magic.")
    assert str(raised.value) == "a.index: footer: bad magic. Copy it again."


def test_a_context_without_a_mend_leaves_the_end_of_the_text_alone() -> None:
    """Only the place is added."""
    with pytest.raises(NotFoundError) as raised, error_context("ckpt-1"):
        raise NotFoundError('no tensor "x".')
    assert str(raised.value) == 'ckpt-1: no tensor "x".'


def test_contexts_nest_from_the_outside_in() -> None:
    """What the outermost layer knows stands first and last."""
    with (
        pytest.raises(DataLossError) as raised,
        error_context("ckpt-1", "Restore ckpt-0."),
        error_context("block 3", "Copy it again"),
    ):
        raise DataLossError("checksum mismatch")
    assert str(raised.value) == "ckpt-1: block 3: checksum mismatch. Copy it again. Restore ckpt-0."


@pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)
def test_a_context_keeps_the_kind_of_error(kind: type[CheckpointError]) -> None:
    """Whoever catches a NotFoundError below a context catches it above too."""
    with pytest.raises(CheckpointError) as raised, error_context("here"):
        raise kind("finding")
    assert type(raised.value) is kind
    assert str(raised.value) == "here: finding"


def test_a_context_keeps_the_cause() -> None:
    """The error of the system below stays in the traceback, and the unplaced text does not appear there twice."""
    below = OSError(28, "No space left on device")
    with pytest.raises(DataLossError) as raised, error_context("here"):
        raise DataLossError("finding") from below
    assert raised.value.__cause__ is below
    assert raised.value.__suppress_context__


def test_other_errors_pass_a_context_untouched() -> None:
    """Only errors raised on purpose get a place; a bug keeps its own text and identity."""
    bug = ZeroDivisionError("division by zero")
    with pytest.raises(ZeroDivisionError) as raised, error_context("here", "mend"):
        raise bug
    assert raised.value is bug
    assert str(bug) == "division by zero"


def test_a_context_keeps_the_failures_of_an_incomplete_save() -> None:
    """Who placed the error did not lose which rank failed, and how."""
    failures = {3: OSError(28, "No space left on device")}
    with pytest.raises(IncompleteSaveError) as raised, error_context("save of ckpt-12"):
        raise IncompleteSaveError("rank 3 of 8 failed", failures)
    assert str(raised.value) == "save of ckpt-12: rank 3 of 8 failed"
    assert raised.value.failures == failures


def test_located_gives_a_new_error_and_leaves_the_old_one() -> None:
    """The error that was caught can still be shown as it was."""
    error = UnimplementedError("no torch dtype")
    placed = located(error, 'tensor "x"', "The others can be read.")
    assert type(placed) is UnimplementedError
    assert str(placed) == 'tensor "x": no torch dtype. The others can be read.'
    assert str(error) == "no torch dtype"


@pytest.mark.parametrize("kind", [*BUILTINS, ValueError], ids=lambda kind: kind.__name__)
def test_what_a_file_says_is_no_argument(kind: type[Exception]) -> None:
    """Errors of ours, and a ValueError, become one of the file, which begins with the place and knows its cause."""
    error = kind("shape [4], slice 3,2")
    with pytest.raises(DataLossError) as raised, as_data_loss('variable "v"'):
        raise error
    assert str(raised.value) == 'variable "v": shape [4], slice 3,2' and raised.value.__cause__ is error


@pytest.mark.parametrize("kind", [TypeError, KeyError, OSError, KeyboardInterrupt])
def test_our_own_bugs_are_no_data_loss(kind: type[BaseException]) -> None:
    """They come out as they are."""
    with pytest.raises(kind) as raised, as_data_loss("here"):
        raise kind("bug")
    assert not isinstance(raised.value, DataLossError)


# IncompleteSaveError.


def test_failures_are_a_copy_and_empty_where_none_were_given() -> None:
    """`failures` can be read without a check for None, and does not change with the caller's dictionary."""
    assert IncompleteSaveError("m").failures == {}
    given_failures: dict[int, BaseException] = {0: ValueError("x")}
    error = IncompleteSaveError("m", given_failures)
    given_failures.clear()
    assert list(error.failures) == [0]
    assert error.errno is None


@pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)
def test_errors_survive_the_way_from_another_process(kind: type[CheckpointError]) -> None:
    """An exception that cannot be pickled hangs whoever waits for it (STYLE: ranks out of step)."""
    error = kind("what happened")
    if isinstance(error, IncompleteSaveError):
        error.failures[2] = OSError(28, "No space left on device")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  made one line above
    assert type(copy) is kind
    assert str(copy) == "what happened"
    assert [str(failure) for failure in getattr(copy, "failures", {}).values()] == [
        str(failure) for failure in getattr(error, "failures", {}).values()
    ]


# Names and paths in texts.


def test_a_path_that_is_no_utf8_is_printable() -> None:
    """Bytes that are no UTF-8 come out as \\xNN; everything else as it is."""
    assert printable(os.fsdecode(b"model-\xff\xfe/\xc3\xa4")) == "model-\\xff\\xfe/ä"
    assert printable("日本語 a\\b") == "日本語 a\\b"


@given(path=st.binary(max_size=20) | ANY_TEXT)
def test_any_path_is_printable(path: bytes | str) -> None:
    """No name of a file, however odd, makes a second error on the way to the first."""
    printable(path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path).encode("utf-8")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dense/kernel", '"dense/kernel"'),
        ("größe 日本", '"größe 日本"'),
        ("a\nb\tc\x00", '"a\\nb\\tc\\x00"'),
        ("\udcff\u2028", '"\\udcff\\u2028"'),
        ("", '""'),
    ],
)
def test_quoted_names_stay_on_one_line(name: str, text: str) -> None:
    """Control characters are escaped; letters of any script are not."""
    assert quoted(name) == text


def test_a_long_name_is_cut_in_its_middle() -> None:
    """Beginning and end stay, which is where names differ; quoted or not."""
    assert escaped("b" * 5000 + "/Adam\n1") == f"{'b' * 180}...bbb/Adam\\n1"
    assert escaped("0123456789" * 4, limit=30) == "0123456789...0123456789"
    assert quoted("b" * 200) == f'"{"b" * 200}"'
    assert quoted("b" * 5000 + "/Adam_1") == f'"{"b" * 180}...bbb/Adam_1"'


@given(ANY_TEXT.map(lambda text: text * 20))
def test_any_name_can_be_quoted(name: str) -> None:
    """One line of bounded length that any stream takes, whatever the name."""
    text = quoted(name)
    assert text.isprintable()
    text.encode("utf-8")
    assert len(text) <= 2 + 200 * len("\\U00000000")


def test_close_names_are_offered_best_first() -> None:
    """At most three, each quoted."""
    known = ["step", "dense/kernel_1", "dense/bias", "dense_one/kernel", "dense/kernel", "conv"]
    assert did_you_mean("dense/kernle", known) == 'Closest: "dense/kernel", "dense/kernel_1", "dense_one/kernel".'
    assert did_you_mean("step", ["stop"]) == 'Closest: "stop".'


def test_where_nothing_is_close_nothing_is_said() -> None:
    """An empty string can be put at the end of any text."""
    assert did_you_mean("global_step", ["dense/kernel", "x" * 500]) == ""
    assert did_you_mean("global_step", []) == ""


def test_looking_for_close_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred thousand names only those that begin or end alike are compared: nobody waits a minute for a hint."""
    compared: list[str] = []
    system = difflib.get_close_matches

    def watched(word: str, possibilities: list[str], n: int, cutoff: float) -> list[str]:
        compared.extend(possibilities)
        return system(word, possibilities, n=n, cutoff=cutoff)

    monkeypatch.setattr(difflib, "get_close_matches", watched)
    names = [f"block_{number:06}/w" for number in range(100_000)]
    assert did_you_mean("dense/kernle", [*names, "dense/kernel"]) == 'Closest: "dense/kernel".'
    assert did_you_mean("w" * 5000, ["w" * 5000]) == ""  # nor is a name of any length
    assert len(compared) < 2_000


@pytest.mark.parametrize(("count", "more"), [(0, ""), (3, ""), (4, " and 1 more"), (1673, " and 1,670 more")])
def test_a_list_names_the_first_and_counts_the_rest(count: int, more: str) -> None:
    """In one line or in several, with one wording; only the names that are listed are formatted."""
    names = [f"n{index}" for index in range(count)]
    spelled: list[str] = []

    def show(name: str) -> str:
        spelled.append(name)
        return quoted(name)

    assert and_more(count, 3) == more
    assert listed(names, 3, show) == ", ".join(map(quoted, names[:3])) + more
    assert spelled == names[:3]
    assert first_lines(names, 3) == names[:3] + ([more.strip()] if more else [])
