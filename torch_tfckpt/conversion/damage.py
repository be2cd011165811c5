"""Find the tensors of a damaged source that can still be read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from torch_tfckpt.conversion.selected_source import read_graph, read_states
from torch_tfckpt.conversion.state_editing import referenced_tensors
from torch_tfckpt.errors import CheckpointError, DataLossError, NotFoundError
from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.foreign_files.tensorflow import CheckpointSource
from torch_tfckpt.foreign_files.values import batches
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ObjectGraph
from torch_tfckpt.text import quoted

# Errors that mean that stored bytes are wrong or missing, not that something cannot be converted.
DAMAGE: Final = (DataLossError, NotFoundError)
_LOST: Final = "its entry in the index cannot be read"


class Listing(NamedTuple):
    """The tensors of a source, as far as they can be listed.

    Attributes:
        names: In the order of the source.
        damaged_index: Damaged parts of the index; their tensors are missing from `names`.
    """

    names: list[str]
    damaged_index: list[str]


def list_undamaged(source: TensorSource) -> Listing:
    """List the tensors that a damaged index still lists."""
    if isinstance(source, CheckpointSource):
        return Listing(*source.reader.undamaged_keys())
    return Listing(source.names(), [])


def find_damaged(source: TensorSource, names: Iterable[str], progress: Callable[[int, int], object]) -> dict[str, str]:
    """Read all of `names`; return those that cannot be read, with the reason.

    Args:
        progress: Called with (bytes read, total bytes).

    Cost: reads everything once; memory for one batch, or for the largest tensor if that is more.
    """
    damaged: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name in names:
        try:
            sizes[name] = source.info(name).nbytes
        except DAMAGE as error:
            damaged[name] = str(error)
    total, done = sum(sizes.values()), 0
    for batch in batches(sizes):
        damaged.update(_damaged_of(source, batch))
        done += sum(sizes[name] for name in batch)
        progress(done, total)
    return damaged


def also_unusable(
    source: TensorSource,
    names: Sequence[str],
    damaged: Mapping[str, str],
    listing: Listing,
    graph: ObjectGraph | None = None,
) -> dict[str, str]:
    """Return the tensors that become unusable because others are damaged, with the reason.

    These are tensors in the object graph that the index no longer lists, other parts of damaged values, and states
    that refer to a damaged tensor.

    Args:
        names: The tensors that are to be converted.
        damaged: The damaged tensors among `names` -> the reason.
        listing: All tensors of the source.
        graph: The object graph, if it has been read.
    """
    if OBJECT_GRAPH_KEY not in names or OBJECT_GRAPH_KEY in damaged:
        return {}
    wanted, listed = set(names), set(listing.names)
    try:
        graph = read_graph(source) if graph is None else graph
    except DAMAGE as error:
        return {OBJECT_GRAPH_KEY: str(error)}
    key_of = graph.attribute_keys(listing.names)
    keys = {attribute.checkpoint_key for node in graph.nodes for attribute in node.attributes}
    found = dict.fromkeys(sorted(keys - set(key_of.values())), _LOST) if listing.damaged_index else {}
    damage_of = {key_of[name]: name for name in damaged if name in key_of}
    for name, key in key_of.items():
        if key in damage_of and name in wanted and name not in damaged:
            found[name] = f"another part of the same value, {quoted(damage_of[key])}, is damaged"
    for name, text in read_states(source, [name for name in names if name not in damaged]):
        lost = [key for key in referenced_tensors(text) if key in damaged or key not in listed]
        if lost:
            found[name] = f"it refers to {quoted(lost[0])}, which is damaged"
    return found


def _damaged_of(source: TensorSource, batch: Sequence[str]) -> dict[str, str]:
    try:
        source.read(batch)
    except DAMAGE as error:
        if len(batch) == 1:
            return {batch[0]: str(error)}
        return {name: reason for one in batch for name, reason in _damaged_of(source, [one]).items()}
    return {}


def suggest_skipping(error: CheckpointError) -> CheckpointError:
    """Return the same error with a hint on how to convert the undamaged tensors."""
    return type(error)(f"{str(error).rstrip('.')}. skip_damaged=True converts the tensors that can be read")
