"""Edit the states that an object-based checkpoint stores as JSON strings to match renamed tensors.

Such a string (`saveables.state_tree`) names the tensors that it contains by their keys, and the state of an optimizer
(`saveables.optimizer_state`) names its parameters by their paths in the object graph. Anything else, such as the string
of a PythonState, is not changed.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

_REFERENCES: Final = ({"$tensor"}, {"$ndarray"}, {"$numpy"})
_OPTIMIZER: Final = {"optimizer", "param_shapes", "param_groups", "state"}
_TABLES: Final = {"param_shapes", "param_dtypes", "state"}  # whose keys are names of parameters


def referenced_tensors(text: bytes) -> list[str]:
    """Return the keys of the tensors that a state names; an empty list for any other text."""
    found: list[str] = []

    def note(key: str) -> str:
        found.append(key)
        return key

    content = _parsed(text)
    _replace_references(content, note)
    return found


def edit_state(text: bytes, new_names: Mapping[str, str], paths: Mapping[str, str]) -> bytes:
    """Return the state with the new keys of its tensors and the new paths of its parameters.

    Returns `text` itself if nothing changes, or if it is not a state.

    Args:
        new_names: Name -> new name of tensors.
        paths: Path -> new path of objects.
    """
    content = _parsed(text)
    before = json.dumps(content)
    _replace_references(content, lambda key: new_names.get(key, key))
    _rename_parameters(content, paths)
    after = json.dumps(content)
    return text if after == before else after.encode()


def _rename_parameters(content: Any, paths: Mapping[str, str]) -> None:
    """Edit the state of an optimizer, and of the optimizers that it wraps."""
    waiting = [content]
    while waiting:
        state = waiting.pop()
        if not isinstance(state, dict) or not state.keys() >= _OPTIMIZER:
            continue
        for table in _TABLES & state.keys():
            state[table] = _with_paths(state[table], paths)
        for group in state["param_groups"] if isinstance(state["param_groups"], list) else []:
            if isinstance(group, dict) and isinstance(group.get("params"), list):
                group["params"] = [paths.get(name, name) if isinstance(name, str) else name for name in group["params"]]
        waiting += state["wrapped"].values() if isinstance(state.get("wrapped"), dict) else []


def _parsed(text: bytes) -> Any:
    """Return the parsed JSON; None if `text` is not valid JSON."""
    try:
        content = json.loads(text)
        json.dumps(content)  # may reach the recursion limit at a smaller depth than json.loads
        return content
    except (ValueError, RecursionError):
        return None


def _replace_references(content: Any, replace: Callable[[str], str]) -> None:
    waiting = [content]
    while waiting:
        here = waiting.pop()
        if isinstance(here, list):
            waiting += here
        elif isinstance(here, dict):
            for key, item in here.items():
                if here.keys() in _REFERENCES and isinstance(item, str):
                    here[key] = replace(item)
                else:
                    waiting.append(item)


def _with_paths(table: Any, paths: Mapping[str, str]) -> Any:
    """Return a JSON table whose keys are paths, with the new paths as its keys."""
    if not isinstance(table, dict):
        return table
    if table.keys() == {"$dict"}:
        pairs = table["$dict"]
        valid = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
        if not valid:
            return table
    else:
        pairs = [[key, item] for key, item in table.items()]
    renamed = [[paths.get(key, key) if isinstance(key, str) else key, item] for key, item in pairs]
    if all(isinstance(key, str) and not key.startswith("$") for key, _ in renamed):
        return dict(renamed)
    return {"$dict": renamed}
