"""Names of layers as words and numbers, so that names of different programs can be compared.

    bert/encoder/layer_3/attention   words bert, encoder, block, attention   numbers 3
    encoder.layer.3.attn             words encoder, block, attention         numbers 3
    conv2d, conv2d_1                 words conv                              numbers 0, 1; automatic
    h0/ln_1                          words h, layernorm                      numbers 0, 1

Contract: equal words mean the same to people who write models: abbreviations are spelled out ("fc", "linear" and
"dense"; "q" and "query"). Words that name containers ("layers", "model") are omitted, since they say nothing about a
layer. A family is a set of layers whose names have the same words and differ only in numbers. Numbers are automatic if
a program chose them: Keras and TensorFlow call the first layer of a class "dense" and the next "dense_1", in the order
in which they are created. Numbers that people chose give the order of the layers in the model.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_SEPARATORS: Final = re.compile(r"[/.]")
_PART: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d{1,9}")
_RANK: Final = re.compile(r"(?<=[a-z])[_]?[123][dD](?![a-z])")  # of conv2d, Conv2D, conv_2d
_PHRASES: Final = (
    ("layer with weights", "graphnode"),
    ("multi head attention", "attention"),
    ("self attention", "attention"),
    ("self attn", "attention"),
    ("batch normalization", "batchnorm"),
    ("batch norm", "batchnorm"),
    ("layer normalization", "layernorm"),
    ("layer norm", "layernorm"),
    ("group normalization", "groupnorm"),
    ("group norm", "groupnorm"),
    ("feed forward", "mlp"),
    ("time distributed", ""),
    ("p re lu", "prelu"),
    ("fully connected", "dense"),
)
_SYNONYMS: Final = {
    **dict.fromkeys(("fc", "linear", "lin", "dense"), "dense"),
    **dict.fromkeys(("conv", "convolution", "conv2d"), "conv"),
    **dict.fromkeys(("bn", "batchnorm"), "batchnorm"),
    **dict.fromkeys(("ln", "layernorm"), "layernorm"),
    **dict.fromkeys(("gn", "groupnorm"), "groupnorm"),
    **dict.fromkeys(("norm", "normalization"), "norm"),
    **dict.fromkeys(("emb", "embed", "embedding", "embeddings", "embedder"), "embedding"),
    **dict.fromkeys(("q", "query"), "query"),
    **dict.fromkeys(("k", "key"), "key"),
    **dict.fromkeys(("v", "value"), "value"),
    **dict.fromkeys(("out", "output", "o"), "output"),
    **dict.fromkeys(("attn", "att", "attention", "mha"), "attention"),
    **dict.fromkeys(("mlp", "ffn", "ff"), "mlp"),
    **dict.fromkeys(("proj", "projection", "project"), "projection"),
    **dict.fromkeys(("shortcut", "downsample", "skip"), "shortcut"),
    **dict.fromkeys(("dw", "depthwise"), "depthwise"),
    **dict.fromkeys(("pw", "pointwise"), "pointwise"),
    **dict.fromkeys(("layer", "block", "blocks", "stage", "stages", "unit", "units"), "block"),
    **dict.fromkeys(("fw", "fwd", "forward"), "forward"),
    **dict.fromkeys(("bw", "bwd", "backward"), "backward"),
    **dict.fromkeys(("enc", "encoder"), "encoder"),
    **dict.fromkeys(("dec", "decoder"), "decoder"),
    **dict.fromkeys(("cls", "classifier", "head", "logits", "predictions"), "classifier"),
    **dict.fromkeys(("pos", "position", "positional", "wpe"), "position"),
    **dict.fromkeys(("word", "words", "token", "tok", "tokens", "wte"), "word"),
}
# Containers, which say nothing about a layer.
_WITHOUT_MEANING: Final = frozenset(
    {"layers", "model", "module", "net", "network", "main", "root", "functional", "sequential", "operations", "the"}
)
# Words for kinds of layers, from which Keras and TensorFlow generate default names.
_KINDS: Final = frozenset(
    {
        *("dense", "conv", "transpose", "depthwise", "separable", "batchnorm", "layernorm", "groupnorm", "norm"),
        *("embedding", "lstm", "gru", "rnn", "simple", "bidirectional", "attention", "prelu", "cell", "graphnode"),
        *("rms", "unit", "einsum"),
    }
)
_BY_PROGRAM: Final = re.compile(r"\D*?(?:[_-]\d+)?")  # unlike "fc1" and "Conv2d_1_depthwise"
_NODE_LISTS: Final = ("_operations", "_layers")  # in which Keras lists the layers of a model


@dataclass(frozen=True, slots=True)
class NamePath:
    """A name, divided into parts.

    Attributes:
        words: The words of each part, without numbers.
        numbers: The numbers in each part.
        automatic: For each part, whether a program would number it like this.
    """

    words: tuple[tuple[str, ...], ...]
    numbers: tuple[tuple[int, ...], ...]
    automatic: tuple[bool, ...]

    @property
    def all_words(self) -> frozenset[str]:
        """The words of all parts of the name."""
        return frozenset(word for part in self.words for word in part)


@lru_cache(maxsize=65536)
def name_path(name: str) -> NamePath:
    """Return the parts of the name of a stored layer ("block1/conv_2") or of a module ("block1.conv2")."""
    parts = [part for part in _SEPARATORS.split(name) if part]
    read = [_words_and_numbers(part) for part in parts]
    automatic = tuple(
        _is_automatic(part, words, parts[at - 1] if at else "")
        for at, (part, (words, _)) in enumerate(zip(parts, read, strict=True))
    )
    return NamePath(tuple(words for words, _ in read), tuple(numbers for _, numbers in read), automatic)


def _is_automatic(part: str, words: Sequence[str], above: str) -> bool:
    """Return whether a program would number a part of a name like this: "dense_1", or "3" of "_operations/3"."""
    if part.isdigit():
        return above in _NODE_LISTS
    return bool(words) and set(words) <= _KINDS and bool(_BY_PROGRAM.fullmatch(_RANK.sub("", part)))


def _words_and_numbers(part: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    pieces = _PART.findall(_RANK.sub("", part))
    numbers = tuple(int(piece) for piece in pieces if piece.isdigit())
    text = f" {' '.join(piece.lower() for piece in pieces if not piece.isdigit())} "
    for phrase, word in _PHRASES:
        text = text.replace(f" {phrase} ", f" {word} ")
    words = (_SYNONYMS.get(word, word) for word in text.split())
    return tuple(word for word in words if word not in _WITHOUT_MEANING), numbers


Words = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Names that differ only in numbers, in the order of these numbers.

    Attributes:
        members: For each name, its index in the given names, and the numbers that differ.
        automatic: Whether a program chose the numbers.
        first_is_bare: Whether the first name has no number: "dense" before "dense_1".
    """

    members: tuple[tuple[int, tuple[int, ...]], ...]
    automatic: bool
    first_is_bare: bool


