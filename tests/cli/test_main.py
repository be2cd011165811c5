"""The command line as a whole: exit statuses, streams, error messages."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.cli import convert as cli_convert
from torch_tfckpt.cli.main import main

VARIABLE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
VERBS = ("ls", "show", "verify", "convert", "diff", "merge")


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return tfckpt.save_file({"a": torch.zeros(2), "b": torch.ones(3)}, tmp_path / "t")


def test_help_names_every_verb_and_tensorflows_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"    {verb} " in text for verb in VERBS)
    assert "--file_name F --tensor_name N     tfckpt show F N" in text
    for verb in VERBS:
        assert main([verb, "--help"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["ls"],
        ["ls", "x", "--sort", "colour"],
        ["diff", "a"],
        ["diff", "a", "b", "--atol", "much"],
        ["merge"],
        ["convert", "a", "b.pt", "--to", "zip"],
    ],
)
def test_wrong_use_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The error is on stderr, and stdout is empty."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "usage: tfckpt" in captured.err


def test_only_what_is_missing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """The patterns of ls are optional, so the usage error does not name them."""
    assert main(["ls"]) == 2
    assert capsys.readouterr().err.endswith("error: the following arguments are required: PATH\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["convert", "{t}", "{d}/out"], "the name does not determine the format"),
        (["convert", "{t}", "{d}/out.pt", "--dtype", "int8"], "not a floating-point type"),
        (["convert", "{t}", "{d}/out.pt", "--rename", "[ab]", "c"], 'tensors "a" and "b" would both be called "c"'),
        (["convert", "{t}", "{d}/out.pt", "--include", "("], 'pattern "("'),
        (["convert", "{t}", "{d}/out.pt", "--include", "absent"], 'include "absent" matches none of 2 tensors'),
        (["diff", "{t}", "{t}", "--include", "absent"], 'include "absent" matches none of 2 tensors'),
        (["diff", "{t}", "{t}", "--atol", "-1"], "the tolerance must be 0 or more"),
        (["ls", ""], "is not a path"),
    ],
)
def test_invalid_arguments_are_status_2(
    prefix: str, tmp_path: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(t=prefix, d=tmp_path) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("tfckpt: ") and text in captured.err


@pytest.mark.parametrize("verb", ["ls", "show", "verify"])
def test_unreadable_files_are_status_1(
    golden: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear message, no traceback."""
    (tmp_path / "cut.index").write_bytes((golden / "tensorflow/scalar/scalar.index").read_bytes()[:-3])
    (tmp_path / "model.ckpt-999.index").touch()
    for path, text in (("cut", "cut.index"), ("model.ckpt-1000", "There are model.ckpt-999"), ("no/where", "no/where")):
        assert main([verb, str(tmp_path / path)]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("tfckpt: ") and text in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize("verb", ["ls", "show", "verify"])
def test_a_mistyped_path_gives_a_plain_message(prefix: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message lacks TensorFlow's words, which the library's error contains for programs."""
    assert main([verb, f"{prefix}x"]) == 1
    assert capsys.readouterr().err == (
        f"tfckpt: {prefix}x: no such file or directory, and there is no tx.index. There are t.\n"
    )
    with pytest.raises(tfckpt.NotFoundError, match="Unsuccessful TensorSliceReader constructor: Failed to find any"):
        tfckpt.load_checkpoint(f"{prefix}x")


def test_system_errors_are_status_1(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", prefix, str(tmp_path / "a" / "b" / "c.pt")]) == 1
    assert capsys.readouterr().err.startswith("tfckpt: No such file or directory: ")


def test_interrupt_is_status_130(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_convert, "convert", interrupted)
    assert main(["convert", prefix, str(tmp_path / "m.pt")]) == 130
    assert capsys.readouterr().err == "tfckpt: interrupted; nothing was left behind\n"


def start(
    *arguments: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE, columns: int = 80
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "torch_tfckpt", *arguments]
    environment = {**os.environ, "LC_ALL": "C", "TERM": "xterm", "COLUMNS": str(columns)}
    return subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)


def test_closed_pipe_prints_no_traceback(golden: Path) -> None:
    """`tfckpt ls X | head -1` ends without a message."""
    process = start("ls", str(golden / "digits-transformer"))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_print_no_traceback(prefix: str, redirection: str) -> None:
    """The streams are closed, as in programs started by a daemon."""
    command = f'{sys.executable} -m torch_tfckpt ls "$0" {redirection}'
    run = subprocess.run(["sh", "-c", command, prefix], capture_output=True, timeout=60)
    assert run.returncode == 0 and run.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "bar", "last"),
    [
        (["verify"], b"verify", "no damage found: 2 tensors"),
        (["show", "--stats"], b"read", "b       1    1     1    0    0         0"),
    ],
)
def test_progress_is_not_mixed_with_results(prefix: str, arguments: list[str], bar: bytes, last: str) -> None:
    """stdout contains only results, even if stderr is a terminal that shows a progress bar."""
    master, slave = pty.openpty()
    with start(*arguments, prefix, stderr=slave) as process:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and out.decode().splitlines()[-1] == last and b"\x1b" not in out
    assert bar in os.read(master, 65536)
    os.close(slave)
    os.close(master)


def test_table_at_a_terminal(tmp_path: Path) -> None:
    """Names with brackets are not treated as markup."""
    prefix = tfckpt.save_file({"a[bold]": torch.zeros(2)}, tmp_path / "t")
    master, slave = pty.openpty()
    with start("ls", prefix, stdout=slave) as process:
        process.communicate(timeout=60)
        assert process.returncode == 0
    text = os.read(master, 4096).decode()
    assert "\x1b[1mname" in text and "a[bold]" in text and "1 tensor, 2 elements, 8 B" in text
    os.close(slave)
    os.close(master)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_long_names_are_wrapped_after_separators(tmp_path: Path, columns: int) -> None:
    """In a narrow terminal a name continues in the next line, never broken inside a word."""
    name = "encoder/layer_with_weights-12/attention/self/query/kernel.first_moment"
    prefix = tfckpt.save_file({name: torch.zeros(2)}, tmp_path / "t")
    master, slave = pty.openpty()
    with start("ls", prefix, stdout=slave, columns=columns) as process:
        process.communicate(timeout=60)
    shown = [line.split("  ")[0].strip() for line in os.read(master, 8192).decode().splitlines()[1:-1]]
    os.close(slave)
    os.close(master)
    assert "".join(shown) == name
    assert all(line.endswith(("/", ".", "_")) for line in shown[:-1])
    assert len(shown) == 1 or columns < 120


def test_keys_of_objects_are_short_at_a_terminal(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without their suffix they fit on one line; in a pipe they stay whole."""
    prefix = str(golden / "tensorflow" / "object" / "object")
    with tfckpt.load_checkpoint(prefix) as reader:
        keys = [key for key in reader.keys() if key.endswith(VARIABLE_SUFFIX)]
    master, slave = pty.openpty()
    with start("ls", prefix, stdout=slave, columns=100) as process:
        _, err = process.communicate(timeout=60)
    first_words = {line.split(" ")[0] for line in os.read(master, 65536).decode().splitlines()}
    os.close(slave)
    os.close(master)
    assert keys and {key.removesuffix(VARIABLE_SUFFIX) for key in keys} <= first_words
    assert err.decode().splitlines() == [
        f"object-based: `tfckpt ls --tree {prefix}` shows the objects",
        f"names are shown without {VARIABLE_SUFFIX}; all commands accept short names",
    ]
    assert main(["ls", prefix]) == 0
    captured = capsys.readouterr()
    assert set(keys) <= {line.split(" ")[0] for line in captured.out.splitlines()}
    assert captured.err == f"object-based: `tfckpt ls --tree {prefix}` shows the objects\n"


@pytest.mark.parametrize("columns", [58, 70])
def test_notes_are_wrapped_before_names(columns: int) -> None:
    """A long note leaves a long name whole, and is broken after separators as well."""
    name, note = "model/layer_with_weights-0/kernel", 'variable "sequential/dense_0/kernel"'
    master, slave = pty.openpty()
    table = f"['name', 'size', 'note'], [[{name!r}, '9 B', {note!r}]]"
    code = f"from torch_tfckpt.cli.tables import show_table; show_table({table})"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    subprocess.run([sys.executable, "-c", code], stdout=slave, env=environment, timeout=60, check=True)
    lines = os.read(master, 8192).decode().splitlines()[1:]
    os.close(slave)
    os.close(master)
    assert lines[0].startswith(f"{name}  ") and not any(line.strip() == "" for line in lines)
    parts = [line[len(name) :].replace("9 B", "").strip() for line in lines]
    assert "".join(parts).replace(" ", "") == note.replace(" ", "")
    assert all(part.endswith(("/", ".", "_", "variable")) for part in parts[:-1]) and len(parts) > 1


def test_names_with_control_characters_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters, lone surrogates and similar characters are escaped in names and paths."""
    name = "evil\x1b[2J\n\udcffü"
    directory = tmp_path / "d\x1bé"
    directory.mkdir()
    prefix = tfckpt.save_file({name: torch.zeros(1)}, directory / "t")
    main(["convert", prefix, str(directory / "m.safetensors")])
    for arguments in (
        ["ls", prefix],
        ["show", prefix],
        ["show", prefix, name],
        ["show", prefix, "absent"],
        ["verify", prefix, "-v"],
        ["diff", prefix, str(directory / "m.safetensors")],
        ["convert", prefix, str(directory / "n.pt"), "--dry-run"],
        ["ls", str(directory / "absent")],
    ):
        main(arguments)
        captured = capsys.readouterr()
        text = captured.out + captured.err
        assert text and all(c.isprintable() or c == "\n" for c in text), (arguments, text)


def test_any_encoding_of_the_terminal_works(tmp_path: Path) -> None:
    """In the C locale non-ASCII characters are escaped, and the program does not fail."""
    prefix = tfckpt.save_file({"größe": torch.zeros(1)}, tmp_path / "t")
    command = [sys.executable, "-m", "torch_tfckpt", "ls", prefix]
    run = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60)
    assert run.returncode == 0 and b"gr\\xf6\\xdfe" in run.stdout


def test_interrupting_a_conversion_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while 200 MB are written, sent as by a shell, leaves no files."""
    prefix = tfckpt.save_file({f"t{n}": torch.zeros(5_000_000) for n in range(10)}, tmp_path / "source" / "t")
    # A shell starts background jobs with SIGINT ignored, which a child inherits. With a handler set here, it does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = start("convert", prefix, str(tmp_path / "out" / "m.npz"))
    finally:
        signal.signal(signal.SIGINT, before)
    while not (tmp_path / "out").exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == b"tfckpt: interrupted; nothing was left behind\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
