"""Hand-made meta graphs of TF2 SavedModels, whose variables are objects; valid and invalid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from meta_graph_files import FLOAT, SAVER, node, restoring, texts, variable

from torch_tfckpt import DataType
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.trackable_object_graph_pb2 import TrackableObjectGraph
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY


@dataclass(frozen=True)
class Saved:
    """A variable of the object graph.

    Attributes:
        path: Its local name in the root object, and the key under which it is stored.
        name: Its own name.
        restored: The node that the saver restores it into; None: it is not stored.
        passed: The node that calls pass in its place.
    """

    path: str
    name: str
    restored: str | None
    passed: str
    shape: Sequence[int] = (4, 5)
    trainable: bool = False
    dtype: int = FLOAT


def key(path: str) -> str:
    return f"{path}/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass
class ObjectMetaGraph:
    """A meta graph with an object graph: node 0 is the root, and node n + 1 is the variable `variables[n]`.

    Attributes:
        calls: Name of a function -> numbers of the variables that it captures; a node of the same name calls it.
    """

    variables: Sequence[Saved]
    calls: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def message(self) -> MetaGraphDef:
        """Return the meta graph: a test may change it further."""
        meta, nodes = MetaGraphDef(saver_def=SAVER), meta_nodes(self.variables)
        objects, graph = meta.object_graph_def, meta.graph_def
        root = objects.nodes.add()
        root.user_object.identifier = "_generic_user_object"
        for number, each in enumerate(self.variables, 1):
            root.children.add(node_id=number, local_name=each.path)
            saved = objects.nodes.add().variable
            saved.name, saved.trainable, saved.dtype = each.name, each.trainable, each.dtype  # type: ignore[assignment]
            for size in each.shape:
                saved.shape.dim.add(size=size)
        stored = [each for each in self.variables if each.restored is not None]
        graph.node.extend(nodes)
        keys = [key(each.path).encode() for each in stored] + [OBJECT_GRAPH_KEY.encode()]
        restore = restoring([(str(each.restored), n) for n, each in enumerate(stored)], keys)
        dtypes = [*(each.dtype for each in stored), DataType.DT_STRING]
        next(each for each in restore if each.op == "RestoreV2").attr["dtypes"].list.type[:] = dtypes  # type: ignore[assignment]
        graph.node.extend(restore)
        graph.node.extend(
            [texts("save/graph", [self.checkpoint_graph().SerializeToString()]), texts("save/keys", keys)]
        )
        del graph.node[-2].attr["value"].tensor.tensor_shape.dim[:]
        inputs = [str(each.restored) for each in stored] + ["save/graph"]
        graph.node.add(name="save/SaveV2", op="SaveV2", input=["save/Const", "save/keys", "save/keys", *inputs])
        graph.node.add(name="save/control_dependency", op="Identity", input=["save/Const", "^save/SaveV2"])
        for name, captured in self.calls.items():
            passed = [self.variables[number].passed for number in captured]
            graph.node.add(name=name, op=name, input=["x", *passed])
            function = graph.library.function.add().signature
            function.name = name
            for number in range(len(passed) + 1):
                function.input_arg.add(name=f"input_{number}")
            objects.concrete_functions[name].bound_inputs.extend(number + 1 for number in captured)
        return meta

    def checkpoint_graph(self) -> TrackableObjectGraph:
        """Return the object graph that the saver stores. It has other numbers than that of the SavedModel."""
        found = TrackableObjectGraph()
        root = found.nodes.add()
        found.nodes.add()  # an object that the SavedModel does not have
        for each in self.variables:
            if each.restored is not None:
                root.children.add(node_id=len(found.nodes), local_name=each.path)
                attribute = found.nodes.add().attributes.add(name="VARIABLE_VALUE", full_name=each.name)
                attribute.checkpoint_key = key(each.path)
        return found


def meta_nodes(variables: Sequence[Saved]) -> list[NodeDef]:
    made: dict[str, NodeDef] = {}
    for each in variables:
        for name in (each.restored, each.passed):
            if name is not None:
                made.setdefault(name, variable(name, each.shape, each.dtype))
    return [*made.values(), node("x", "Placeholder"), node("save/Const", "Placeholder")]
