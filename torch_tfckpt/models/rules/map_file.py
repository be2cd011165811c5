r"""Map files: the rules of a KeyMapper as TOML.

    [[rule]]
    module = 'bert/encoder/layer_(\d+)/attention/self/query'
    to = 'encoder.layer.\1.attention.self.query'

    [[rule]]
    join = ['q/kernel', 'k/kernel', 'v/kernel']
    to = 'c_attn.weight'
    axis = 1
    layout = "same"

    [tables]
    norm = { gamma = "weight", beta = "bias" }

    [[rule]]
    pattern = '(?P<scope>.*)/unit_(\d+)/norm/(\w+)'
    to = 'layer.\g<2-1>.norm.\g<3:norm>'

Each rule has one of `name`, `pattern`, `module`, `join` and `fill`, a target `to`, and options. `base = "bert"` before
the first rule is the name of the base model in the targets (see `base_module`). Contract: anything
wrong with a file raises an error that names the file and the number of the rule, counted from 1, and shows an example
that works. Files that are too large, or have keys of too many parts, are refused, so that reading takes a second at
most.

Source: TOML 1.0, https://toml.io/en/v1.0.0.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from torch_tfckpt.errors import DataLossError, IncompleteSaveError, InvalidArgumentError, UnimplementedError
from torch_tfckpt.models.rules.key_rules import CheckedRule, KeyRule, check_rule, pattern_text, source_text
from torch_tfckpt.models.rules.target_templates import Table, TargetTemplate, as_template
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.storage.small_files import read_small, write_file
from torch_tfckpt.text import did_you_mean, escaped, printable, quoted, shortened

_LARGEST: Final = 4 << 20  # bytes of a file
_DOTS: Final = 8  # dots on one line, outside strings: tomllib takes quadratic time for a key of many parts
_KINDS: Final = ("name", "pattern", "module", "join")
_OPTIONS: Final = ("axis", "sizes", "fill", "add", "optional", "alias")
_KEYS: Final = (*_KINDS, "to", "layout", *_OPTIONS)
_EXAMPLES: Final = {
    "name": 'name = "dense/kernel"\n  to = "fc.weight"',
    "pattern": "pattern = 'layer_(\\d+)/kernel'\n  to = 'layers.\\1.weight'",
    "module": "module = 'layer_(\\d+)/query'\n  to = 'layers.\\1.query'",
    "join": "join = ['q/kernel', 'k/kernel', 'v/kernel']\n  to = 'in_proj_weight'\n  layout = \"dense\"",
    "fill": 'fill = 1.0\n  to = "norm.weight"',
}
_TABLE_EXAMPLE: Final = '[tables]\n  norm = { gamma = "weight", beta = "bias" }'
# The next string, comment or dot. An unclosed string is left to the TOML parser, which reports it.
_TOKEN: Final = re.compile(r"\"\"\"|'''|\"|'|#|\.|\n")
_ENDS: Final = {
    '"""': re.compile(r'\\.|"""', re.DOTALL),
    "'''": re.compile(r"'''"),
    '"': re.compile(r'\\.|"|\n'),
    "'": re.compile(r"'|\n"),
    "#": re.compile(r"\n"),
}
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


class MapFile(NamedTuple):
    """Contents of a map file."""

    place: str  # name of the file, for messages
    rules: list[CheckedRule]
    base: str = ""


def read_map_file(path: AnyPath) -> MapFile:
    """Return the contents of a map file.

    Raises:
        InvalidArgumentError: the file or a rule is not valid.
        NotFoundError: there is no such file.
    """
    location = fspath(path)
    place = printable(location)
    try:
        contents = read_small(storage_of(location), location, _LARGEST, "a map file")
    except DataLossError as error:
        raise InvalidArgumentError(str(error)) from error
    return parse_map_file(place, contents)


def parse_map_file(place: str, contents: bytes) -> MapFile:
    """Parse the contents of a map file; `place` is its name for messages.

    Raises:
        InvalidArgumentError: the contents or a rule are not valid.
    """
    try:
        text = contents.decode("utf-8-sig").replace("\r\n", "\n")
        _check_keys(text)
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, an integer of too many digits
        why = "it is nested too deeply" if isinstance(error, RecursionError) else shortened(str(error)).strip("'\"")
        raise InvalidArgumentError(f"{place} is not a map file in TOML: {why}. {_example('name')}") from error
    _check_known(place, document, ["base", "tables", "rule"])
    base = document.get("base", "")
    if not isinstance(base, str):
        raise InvalidArgumentError(f'{place}: base = {shortened(base)} is not a name. Write one such as base = "bert"')
    words = _words(place, document.get("tables", {}))
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InvalidArgumentError(f"{place}: rule is not an array of tables. {_example('name')}")
    return MapFile(
        place, [_rule(f"{place}: rule {number}", table, words) for number, table in enumerate(tables, 1)], base
    )


def _words(place: str, tables: object) -> dict[str, Table]:
    """Return the tables that translate words. Raises InvalidArgumentError for invalid tables."""
    found: dict[str, Table] = {}
    for name, table in tables.items() if isinstance(tables, dict) else ():
        words = {str(number): word for number, word in enumerate(table)} if isinstance(table, list) else table
        if (
            re.fullmatch(r"\w+", name)
            and isinstance(words, dict)
            and all(isinstance(each, str) for each in words.values())
        ):
            found[name] = words
    if not isinstance(tables, dict) or len(found) < len(tables):
        raise InvalidArgumentError(
            f"{place}: the entries of [tables] are not tables or lists of strings. Example:\n  {_TABLE_EXAMPLE}"
        )
    return found


def rule_text(rule: CheckedRule) -> str:
    """Return one rule as a table of a map file. Raises UnimplementedError if it contains a function."""
    return "[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in _table(rule))


def map_text(rules: Iterable[CheckedRule], comments: Mapping[str, str], base: str = "") -> str:
    """Return the contents of a map file.

    Args:
        comments: `source_text` of a rule -> comment, written once before consecutive rules that share it.
    """
    rules = list(rules)
    found = [*([f"base = {_string(base)}\n"] if base else []), *_table_blocks(rules)]
    last = ""
    for rule in rules:
        comment = comments.get(source_text(rule.source), "")
        lines = f"# {escaped(comment, 1000)}\n" if comment and comment != last else ""
        found.append(lines + rule_text(rule))
        last = comment
    return "\n".join(found)


def write_map_file(path: AnyPath, rules: Iterable[CheckedRule], comments: Mapping[str, str], base: str = "") -> None:
    """Write rules to a map file. Raises as `KeyMapper.to_file` describes."""
    location = fspath(path)
    text = map_text(rules, comments, base)
    try:
        contents = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{printable(location)}: {quoted(text[error.start])} is not a character") from error
    if len(contents) > _LARGEST:
        raise InvalidArgumentError(
            f"{printable(location)}: the rules take {len(contents)} bytes, but a map file may have at most {_LARGEST}. "
            f"Write patterns instead of names"
        )
    try:
        write_file(storage_of(location), location, contents)
    except OSError as error:
        raise IncompleteSaveError(f"{printable(location)}: {error}. The rules were not written") from error


def _rule(place: str, table: Mapping[str, object], words: Mapping[str, Table]) -> CheckedRule:
    _check_known(place, table, _KEYS)
    kinds = [kind for kind in _KINDS if kind in table]
    if len(kinds) + ("fill" in table) != 1:
        given = " and ".join([*kinds, *(["fill"] if "fill" in table else [])]) or "none"
        raise InvalidArgumentError(
            f"{place} needs one of name, pattern, module, join and fill, and has {given}. {_all()}"
        )
    kind = kinds[0] if kinds else "fill"
    example = _example(kind)
    if "to" not in table:
        raise InvalidArgumentError(f'{place} has no target. Write to = "" to omit what matches. {example}')
    _check_strings(place, table, kind)
    axis = "axis" in table or "sizes" in table
    if axis and kind != "join" and not isinstance(table["to"], list):
        raise InvalidArgumentError(f"{place} neither joins nor splits, so it cannot have axis or sizes. {example}")
    layout = table.get("layout")
    if layout is not None and not isinstance(layout, str | list | dict):
        raise InvalidArgumentError(f'{place}: {shortened(layout)} is not a layout. Write one such as "dense"')
    if layout is not None and not layout:
        raise InvalidArgumentError(f'{place}: the layout is empty. Write one such as "dense", or omit it')
    source = table.get(kind) if kind != "fill" else None
    to = table["to"]
    if kind not in ("name", "fill"):
        try:
            to = (
                [as_template(each, words) for each in to] if isinstance(to, list) else as_template(cast(str, to), words)
            )
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{place}: {error}. {example}") from error
    options: dict[str, Any] = {key: table[key] for key in _OPTIONS if key in table}
    rule = KeyRule(
        cast(Any, tuple(source) if isinstance(source, list) else source),
        cast(Any, tuple(to) if isinstance(to, list) else to),
        cast(Any, layout),
        **options,
        module=kind == "module",
        literal=kind == "name",
    )
    try:
        return check_rule(place, rule)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{str(error).rstrip('.')}. {example}") from error


def _check_strings(place: str, table: Mapping[str, object], kind: str) -> None:
    """Raise InvalidArgumentError if names, patterns or targets are not strings, or lists of strings where allowed."""
    for key in (kind, "to"):
        value = table[key]
        if key == "fill":
            continue
        strings = isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)
        if strings and (key == "join" or (key == "to" and kind in ("name", "pattern", "fill"))):
            continue
        if not isinstance(value, str) or key == "join":
            wanted = "a list of strings" if key == "join" else "a string"
            raise InvalidArgumentError(f"{place}: {key} = {shortened(value)} is not {wanted}. {_example(kind)}")


def _check_known(place: str, table: Mapping[str, object], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            words = [f"{place}: unknown key {quoted(key)}.", did_you_mean(key, known), f"Keys: {', '.join(known)}."]
            raise InvalidArgumentError(" ".join(filter(None, [*words, _example("name")])))


def _check_keys(text: str) -> None:
    """Raise ValueError if a line has a key of too many parts."""
    dots, at = 0, 0
    while (token := _TOKEN.search(text, at)) is not None:
        at = token.end()
        kind = token[0]
        if kind == ".":
            dots += 1
            if dots > _DOTS:
                raise ValueError(f"line {text.count(chr(10), 0, at) + 1} has a key of more than {_DOTS} parts")
        elif kind == "\n":
            dots = 0
        else:
            end = next((end for end in _ENDS[kind].finditer(text, at) if not end[0].startswith("\\")), None)
            if end is None:
                return
            at = end.end() - (end[0] == "\n")
            if len(kind) == 3:  # a string in three quotes may itself end in one or two of them
                at += len(re.compile(f"{kind[0]}{{0,2}}").match(text, at)[0])  # type: ignore[index]


def _table_blocks(rules: Sequence[CheckedRule]) -> Iterator[str]:
    """Yield the tables that the targets of rules use, as TOML."""
    found: dict[str, Table] = {}
    for rule in rules:
        for target in rule.targets:
            for name, table in target.tables.items() if isinstance(target, TargetTemplate) else ():
                if found.setdefault(name, table) != table:
                    raise UnimplementedError(
                        f"{rule.place}: another table {quoted(name)} has different entries. Rename one"
                    )
    for name, table in found.items():
        yield f"[tables.{name}]\n" + "".join(f"{_string(key)} = {_string(value)}\n" for key, value in table.items())


def _table(rule: CheckedRule) -> Iterable[tuple[str, str]]:
    """Yield the keys of a rule and their values as TOML."""
    if rule.name is not None:
        yield "name", _string(rule.name)
    elif rule.is_join:
        patterns = [_literal(pattern_text(each)) for each in rule.sources if isinstance(each, re.Pattern)]
        yield "join", _list(patterns)
    elif rule.sources:
        assert isinstance(rule.source, re.Pattern)
        yield "module" if rule.is_module else "pattern", _literal(pattern_text(rule.source))
    else:
        yield "fill", repr(rule.fill)
    quote = _string if rule.name is not None or not rule.sources else _literal
    targets = []
    for target in rule.targets:
        if not isinstance(target, str | TargetTemplate):
            raise _is_function(rule, "target", target)
        targets.append(quote(target if isinstance(target, str) else target.text))
    yield "to", _list(targets) if len(targets) > 1 else (targets or ['""'])[0]
    if rule.layout is not None:
        yield "layout", _layout(rule)
    if rule.axis:
        yield "axis", str(rule.axis)
    if rule.sizes is not None:
        yield "sizes", _list([str(size) for size in rule.sizes])
    if rule.add:
        yield "add", repr(rule.add)
    if rule.optional:
        yield "optional", _string(rule.optional)
    if rule.is_alias:
        yield "alias", "true"


def _layout(rule: CheckedRule) -> str:
    layout = rule.layout
    if isinstance(layout, str):
        return _string(layout)
    if isinstance(layout, Mapping):
        items = [
            f"{name} = {_string(value) if isinstance(value, str) else repr(value)}" for name, value in layout.items()
        ]
        return f"{{ {', '.join(items)} }}"
    assert isinstance(layout, Sequence)
    for each in layout:
        if callable(each):
            raise _is_function(rule, "layout", each)
    return _list([str(axis) for axis in layout])


def _is_function(rule: CheckedRule, what: str, function: object) -> UnimplementedError:
    name = getattr(function, "__qualname__", repr(function))
    fix = "Write a pattern" if what == "target" else 'Write a pattern of axes, such as "in out -> out in"'
    return UnimplementedError(
        f"{rule.place}: the {what} is the function {quoted(name)}, which cannot be written to a file. {fix}, or build "
        f"the mapper in Python"
    )


def _list(items: Sequence[str]) -> str:
    line = f"[{', '.join(items)}]"
    return line if len(line) <= 100 else "[\n" + "".join(f"  {item},\n" for item in items) + "]"


def _string(text: str) -> str:
    """Return the text as a basic TOML string, with escapes."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _literal(text: str) -> str:
    """Return the text as a literal TOML string, without escapes, if possible; else as a basic string."""
    plain = "'" not in text and all(character.isprintable() for character in text)
    return f"'{text}'" if plain else _string(text)


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if character.isprintable() or 0xD800 <= code < 0xE000:
        return character
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _example(kind: str) -> str:
    return f"Example:\n  [[rule]]\n  {_EXAMPLES[kind]}"


def _all() -> str:
    return "Examples:" + "".join(f"\n  [[rule]]\n  {example}" for example in _EXAMPLES.values())