def families(names: Sequence[str]) -> list[Family]:
    """Return the families of names.

    A name without a number comes first: "dense" before "dense_1". Numbers that all names of a family share are omitted.
    """
    found: dict[Words, list[tuple[NamePath, int]]] = {}
    for index, name in enumerate(names):
        path = name_path(name)
        found.setdefault(path.words, []).append((path, index))
    return [_family(members) for members in found.values()]


def _family(members: Sequence[tuple[NamePath, int]]) -> Family:
    vectors: list[tuple[int, ...]] = [() for _ in members]
    automatic = bare = False
    for at in range(len(members[0][0].words)):
        given = [path.numbers[at] for path, _ in members]
        width = max(map(len, given))
        padded = [(*numbers, *(0,) * (width - len(numbers))) for numbers in given]
        varying = [slot for slot in range(width) if len({numbers[slot] for numbers in padded}) > 1]
        if varying:
            bare |= any(len(numbers) < width for numbers in given)
            automatic |= bare or any(path.automatic[at] for path, _ in members)
        vectors = [
            (*vector, *(numbers[slot] for slot in varying)) for vector, numbers in zip(vectors, padded, strict=True)
        ]
    ranked = ((index, vector) for vector, (_, index) in zip(vectors, members, strict=True))
    return Family(tuple(sorted(ranked, key=lambda member: (member[1], member[0]))), automatic, bare)


def dense_ranks(vectors: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return sorted vectors with each number replaced by its rank among numbers after the same prefix.

    (1, 1), (1, 2), (3, 1) become (0, 0), (0, 1), (1, 0): sequences that are numbered alike have equal ranks.
    """
    vectors = list(vectors)
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for vector in vectors:
        for at, number in enumerate(vector):
            children.setdefault(vector[:at], {})[number] = None
    ranks = {start: {number: rank for rank, number in enumerate(sorted(seen))} for start, seen in children.items()}
    return [tuple(ranks[vector[:at]][number] for at, number in enumerate(vector)) for vector in vectors]
