"""Names from files and directories never control a terminal: every place they come from, with every verb."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main
from torch_tfckpt.text import encodable, escaped, printable, quoted, shortened

# A title, a forged line, colours by a C1 character, text that runs backwards, separators, zero width, delete.
HOSTILE = "a\x1b]0;x\x07\nFORGED\r\x9b31m\u202e\u2066\u2028\u2029\x85\u200b\x7fz"
VERBS: tuple[tuple[str, ...], ...] = (
    ("ls", "{}"),
    ("ls", "{}", HOSTILE),
    ("ls", "--tree", "{}"),
    ("show", "{}"),
    ("show", "{}", HOSTILE),
    ("show", "--stats", "{}"),
    ("verify", "{}"),
    ("verify", "-v", "{}"),
    ("diff", "{}", "{}"),
    ("diff", "{}", "{other}"),
    ("latest", "{}"),
    ("latest", "--valid", "{}"),
    ("meta", "{}"),
    ("meta", "--dot", "--depth", "3", "{}"),
    ("convert", "{}", "{out}.pt"),
    ("convert", "{}", "{out}.npz"),
    ("convert", "--dry-run", "{}", "{out}.safetensors"),
    ("convert", "--skip-damaged", "--exclude", HOSTILE.replace("[", ""), "{}", "{out}", "--to", "tf"),
    ("merge", "--keep-sources", "{}", "{out}-merged"),
)
WITHOUT_JSON = {"merge"}


def assert_harmless(text: str) -> None:
    """Only printable characters and ends of lines, and no line that a name began."""
    harmful = {character for character in text if not character.isprintable() and character != "\n"}
    assert not harmful, f"{harmful} in {text!r}"
    assert not any(line.startswith("FORGED") for line in text.split("\n")), text
    assert "internal error" not in text and "Traceback" not in text, text


def in_state_file(directory: Path) -> Path:
    octal = "".join(f"\\{byte:03o}" for byte in HOSTILE.encode())
    (directory / "checkpoint").write_text(f'model_checkpoint_path: "{octal}"\nall_model_checkpoint_paths: "{octal}"\n')
    return directory


def in_damaged_state_file(directory: Path) -> Path:
    (directory / "checkpoint").write_text(f"model_checkpoint_path: {HOSTILE}")
    return directory


def in_tensor_names(directory: Path) -> Path:
    return Path(tfckpt.save_file({HOSTILE: torch.ones(2), HOSTILE + "2": torch.ones(1)}, directory / "m"))


def in_version_1_names(directory: Path) -> Path:
    saver = tfckpt.Saver({HOSTILE: torch.ones(2)}, write_version=tfckpt.SaverDef.V1)
    return Path(saver.save(str(directory / "m"), write_meta_graph=False))


def in_damaged_tensors(directory: Path) -> Path:
    prefix = in_tensor_names(directory)
    os.truncate(f"{prefix}.data-00000-of-00001", 3)
    return prefix


def in_file_names(directory: Path) -> Path:
    prefix = tfckpt.save_file({"a": torch.ones(2)}, directory / HOSTILE)
    os.truncate(f"{prefix}.data-00000-of-00001", 3)
    return Path(prefix)


def in_missing_files(directory: Path) -> Path:
    return directory / f"{HOSTILE}.pt"


def in_directory_names(directory: Path) -> Path:
    home = directory / f"{HOSTILE}\udcff"
    home.mkdir()
    (home / HOSTILE).write_text("{}")
    (home / f"{HOSTILE}.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    return home


def in_meta_graph(directory: Path) -> Path:
    (directory / "m.meta").write_bytes(_meta_graph().SerializeToString())
    return directory / "m.meta"


def in_meta_graph_text(directory: Path) -> Path:
    (directory / "m.meta").write_text(str(_meta_graph()) + f"\n{HOSTILE}: 1")
    return directory / "m.meta"


def _meta_graph() -> tfckpt.MetaGraphDef:
    graph = tfckpt.MetaGraphDef()
    graph.meta_info_def.tensorflow_version = graph.meta_info_def.meta_graph_version = HOSTILE
    graph.meta_info_def.tags.append(HOSTILE)
    node = graph.graph_def.node.add(name=HOSTILE, op=HOSTILE, device=HOSTILE)
    node.input.append(HOSTILE)
    graph.graph_def.node.add(name="v", op="VariableV2").attr["_class"].s = HOSTILE.encode()
    graph.graph_def.library.function.add().signature.name = HOSTILE
    graph.collection_def[HOSTILE].node_list.value.append(HOSTILE)
    graph.collection_def["variables"].bytes_list.value.append(HOSTILE.encode())
    signature = graph.signature_def[HOSTILE]
    signature.method_name = HOSTILE
    signature.inputs[HOSTILE].name = HOSTILE
    graph.saver_def.filename_tensor_name = graph.saver_def.save_tensor_name = HOSTILE
    return graph


def in_objects(directory: Path) -> Path:
    model = torch.nn.Module()
    model.add_module(HOSTILE.replace(".", ""), torch.nn.Linear(1, 1))
    return Path(tfckpt.Checkpoint(model=model).save(str(directory / "m")))


def in_safetensors(directory: Path) -> Path:
    safetensors.torch.save_file({HOSTILE: torch.ones(2)}, directory / "m.safetensors", {HOSTILE: HOSTILE})
    return directory / "m.safetensors"


def in_safetensors_header(directory: Path) -> Path:
    header = json.dumps({HOSTILE: {"dtype": HOSTILE, "shape": [HOSTILE], "data_offsets": [0, 1]}}).encode()
    (directory / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return directory / "m.safetensors"


def in_shard_index(directory: Path) -> Path:
    index = {"weight_map": {HOSTILE: HOSTILE, "w": "absent.safetensors"}}
    (directory / "m.safetensors.index.json").write_text(json.dumps(index))
    return directory / "m.safetensors.index.json"


def in_shard_contents(directory: Path) -> Path:
    safetensors.torch.save_file({"w": torch.ones(2)}, directory / "m-00001-of-00001.safetensors")
    index = {"weight_map": {HOSTILE: "m-00001-of-00001.safetensors", "w": "m-00001-of-00001.safetensors"}}
    (directory / "m.safetensors.index.json").write_text(json.dumps(index))
    return directory / "m.safetensors.index.json"


def in_sidecar(directory: Path) -> Path:
    path = in_safetensors(directory)
    content = {
        "format": "torch_tfckpt sidecar",
        "version": 1,
        "bytes": path.stat().st_size,
        "types": {HOSTILE: HOSTILE},
    }
    Path(f"{path}.tfckpt.json").write_text(json.dumps(content | {"tensors": {HOSTILE: {"dtype": HOSTILE}}}))
    return path


def in_npz(directory: Path) -> Path:
    content = io.BytesIO()
    np.save(content, np.ones(2))
    with zipfile.ZipFile(directory / "m.npz", "w") as archive:
        archive.writestr(f"{HOSTILE}.npy", content.getvalue())
        archive.writestr(HOSTILE, "text")
        archive.writestr("damaged.npy", b"\x93NUMPY\x01\x00\x40\x00{'descr': '" + HOSTILE.encode() + b"'" + bytes(60))
    return directory / "m.npz"


def in_pt(directory: Path) -> Path:
    torch.save({HOSTILE: torch.ones(2), "text": HOSTILE, HOSTILE + "n": {HOSTILE: 1}}, directory / "m.pt")
    return directory / "m.pt"


def in_pt_references(directory: Path) -> Path:
    with zipfile.ZipFile(directory / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02c" + HOSTILE.replace("\n", "").encode() + b"\nf\n.")
    return directory / "m.pt"


PLACES: tuple[Callable[[Path], Path], ...] = (
    in_state_file,
    in_damaged_state_file,
    in_tensor_names,
    in_version_1_names,
    in_damaged_tensors,
    in_file_names,
    in_missing_files,
    in_directory_names,
    in_meta_graph,
    in_meta_graph_text,
    in_objects,
    in_safetensors,
    in_safetensors_header,
    in_shard_index,
    in_shard_contents,
    in_sidecar,
    in_npz,
    in_pt,
    in_pt_references,
)


def commands(path: Path, directory: Path) -> Iterator[list[str]]:
    other = tfckpt.save_file({"b": torch.ones(1)}, directory / "other")
    for verb in VERBS:
        words = [
            word.replace("{}", str(path)).replace("{other}", other).replace("{out}", str(directory / f"out{HOSTILE}"))
            for word in verb
        ]
        yield words
        if verb[0] not in WITHOUT_JSON and "--dot" not in verb:
            yield [words[0], "--json", *words[1:]]


@pytest.mark.parametrize("place", PLACES)
def test_names_from_files_are_escaped(
    place: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every verb, on both streams; JSON stays JSON."""
    home = tmp_path / "files"
    home.mkdir()
    path = place(home)
    for command in commands(path, tmp_path):
        status = main(command)
        output = capsys.readouterr()
        assert status in (0, 1, 2), command
        for stream in output:
            assert_harmless(stream)
        if "--json" in command and output.out:
            json.loads(output.out)


