"""Random architectures, described so that Keras and torch can build the same model with names of their own.

A model is a tree of layers and blocks. Both sides compute the same function of it: a block is a chain, possibly with a
shortcut; two parallel chains are added with different factors, so that swapping them changes the output. The names are
chosen by conventions of either side: layers numbered by the program, scopes with numbers, words for roles, indexes of
lists, flat names with underscores, or words that mean nothing. The order in which layers are created, and so numbered,
and the order in which modules are registered may differ as they do in programs: shortcuts or heads first, norms last.

Used in the TensorFlow process too: imports neither torch nor TensorFlow.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

CLASS_NAMES = {
    "dense": "dense", "conv": "conv2d", "depthwise": "depthwise_conv2d", "batchnorm": "batch_normalization",
    "layernorm": "layer_normalization", "embedding": "embedding", "lstm": "lstm", "bilstm": "bidirectional",
    "gru": "gru", "attention": "multi_head_attention",
}  # fmt: skip
SHORT = {
    "dense": ("fc", "linear", "lin"), "conv": ("conv",), "depthwise": ("dwconv", "depthwise"), "batchnorm": ("bn",),
    "layernorm": ("ln", "norm"), "embedding": ("emb", "embed"), "lstm": ("lstm", "rnn"), "bilstm": ("lstm", "birnn"),
    "gru": ("gru", "rnn"), "attention": ("attn", "mha"),
}  # fmt: skip
MEANINGLESS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo",
               "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor",
               "whiskey", "xray", "yankee", "zulu")  # fmt: skip
STORED_CONVENTIONS = ("automatic", "scoped", "nested", "flat", "objects", "graph")
TORCH_CONVENTIONS = ("roles", "numbers", "indexes", "words", "flat")


@dataclass
class Node:
    """A layer, or a block of nodes.

    Attributes:
        kind: "chain", "residual" (the first item is the shortcut if `has_shortcut`), "parallel", or a kind of layer.
        role: What it is for, such as "hidden"; nodes of one role in one block are numbered.
        sizes: Of a layer: inputs and outputs, heads and the like.
        stored, module: The path of the layer on either side.
    """

    kind: str
    role: str
    sizes: tuple[int, ...] = ()
    items: "list[Node]" = field(default_factory=list)
    has_shortcut: bool = False
    stored: tuple[str, ...] = ()
    module: tuple[str, ...] = ()

    def layers(self) -> "Iterator[Node]":
        """Yield the layers, in the order in which the model computes them."""
        if not self.items:
            yield self
        for item in self.items:
            yield from item.layers()


@dataclass
class Architecture:
    """A model with the names of both sides.

    Attributes:
        domain: "vector", "image" or "sequence".
        by_objects: Whether it is stored as objects, and as the graph of a Keras functional model if `as_graph`.
        registered: The layers in the order in which torch registers them.
        slots: Whether slots of an optimizer and a step are stored as well.
    """

    domain: str
    width: int
    root: Node
    by_objects: bool
    as_graph: bool
    registered: list[int]
    slots: bool
    conventions: tuple[str, str]


def architecture(seed: int) -> Architecture:
    """Return a random architecture; always the same for one seed."""
    rng = random.Random(seed)
    domain = rng.choice(("vector", "image", "sequence"))
    widths = rng.choice(((4,), (4, 6), (3, 4, 5, 6, 7)))
    width = rng.choice(widths) if domain != "sequence" else 4
    root = Node("chain", "model", items=_body(rng, domain, width, widths))
    layers = list(root.layers())
    created = _reordered(rng, layers) if rng.random() < 0.25 else layers
    stored = rng.choice(STORED_CONVENTIONS)
    module = rng.choice(TORCH_CONVENTIONS)
    _NAMED[stored](rng, root, created)
    _name_modules(rng, root, module)
    registered = _reordered(rng, layers) if rng.random() < 0.25 else layers
    order = [layers.index(each) for each in registered]
    by_objects = stored in ("objects", "graph")
    return Architecture(domain, width, root, by_objects, stored == "graph", order, rng.random() < 0.3, (stored, module))


def _body(rng: random.Random, domain: str, width: int, widths: tuple[int, ...]) -> list[Node]:
    items: list[Node] = []
    if domain == "sequence":
        items.append(Node("embedding", "embedding", (11, width)))
    for _ in range(rng.randint(1, 4)):
        out = rng.choice(widths)
        choices = {
            "vector": ("hidden", "residual", "parallel"),
            "image": ("conv", "residual", "separable", "parallel"),
            "sequence": ("transformer", "recurrent", "hidden", "residual"),
        }[domain]
        what = rng.choice(choices)
        if what == "transformer":
            items.append(_transformer(rng, width))
        elif what == "recurrent":
            kind = rng.choice(("lstm", "bilstm", "gru"))
            items.append(Node(kind, "encoder", (width, out)))
            width = 2 * out if kind == "bilstm" else out
        elif what == "residual":
            items.append(_residual(rng, domain, width, out))
            width = out
        elif what == "parallel":
            branches = [
                Node("chain", role, items=_unit(rng, domain, width, out, "hidden"))
                for role in rng.choice((("left", "right"), ("first", "second"), ("branch", "branch")))
            ]
            items.append(Node("parallel", "mixed", items=branches))
            width = out
        elif what == "separable":
            items.append(Node("chain", "separable", items=[
                Node("depthwise", "depthwise", (width,)), *_unit(rng, domain, width, out, "pointwise")
            ]))  # fmt: skip
            width = out
        else:
            items += _unit(rng, domain, width, out, "hidden")
            width = out
    items.append(Node("dense", "head", (width, rng.choice((3, width)))))
    return items


def _unit(rng: random.Random, domain: str, width: int, out: int, role: str) -> list[Node]:
    """A Dense or convolution, often with a norm."""
    if domain == "image":
        layers = [Node("conv", role, (width, out, rng.choice((1, 3))))]
        return [*layers, Node("batchnorm", f"{role}_norm", (out,))] if rng.random() < 0.6 else layers
    layers = [Node("dense", role, (width, out))]
    return [*layers, Node("layernorm", f"{role}_norm", (out,))] if rng.random() < 0.4 else layers


def _residual(rng: random.Random, domain: str, width: int, out: int) -> Node:
    """A block whose input is added to its output, through a layer if the sizes differ."""
    kind = "conv" if domain == "image" else "dense"
    chain = [*_unit(rng, domain, width, out, "expand"), *_unit(rng, domain, out, out, "project")]
    has_shortcut = width != out or rng.random() < 0.2
    shortcut = [Node(kind, "shortcut", (width, out, 1))] if has_shortcut else []
    return Node("residual", "block", items=[*shortcut, *chain], has_shortcut=has_shortcut)


def _transformer(rng: random.Random, width: int) -> Node:
    inner = rng.choice((width, 2 * width, 5))
    attention = Node("attention", "attention", (width, 1))
    dense = [Node("dense", "expand", (width, inner)), Node("dense", "project", (inner, width))]
    return Node("chain", "layer", items=[
        Node("residual", "attention", items=[attention]), Node("layernorm", "attention_norm", (width,)),
        Node("residual", "mlp", items=dense), Node("layernorm", "output_norm", (width,)),
    ])  # fmt: skip


def _reordered(rng: random.Random, layers: list[Node]) -> list[Node]:
    """The layers in another order in which a program may create them."""
    keys: list[Callable[[Node], bool]] = [
        lambda node: node.role != "shortcut",
        lambda node: node.role != "head",
        lambda node: node.kind in ("batchnorm", "layernorm"),
        lambda node: node.role == "shortcut",
    ]
    return sorted(layers, key=rng.choice(keys))


# Names of stored layers.


def _automatic(rng: random.Random, root: Node, created: list[Node]) -> None:
    """conv2d, conv2d_1, ...: one count for each class, for the whole model."""
    start = rng.choice((0, 0, 7))
    prefix = rng.choice(((), ("model",)))
    counts: dict[str, int] = {}
    for node in created:
        name = CLASS_NAMES[node.kind]
        number = counts.get(name, start)
        counts[name] = number + 1
        node.stored = (*prefix, f"{name}_{number}" if number else name)


def _scoped(rng: random.Random, root: Node, created: list[Node]) -> None:
    """block_0/dense, block_0/dense_1: explicit scopes, automatic names inside."""
    _place(root, "stored", _scope_names(rng, rng.choice(("_", ""))), ())
    counts: dict[tuple[str, ...], int] = {}
    for node in created:
        scope = node.stored[:-1]
        name = CLASS_NAMES[node.kind]
        number = counts.get((*scope, name), 0)
        counts[*scope, name] = number + 1
        node.stored = (*scope, f"{name}_{number}" if number else name)


def _nested(rng: random.Random, root: Node, created: list[Node]) -> None:
    """block_0/expand/conv: explicit names everywhere."""
    _place(root, "stored", _scope_names(rng, rng.choice(("_", ""))), rng.choice(((), ("net",))))


def _flat(rng: random.Random, root: Node, created: list[Node]) -> None:
    """block1_expand: explicit names without scopes."""
    _place(root, "stored", _scope_names(rng, ""), ())
    for node in root.layers():
        node.stored = ("_".join(node.stored),)


def _objects(rng: random.Random, root: Node, created: list[Node]) -> None:
    """Attributes; some blocks in lists."""
    _place(root, "stored", _list_names(rng) if rng.random() < 0.5 else _scope_names(rng, "_"), ())


_NAMED = {
    "automatic": _automatic,
    "scoped": _scoped,
    "nested": _nested,
    "flat": _flat,
    "objects": _objects,
    "graph": _automatic,
}

Naming = Callable[[Node, int, int], tuple[str, ...]]
"""Node, its number among those of its role in one block, and how many these are -> its name in the block."""


def _place(node: Node, side: str, naming: Naming, above: tuple[str, ...]) -> None:
    """Give all layers below a node their paths on one side."""
    roles = [item.role for item in node.items]
    for at, item in enumerate(node.items):
        path = (*above, *naming(item, roles[:at].count(item.role), roles.count(item.role)))
        if item.items:
            _place(item, side, naming, path)
        else:
            setattr(item, side, path)


def _scope_names(rng: random.Random, separator: str) -> Naming:
    start = rng.choice((0, 1))

    def naming(node: Node, number: int, count: int) -> tuple[str, ...]:
        return (f"{node.role}{separator}{number + start}" if count > 1 else node.role,)

    return naming


def _list_names(rng: random.Random) -> Naming:
    return lambda node, number, count: (f"{node.role}s", str(number)) if count > 1 else (node.role,)


def _name_modules(rng: random.Random, root: Node, convention: str) -> None:
    if convention == "roles":
        _place(root, "module", _list_names(rng) if rng.random() < 0.5 else _scope_names(rng, ""), ())
    elif convention == "flat":
        _place(root, "module", _scope_names(rng, ""), ())
        for node in root.layers():
            node.module = ("_".join(node.module),)
    elif convention == "words":
        names = list(MEANINGLESS)
        rng.shuffle(names)
        for at, node in enumerate(root.layers()):
            node.module = (names[at % len(names)] + str(at // len(names) or ""),)
    else:
        _place_by_kind(rng, root, indexes=convention == "indexes", above=())


def _place_by_kind(rng: random.Random, node: Node, *, indexes: bool, above: tuple[str, ...]) -> None:
    """conv1, bn1, conv2, bn2; or 0, 1, 3: with gaps for layers without weights."""
    counts: dict[str, int] = {}
    index = 0
    for item in node.items:
        if indexes:
            name = str(index)
            index += rng.choice((1, 2))
        else:
            short = rng.choice(SHORT[item.kind][:1]) if not item.items else "block"
            short = "shortcut" if item.role == "shortcut" else short
            counts[short] = counts.get(short, 0) + 1
            name = f"{short}{counts[short]}"
        if item.items:
            _place_by_kind(rng, item, indexes=indexes, above=(*above, name))
        else:
            item.module = (*above, name)


# Models that people have, with names that people give.


def known_model(name: str, *, by_objects: bool) -> Architecture:
    """Return "mlp", "mobilenet", "resnet", "tagger" or "transformer"."""
    domain, width, root = _KNOWN[name]()
    layers = list(root.layers())
    for node in layers if by_objects else ():
        if any(other.stored[: len(node.stored)] == node.stored for other in layers if other is not node):
            node.stored = (*node.stored, "layer")  # a layer of Keras gets no further attributes
    return Architecture(domain, width, root, by_objects, False, list(range(len(layers))), not by_objects, ("", ""))


def _named_layer(kind: str, stored: str, module: str, *sizes: int) -> Node:
    return Node(kind, kind, sizes, stored=tuple(stored.split("/")), module=tuple(module.split(".")))


def _mlp() -> tuple[str, int, Node]:
    sizes = (4, 6, 6, 6, 3)
    items = [
        _named_layer("dense", f"mlp/dense_{at}" if at else "mlp/dense", f"fc{at + 1}", *sizes[at : at + 2])
        for at in range(4)
    ]
    return "vector", 4, Node("chain", "model", items=items)


def _mobilenet() -> tuple[str, int, Node]:
    items = [
        _named_layer("conv", "MobilenetV1/Conv2d_0", "stem.0", 3, 4, 3),
        _named_layer("batchnorm", "MobilenetV1/Conv2d_0/BatchNorm", "stem.1", 4),
    ]
    for at, (width, out) in enumerate(((4, 6), (6, 6), (6, 6), (6, 8))):
        stored, module = f"MobilenetV1/Conv2d_{at + 1}", f"blocks.{at}"
        items += [
            _named_layer("depthwise", f"{stored}_depthwise", f"{module}.dw", width),
            _named_layer("batchnorm", f"{stored}_depthwise/BatchNorm", f"{module}.dw_bn", width),
            _named_layer("conv", f"{stored}_pointwise", f"{module}.pw", width, out, 1),
            _named_layer("batchnorm", f"{stored}_pointwise/BatchNorm", f"{module}.pw_bn", out),
        ]
    items.append(_named_layer("dense", "MobilenetV1/Logits", "classifier", 8, 5))
    return "image", 3, Node("chain", "model", items=items)


def _resnet() -> tuple[str, int, Node]:
    items = [
        _named_layer("conv", "resnet/stem/conv", "conv1", 3, 4, 3),
        _named_layer("batchnorm", "resnet/stem/bn", "bn1", 4),
    ]
    for stage, (inputs, outputs) in enumerate(((4, 4), (4, 6), (6, 8), (8, 10)), 1):
        for block in (0, 1):
            width = inputs if block == 0 else outputs
            stored, module = f"resnet/stage{stage}/block{block}", f"layer{stage}.{block}"
            chain = [
                _named_layer("conv", f"{stored}/conv1", f"{module}.conv1", width, outputs, 3),
                _named_layer("batchnorm", f"{stored}/bn1", f"{module}.bn1", outputs),
                _named_layer("conv", f"{stored}/conv2", f"{module}.conv2", outputs, outputs, 3),
                _named_layer("batchnorm", f"{stored}/bn2", f"{module}.bn2", outputs),
            ]
            if width != outputs:
                shortcut = [
                    _named_layer("conv", f"{stored}/shortcut/conv", f"{module}.downsample.0", width, outputs, 1),
                    _named_layer("batchnorm", f"{stored}/shortcut/bn", f"{module}.downsample.1", outputs),
                ]
                chain = [Node("chain", "shortcut", items=shortcut), *chain]
            items.append(Node("residual", "block", items=chain, has_shortcut=width != outputs))
    items.append(_named_layer("dense", "resnet/logits", "fc", 10, 5))
    return "image", 3, Node("chain", "model", items=items)


def _tagger() -> tuple[str, int, Node]:
    items = [
        _named_layer("embedding", "tagger/embedding", "embed", 11, 4),
        _named_layer("bilstm", "tagger/bidirectional", "encoder.lstm", 4, 3),
        _named_layer("lstm", "tagger/lstm", "decoder.lstm", 6, 5),
        _named_layer("dense", "tagger/tags", "out", 5, 7),
    ]
    return "sequence", 4, Node("chain", "model", items=items)


def _encoder() -> tuple[str, int, Node]:
    items = [_named_layer("embedding", "encoder/embedding", "tok_emb", 11, 4)]
    for at in range(3):
        stored, module = f"encoder/layer_{at}", f"layers.{at}"
        mlp = [
            _named_layer("dense", f"{stored}/ffn_1", f"{module}.linear1", 4, 4),
            _named_layer("dense", f"{stored}/ffn_2", f"{module}.linear2", 4, 4),
        ]
        attention = _named_layer("attention", f"{stored}/self_attention", f"{module}.self_attn", 4, 2)
        items += [
            Node("residual", "attention", items=[attention]),
            _named_layer("layernorm", f"{stored}/norm_1", f"{module}.norm1", 4),
            Node("residual", "mlp", items=mlp),
            _named_layer("layernorm", f"{stored}/norm_2", f"{module}.norm2", 4),
        ]
    items.append(_named_layer("dense", "encoder/head", "head", 4, 3))
    return "sequence", 4, Node("chain", "model", items=items)


_KNOWN = {"mlp": _mlp, "mobilenet": _mobilenet, "resnet": _resnet, "tagger": _tagger, "transformer": _encoder}
