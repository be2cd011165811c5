"""The recipes of docs/integrations.md: programs that train with other libraries, run as a reader would run them."""

import re
from pathlib import Path
from typing import Any

import pytest
from doc_page import ROOT
from torch_families import EXTRAS, family

# Of the libraries: a slow data loader, deprecated functions of torch, directories that exist.
pytestmark = pytest.mark.filterwarnings("ignore")

PAGE = ROOT / "docs" / "integrations.md"
RECIPE = re.compile(
    r"<!-- not run: needs ([\w, ]+); tests/integrations/test_recipes.py [^\n]*-->\n```python\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
CHECKPOINT = re.compile(r"^## Upload a checkpoint$.*?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def recipes() -> dict[str, list[str]]:
    """Packages that a recipe needs -> its blocks, in order."""
    found: dict[str, list[str]] = {}
    for needs, code in RECIPE.findall(PAGE.read_text(encoding="utf-8")):
        found.setdefault(needs, []).append(code)
    return found


@pytest.mark.parametrize("needs", recipes())
def test_recipe(needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in an empty directory; what it asserts is true."""
    for package in needs.split(", "):
        if package in EXTRAS:
            family(package)
        else:
            pytest.importorskip(package, reason=f"{package} is not installed, and no extra installs it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())  # no database, no server
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    if not set(needs.split(", ")) & set(EXTRAS):
        [code] = CHECKPOINT.findall(PAGE.read_text(encoding="utf-8"))
        exec(code, namespace)
    for code in recipes()[needs]:
        exec(compile(code, f"{PAGE.name}: {needs}", "exec"), namespace)


def test_recipes_are_found() -> None:
    """Every library of the page but those that need a cluster or an account."""
    assert set(recipes()) == {"lightning", "accelerate", "transformers, accelerate", "wandb", "mlflow"}
