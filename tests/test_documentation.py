"""README.md and docs/: what they show works, what they list is complete, and what is generated is current."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import gen_docs
import pytest
from doc_page import PageError, blocks_of, run_page

import torch_tfckpt as tfckpt
from torch_tfckpt.models.layers.layouts import LAYOUTS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if any(blocks_of(page.read_text(encoding="utf-8")))]
API = sorted((DOCS / "api").glob("*.md"))


def test_blocks_run() -> None:
    """All blocks of each page run, in order, in an empty directory, and print what the page says."""
    command = [sys.executable, "scripts/doc_page.py", *map(str, WITH_BLOCKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_many_pages_have_blocks() -> None:
    """The pattern for blocks matches."""
    assert len(WITH_BLOCKS) > 15
    assert ROOT / "README.md" in WITH_BLOCKS


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nassert 1 == 2\n```\n", "line 2.*AssertionError"),
        ("\n```bash\ntrue\nfalse\n```\n", "line 3: exit status 1 of: false"),
        ("```bash\ntrue    # exit status 1\n```\n", "exit status 0 of: true"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "the block prints\n1\n"),
        ("```bash\ntfckpt ls nothing\n```\n", "exit status 1"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "UserWarning: old"),
    ],
)
def test_a_wrong_page_is_found(page: str, message: str, tmp_path: Path) -> None:
    """A block that fails, warns or prints something else is an error with the line."""
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(PageError, match=f"(?s){message}"):
        run_page(path)


def test_a_page_is_run_in_order(tmp_path: Path) -> None:
    """Names and files of earlier blocks are there; a block that is not to be run is left out; output is written."""
    path = tmp_path / "page.md"
    path.write_text(
        "```python\nx = 1\n```\n<!-- not run: it would fail -->\n```python\n1 / 0\n```\n"
        "```bash\necho hello > file\ntfckpt latest .    # exit status 1\n```\n"
        "```python\nprint(x, open('file').read) if x == 2 else print(x)\n```\n\n```text\n```\n"
    )
    assert run_page(path, update=True) == 3
    assert path.read_text().endswith("```text\n1\n```\n")
    assert run_page(path) == 3


def test_every_public_name_is_documented() -> None:
    """The table of docs/api names everything that is public, and each name has a section."""
    table = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    listed = {name for cell in re.findall(r"`([^`]+)`", table) for name in re.findall(r"^[A-Za-z_]\w*", cell)}
    pages = "\n".join(page.read_text(encoding="utf-8") for page in API if page.name != "index.md")
    shown = set(re.findall(r"^::: torch_tfckpt\.(\w+)$", pages, re.MULTILINE))
    shown |= set(re.findall(r"^## `(\w+)` \{ #torch_tfckpt\.\1 \}$", pages, re.MULTILINE))
    names = {name for name in tfckpt.__all__ if not name.startswith("__")}
    assert names - listed == set()
    assert shown == names


def test_every_error_is_explained() -> None:
    """The table of docs/errors.md has a row for each class, with the builtin that it is."""
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE))
    classes = {
        name: thing.__bases__[1].__name__
        for name in tfckpt.__all__
        if isinstance(thing := getattr(tfckpt, name), type)
        and issubclass(thing, tfckpt.CheckpointError)
        and thing is not tfckpt.CheckpointError
    }
    assert rows == classes


def test_the_table_of_packages_is_the_rule() -> None:
    """docs/design/layout.md lists the packages of tests/test_layering.py, in that order, the upper rows first."""
    tree = ast.parse((ROOT / "tests" / "test_layering.py").read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "LAYERS"
    }
    wanted = [row.split() for row in constants["LAYERS"]]
    text = (DOCS / "design" / "layout.md").read_text(encoding="utf-8")
    rows = [re.findall(r"`(\w+)`", cell) for cell in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)]
    assert rows == [row for row in reversed(wanted) if row]


def test_links_between_pages_lead_somewhere() -> None:
    """MkDocs checks the links of its pages; README.md and CONTRIBUTING.md are not among them."""
    for page in PAGES[:2]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (ROOT / link).exists(), f"{page.name}: {link}"


def test_the_readme_is_short() -> None:
    """It is the front page; everything else is in docs/."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_layout_is_listed() -> None:
    """The first table of docs/conversion/layouts.md has a row for each layout, in order."""
    text = (DOCS / "conversion" / "layouts.md").read_text(encoding="utf-8")
    table = text.partition("## Built in")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(LAYOUTS)


def test_every_preset_is_listed() -> None:
    """docs/conversion/presets.md names every preset."""
    text = (DOCS / "conversion" / "presets.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([a-z0-9.-]+)`", text))
    presets = {path.stem for path in (ROOT / "torch_tfckpt" / "models" / "presets").glob("*.toml")}
    assert presets - listed == set()


def test_the_page_of_the_command_line_is_current() -> None:
    """docs/cli.md is what `--help` prints."""
    assert gen_docs.CLI_PAGE.read_text(encoding="utf-8") == gen_docs.cli_page(), "run scripts/gen_docs.py"


def test_the_picture_is_current() -> None:
    """docs/images/tfckpt.svg shows what the commands print."""
    assert gen_docs.PICTURE.read_text(encoding="utf-8") == gen_docs.picture(), "run scripts/gen_docs.py"
