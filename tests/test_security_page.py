"""docs/security.md and the files of hashes say what is true."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from torch_tfckpt.directory import retention_file, state_file
from torch_tfckpt.foreign_files import npy_header, pickled_leaves, pickled_values, pt, safetensors, sidecar
from torch_tfckpt.foreign_files.safetensors_format import MAX_HEADER_BYTES
from torch_tfckpt.format import table, tensor_bundle, wire
from torch_tfckpt.meta_graph import files, raw
from torch_tfckpt.storage import zip_archive

ROOT = Path(__file__).resolve().parent.parent
PAGE = " ".join((ROOT / "docs" / "security.md").read_text(encoding="utf-8").split())
LOCKS = sorted((ROOT / "scripts" / "locks").glob("*.txt"))
MIB = 1024 * 1024


@pytest.mark.parametrize(
    "words",
    [
        f"grows {table.MAX_SNAPPY_EXPANSION} times at most; {tensor_bundle.MAX_RANK} dimensions",
        f"a message of {raw.MAX_MESSAGE >> 30} GiB; groups nested {wire.MAX_GROUP_DEPTH} deep; "
        f"{files._MAX_META_GRAPHS:,} meta graphs",
        f"| `checkpoint` | this package | {state_file.MAX_STATE_BYTES // MIB} MiB |",
        f"| retention file | Python's `json` | {retention_file.MAX_BYTES // MIB} MiB;",
        f"a header of {MAX_HEADER_BYTES:,} bytes; {tensor_bundle.MAX_RANK} dimensions",
        f"| `.safetensors.index.json` | Python's `json` | {safetensors.MAX_INDEX_BYTES // MIB} MiB;",
        f"| sidecar `.tfckpt.json` | Python's `json` | {sidecar.MAX_BYTES >> 30} GiB; "
        f"{tensor_bundle.MAX_RANK} dimensions",
        f"each {zip_archive.MAX_RATIO:,} times its stored bytes at most",
        f"{pt.MAX_PICKLE_BYTES // MIB} MiB; {pickled_leaves.MAX_DEPTH} levels; integers of "
        f"{pickled_values._MAX_INTEGER_BYTES} bytes; {pickled_leaves.MAX_SHARED_VALUES:,} values",
        f"tensors of {pt.MAX_EXPANSION} times the file",
        f"{npy_header.MAX_HEADER_BYTES:,} bytes; {npy_header.MAX_DIMENSIONS} dimensions",
    ],
)
def test_limits_are_those_of_the_code(words: str) -> None:
    assert words in PAGE


def test_nothing_unpickles() -> None:
    """No module calls a function that executes what it reads. Only the writer of .pt files pickles."""
    calls = r"torch\.load|pickle\.loads?|Unpickler|allow_pickle|np\.load|eval|exec|marshal\.loads?|jit\.load"
    forbidden = re.compile(rf"\b({calls})\b *\(")
    for path in sorted((ROOT / "torch_tfckpt").rglob("*.py")):
        code = re.sub(r'""".*?"""|"[^"\n]*"|#[^\n]*', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert [found[0] for found in forbidden.finditer(code) if "model.eval" not in found[0]] == [], path


def test_every_extra_has_hashes_for_the_versions_in_constraints() -> None:
    """But torch, which scripts/lock explains, and fuzz, which no script installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = dict(
        re.findall(r"^([a-z0-9_-]+)==(\S+)$", (ROOT / "scripts" / "constraints.txt").read_text(), re.MULTILINE)
    )
    needs = {"package": project["dependencies"]} | project["optional-dependencies"]
    assert {path.stem for path in LOCKS} == needs.keys() - {"fuzz"}
    for path in LOCKS:
        text = path.read_text(encoding="utf-8")
        locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", text, re.MULTILINE))
        for requirement in (*needs[path.stem], *project["dependencies"]):
            name = re.split(r"[^A-Za-z0-9_-]", requirement)[0].replace("_", "-")
            assert name in locked or name == "torch", f"{path.name} lacks {name}. Run scripts/lock"
        for name, version in pinned.items():
            assert locked.get(name.replace("_", "-"), version) == version, f"{path.name}: {name}. Run scripts/lock"
        for block in re.split(r"\n(?=[a-z0-9])", text.strip()):
            assert "--hash=sha256:" in block, f"{path.name}: {block[:60]}"


@pytest.mark.parametrize("script", ["lock", "sbom", "audit", "install"])
def test_scripts_are_valid(script: str) -> None:
    assert shutil.which("bash")
    done = subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