def test_log_records_and_warnings_are_escaped(tmp_path: Path) -> None:
    """In a process of its own, as pytest has logging handlers."""
    program = (
        "import logging, sys, warnings\n"
        "from torch_tfckpt.cli import main as module\n"
        "def verb(options):\n"
        "    logging.getLogger('torch_tfckpt.x').warning('log %s', sys.argv[1])\n"
        "    warnings.warn(f'warning {sys.argv[1]}')\n"
        "    raise SystemError(sys.argv[1])\n"
        "module._function = lambda place: verb\n"
        "sys.exit(module.main(['ls', 'x']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, HOSTILE], capture_output=True, check=False)
    text = done.stderr.decode()
    assert done.returncode == 1 and done.stdout == b""
    assert {character for character in text if not character.isprintable()} == {"\n"}
    assert "log a\\x1b]0;x\\x07" in text and "UserWarning: warning a" in text and "SystemError" in text


@pytest.mark.parametrize("error", [RecursionError(), MemoryError("of 8 TB"), MemoryError()])
def test_exhausted_resources_are_one_line(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Depth and memory that a file demands end in a message, not in a traceback."""

    def verb(_: object) -> int:
        raise error

    monkeypatch.setattr("torch_tfckpt.cli.main._function", lambda place: verb)
    assert main(["ls", "x"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_usage_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse quotes arguments that it does not know."""
    for command in (
        [HOSTILE],
        ["ls", "x", f"--{HOSTILE}"],
        ["diff", "a", "b", "--atol", HOSTILE],
        ["ls", "--sort", HOSTILE],
    ):
        assert main(command) == 2
        harmful = {character for character in "".join(capsys.readouterr()) if not character.isprintable()}
        assert harmful <= {"\n"}


def test_escaping() -> None:
    """`printable` and `quoted` are for messages, `encodable` for machines."""
    assert printable("/a b/ü-\U0001f600") == "/a b/ü-\U0001f600"
    assert printable("a\x1b\n\u202e\udcff") == "a\\x1b\\n\\u202e\\xff"
    assert encodable("a\x1b\udcff") == "a\x1b\\xff"
    assert quoted(HOSTILE).isprintable() and escaped(HOSTILE).isprintable()


def test_any_value_can_be_shortened() -> None:
    """However deep, wide or shared it is."""
    deep: list[object] = []
    shared: list[object] = [1]
    for _ in range(100_000):
        deep = [deep]
    for _ in range(60):
        shared = [shared, shared]
    for value in (deep, shared, HOSTILE, "x" * 10**6, {HOSTILE: deep}, list(range(10**5))):
        assert len(shortened(value)) <= 400 and shortened(value).isprintable()
