"""Errors name parameters of Python functions; the command line prints the options instead."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.cli import console
from torch_tfckpt.cli.console import error_text
from torch_tfckpt.cli.main import main, parser
from torch_tfckpt.errors import NO_MATCHING_FILES, InvalidArgumentError, NotFoundError

PACKAGE = Path(tfckpt.__file__).parent


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("atol=-1.0: the tolerance must be 0 or more", "--atol -1.0: the tolerance must be 0 or more"),
        ("x. skip_damaged=True converts the rest", "x. --skip-damaged converts the rest"),
        ("max_shard_size is for safetensors only", "--max-shard-size is for safetensors only"),
        ("or pass to=npz|tf", "or pass --to npz|tf"),
        ("Omit `tags`", "Omit `--tags`"),
        ('include "a" matches nothing', '--include "a" matches nothing'),
        ("allow_missing_files was set to false", "--allow-missing was set to false"),
        ('pass ema="prefer" to load', "pass --ema prefer to load"),
        ('(or pass ema="prefer")', "(or pass --ema prefer)"),
        ("(with skip_damaged=True)", "(with --skip-damaged)"),
        ('as in KeyMapper.preset("resnet", scope="v1")', 'as in KeyMapper.preset("resnet", scope="v1")'),
        ("load_model(model, path, optimizer=...)", "load_model(model, path, optimizer=...)"),
        # Ordinary words, names and paths.
        ("include and exclude select nothing, go to x", "include and exclude select nothing, go to x"),
        ('tensor "skip_damaged=True": damaged', 'tensor "skip_damaged=True": damaged'),
        ("/tmp/max_shard_size/dtype=1: missing", "/tmp/max_shard_size/dtype=1: missing"),
        ("max_shard_size.ckpt: missing", "max_shard_size.ckpt: missing"),
    ],
)
def test_parameters_become_options(message: str, expected: str) -> None:
    assert error_text(InvalidArgumentError(message)) == expected


def test_words_for_programs_are_omitted() -> None:
    assert error_text(NotFoundError(f"{NO_MATCHING_FILES}m: no such file")) == "m: no such file"


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from options_of(verb)


def test_every_option_exists() -> None:
    assert set(console._OPTIONS.values()) <= set(options_of(parser()))


def strings_of(path: Path) -> Iterator[str]:
    """Yield all strings of a module except docstrings, "?" for each value that is inserted."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (parts | docs):
            yield node.value


def test_messages_of_the_library_name_no_options() -> None:
    """Outside of the command line, options appear only in complete commands, in backquotes."""
    modules = [
        path for path in PACKAGE.rglob("*.py") if path.parent.name != "cli" and path.stem != "inspect_checkpoint"
    ]
    found = [
        (path.name, text)
        for path in modules
        for text in strings_of(path)
        if re.search(r"(?<![\w-])--[a-z]", re.sub(r"`[^`]*`", "", text))
    ]
    assert len(modules) > 100 and found == []


def test_commands_print_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The errors of convert, diff and merge, as the library raises them and as a command prints them."""
    prefix, absent = tfckpt.save_file({"w": torch.ones(2)}, tmp_path / "t"), str(tmp_path / "absent")
    with pytest.raises(InvalidArgumentError, match=r"^max_shard_size is for safetensors only"):
        tfckpt.convert(prefix, tmp_path / "m.npz", max_shard_size="1MB")
    with pytest.raises(InvalidArgumentError, match=r"or pass to=safetensors\|pt\|npz\|tf$"):
        tfckpt.convert(prefix, tmp_path / "m")
    for arguments, expected in (
        (["convert", prefix, f"{tmp_path}/m.npz", "--max-shard-size", "1MB"], "tfckpt: --max-shard-size is for"),
        (["convert", prefix, f"{tmp_path}/m"], ", or pass --to safetensors|pt|npz|tf\n"),
        (["diff", prefix, prefix, "--atol", "-1"], "tfckpt: --atol -1.0: the tolerance"),
        (["diff", prefix, prefix, "--exclude", "w"], "tfckpt: include and exclude select none of 1 tensor"),
        (["merge", prefix, absent, f"{tmp_path}/all"], "absent"),
    ):
        assert main(arguments) in (1, 2)
        captured = capsys.readouterr()
        assert captured.out == "" and expected in captured.err
