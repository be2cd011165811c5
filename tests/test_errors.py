"""Errors and their messages: the builtin each one derives from, place and hint, how names are shown."""

import difflib
import errno
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
# Any string a caller can pass, including lone surrogates.
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=40)


@pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)
def test_each_error_is_ours_and_the_builtin_a_python_user_would_catch(kind: type[CheckpointError]) -> None:
    """`except CheckpointError` catches all of them, and `except ValueError` and the like catch the right ones."""
    assert issubclass(kind, CheckpointError)
    assert issubclass(kind, BUILTINS[kind])
    assert str(kind("what happened")) == "what happened"


def test_the_table_of_builtins_is_complete() -> None:
    """A new error class must be added to the table."""
    assert set(CheckpointError.__subclasses__()) == set(BUILTINS)


# Place and hint.


def test_error_context_adds_place_before_and_hint_after() -> None:
    """Place, finding and hint, with one full stop between finding and hint."""
    with pytest.raises(DataLossError) as raised, error_context("a.index", "Copy it again."):
        raise DataLossError("footer: bad magic.")
    assert str(raised.value) == "a.index: footer: bad magic. Copy it again."


def test_error_context_without_a_hint_keeps_the_end_of_the_message() -> None:
    """Only the place is added."""
    with pytest.raises(NotFoundError) as raised, error_context("ckpt-1"):
        raise NotFoundError('no tensor "x".')
    assert str(raised.value) == 'ckpt-1: no tensor "x".'


def test_nested_contexts_add_the_outermost_place_first() -> None:
    """The outermost layer's place comes first and its hint comes last."""
    with (
        pytest.raises(DataLossError) as raised,
        error_context("ckpt-1", "Restore ckpt-0."),
        error_context("block 3", "Copy it again"),
    ):
        raise DataLossError("checksum mismatch")
    assert str(raised.value) == "ckpt-1: block 3: checksum mismatch. Copy it again. Restore ckpt-0."


@pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)
def test_error_context_keeps_the_error_class(kind: type[CheckpointError]) -> None:
    """A NotFoundError raised inside a context is still a NotFoundError outside it."""
    with pytest.raises(CheckpointError) as raised, error_context("here"):
        raise kind("finding")
    assert type(raised.value) is kind
    assert str(raised.value) == "here: finding"


def test_a_context_keeps_the_cause() -> None:
    """The underlying system error stays in the traceback, and the original message is not shown twice."""
    below = OSError(28, "No space left on device")
    with pytest.raises(DataLossError) as raised, error_context("here"):
        raise DataLossError("finding") from below
    assert raised.value.__cause__ is below
    assert raised.value.__suppress_context__


def test_other_errors_pass_a_context_untouched() -> None:
    """Only errors raised deliberately get a place; a bug keeps its message and identity."""
    bug = ZeroDivisionError("division by zero")
    with pytest.raises(ZeroDivisionError) as raised, error_context("here", "hint"):
        raise bug
    assert raised.value is bug
    assert str(bug) == "division by zero"


def test_a_context_keeps_the_failures_of_an_incomplete_save() -> None:
    """Adding a place does not lose which rank failed, and how."""
    failures = {3: OSError(28, "No space left on device")}
    with pytest.raises(IncompleteSaveError) as raised, error_context("save of ckpt-12"):
        raise IncompleteSaveError("rank 3 of 8 failed", failures)
    assert str(raised.value) == "save of ckpt-12: rank 3 of 8 failed"
    assert raised.value.failures == failures


def test_located_returns_a_new_error_and_keeps_the_old_one() -> None:
    """The original error keeps its message."""
    error = UnimplementedError("no torch dtype")
    placed = located(error, 'tensor "x"', "The others can be read.")
    assert type(placed) is UnimplementedError
    assert str(placed) == 'tensor "x": no torch dtype. The others can be read.'
    assert str(error) == "no torch dtype"


@pytest.mark.parametrize("kind", [*BUILTINS, ValueError], ids=lambda kind: kind.__name__)
def test_as_data_loss_converts_argument_errors(kind: type[Exception]) -> None:
    """Our errors and ValueError become a DataLossError that starts with the place and keeps the cause."""
    error = kind("shape [4], slice 3,2")
    with pytest.raises(DataLossError) as raised, as_data_loss('variable "v"'):
        raise error
    assert str(raised.value) == 'variable "v": shape [4], slice 3,2' and raised.value.__cause__ is error


@pytest.mark.parametrize("kind", [TypeError, KeyError, OSError, KeyboardInterrupt])
def test_as_data_loss_leaves_other_exceptions_alone(kind: type[BaseException]) -> None:
    """Exceptions that indicate a bug or an interrupt are not converted."""
    with pytest.raises(kind) as raised, as_data_loss("here"):
        raise kind("bug")
    assert not isinstance(raised.value, DataLossError)


# IncompleteSaveError.


def test_failures_are_copied_and_default_to_empty() -> None:
    """`failures` never needs a check for None, and does not change with the caller's dictionary."""
    assert IncompleteSaveError("m").failures == {}
    given_failures: dict[int, BaseException] = {0: ValueError("x")}
    error = IncompleteSaveError("m", given_failures)
    given_failures.clear()
    assert list(error.failures) == [0]
    assert error.errno is None


@pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)
def test_errors_can_be_pickled(kind: type[CheckpointError]) -> None:
    """An exception that cannot be pickled would hang the process that waits for it."""
    error = kind("what happened")
    if isinstance(error, IncompleteSaveError):
        error.failures[2] = OSError(28, "No space left on device")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  made one line above
    assert type(copy) is kind
    assert str(copy) == "what happened"
    assert [str(failure) for failure in getattr(copy, "failures", {}).values()] == [
        str(failure) for failure in getattr(error, "failures", {}).values()
    ]


# Names and paths in messages.


def test_a_path_that_is_not_utf8_is_printable() -> None:
    """Bytes that are not UTF-8 become \\xNN; everything else is unchanged."""
    assert printable(os.fsdecode(b"model-\xff\xfe/\xc3\xa4")) == "model-\\xff\\xfe/ä"
    assert printable("日本語 a\\b") == "日本語 a\\b"


@given(path=st.binary(max_size=20) | ANY_TEXT)
def test_any_path_is_printable(path: bytes | str) -> None:
    """No file name, however odd, causes a second error while the first is reported."""
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
    """Beginning and end, where names usually differ, are kept, quoted or not."""
    assert escaped("b" * 5000 + "/Adam\n1") == f"{'b' * 180}...bbb/Adam\\n1"
    assert escaped("0123456789" * 4, limit=30) == "0123456789...0123456789"
    assert quoted("b" * 200) == f'"{"b" * 200}"'
    assert quoted("b" * 5000 + "/Adam_1") == f'"{"b" * 180}...bbb/Adam_1"'


@given(ANY_TEXT.map(lambda text: text * 20))
def test_any_name_can_be_quoted(name: str) -> None:
    """The result is one line of bounded length that any stream can encode."""
    text = quoted(name)
    assert text.isprintable()
    text.encode("utf-8")
    assert len(text) <= 2 + 200 * len("\\U00000000")


def test_close_names_are_listed_best_first() -> None:
    """At most three, each quoted."""
    known = ["step", "dense/kernel_1", "dense/bias", "dense_one/kernel", "dense/kernel", "conv"]
    assert did_you_mean("dense/kernle", known) == 'Closest: "dense/kernel", "dense/kernel_1", "dense_one/kernel".'
    assert did_you_mean("step", ["stop"]) == 'Closest: "stop".'


def test_no_close_name_yields_an_empty_string() -> None:
    """The result can be appended to any message."""
    assert did_you_mean("global_step", ["dense/kernel", "x" * 500]) == ""
    assert did_you_mean("global_step", []) == ""


def test_the_search_for_close_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100,000 names only those with a similar beginning or end are compared, so a hint is never slow."""
    compared: list[str] = []
    system = difflib.get_close_matches

    def watched(word: str, possibilities: list[str], n: int, cutoff: float) -> list[str]:
        compared.extend(possibilities)
        return system(word, possibilities, n=n, cutoff=cutoff)

    monkeypatch.setattr(difflib, "get_close_matches", watched)
    names = [f"block_{number:06}/w" for number in range(100_000)]
    assert did_you_mean("dense/kernle", [*names, "dense/kernel"]) == 'Closest: "dense/kernel".'
    assert did_you_mean("w" * 5000, ["w" * 5000]) == ""  # nor is a name of arbitrary length
    assert len(compared) < 2_000


@pytest.mark.parametrize(("count", "more"), [(0, ""), (3, ""), (4, " and 1 more"), (1673, " and 1,670 more")])
def test_a_cut_list_shows_the_first_names_and_counts_the_rest(count: int, more: str) -> None:
    """On one line or several, in the same wording; only the names shown are formatted."""
    names = [f"n{index}" for index in range(count)]
    spelled: list[str] = []

    def show(name: str) -> str:
        spelled.append(name)
        return quoted(name)

    assert and_more(count, 3) == more
    assert listed(names, 3, show) == ", ".join(map(quoted, names[:3])) + more
    assert spelled == names[:3]
    assert first_lines(names, 3) == names[:3] + ([more.strip()] if more else [])


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({}, None),
        ({0: OSError(errno.ENOSPC, "full"), 3: OSError(errno.ENOSPC, "full")}, errno.ENOSPC),
        ({0: OSError(errno.ENOSPC, "full"), 3: OSError(errno.EACCES, "denied")}, None),
        ({0: ValueError("other")}, None),
    ],
)
def test_the_error_number_of_a_failed_save(failures: dict[int, BaseException], expected: int | None) -> None:
    """As of any OSError, if the failures agree: programs ask for ENOSPC."""
    assert IncompleteSaveError("m", failures).errno == expected
