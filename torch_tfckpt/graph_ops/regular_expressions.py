r"""Regular expressions of RE2.

The pattern is translated for Python's `re`. Both search for the leftmost match and prefer alternatives from left to
right. Text is UTF-8; bytes that are not match nothing.

RE2 takes a number of steps proportional to the text; `re` may take 2^n of them. So `re` is used while its steps for a
text of n characters are known to be few, and otherwise all ways are followed at the same time, which is slower for
each character. Steps of `re` at worst:

    one repetition             [^a-z]+, \s+, foo               n         always `re`
    next character decides     (\w+)\s*, \d+(,\d+)*, <[^>]+>    n^2       `re` up to 10,000 characters
    d repetitions overlap      .*foo, \S+@\S+                  n^(d+2)   `re` for short strings: 464 characters, 100
    choices are repeated       (a+)+, (a|b|ab)*, (a?){9}       2^n       never `re`

Never either where nothing is repeated, as in (a*)*: its groups differ in `re`.

To replace all matches takes n^2 steps at worst, in RE2 as well, for patterns such as `a(.*b)?` in "aaaa". That is
harmless for strings of usual lengths.

Source: RE2::GlobalReplace in re2/re2.cc.
"""

import functools
import math
import re
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.graph_ops.linear_matching import LinearMatcher
from torch_tfckpt.graph_ops.pattern_trees import choices, reads_once, tree_of
from torch_tfckpt.graph_ops.re2_syntax import translated
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.text_arrays import as_text, elements, mapped, single
from torch_tfckpt.graph_ops.values import Strings, Tensor
from torch_tfckpt.text import quoted

_MAX_PATTERN: Final = 1 << 16
_FEW_WAYS: Final = math.log2(64)
_MAX_STEPS: Final = math.log2(100_000_000)  # of `re`: at most some seconds


class BoundedPattern:
    """A pattern that is matched in a bounded number of steps.

    Args:
        tokens: The pattern, translated for `re`.

    Attributes:
        groups: The number of its groups.
        exponent: `re` takes at most n^exponent steps for n characters, besides a factor.
    """

    def __init__(self, tokens: list[str]) -> None:
        self._pattern = re.compile("".join(tokens), re.ASCII)
        self._tree, self.groups = tree_of(tokens)
        ways, degree = choices(self._tree, 0, False)
        self._ways = math.log2(ways)
        self.exponent = degree + (1 if reads_once(self._tree) else 2)

    def search(self, text: str, at: int = 0) -> list[tuple[int, int]] | None:
        """Return where the first match and its groups begin and end; (-1, -1) for a group that is not part of it."""
        found = self._pattern if self._is_fast(text) else self._linear
        match = found.search(text, at)
        return None if match is None else [match.span(group) for group in range(self.groups + 1)]

    def matches_fully(self, text: str) -> bool:
        if self._is_fast(text):
            return self._pattern.fullmatch(text) is not None
        return self._linear.matches_fully(text)

    def _is_fast(self, text: str) -> bool:
        if self.exponent == 1 and self._ways <= _FEW_WAYS:
            return True
        return self._ways + self.exponent * math.log2(len(text) + 2) <= _MAX_STEPS

    @functools.cached_property
    def _linear(self) -> LinearMatcher:
        return LinearMatcher(self._tree, self.groups)


@functools.lru_cache(256)
def compiled(pattern: bytes) -> BoundedPattern:
    """Return a pattern of RE2 as one for text that `decoded` returns.

    Raises:
        InvalidArgumentError: RE2 does not accept it.
        UnimplementedError: it has something that `re` lacks.
    """
    try:
        text = pattern.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"Invalid pattern: {pattern!r}, error: invalid UTF-8") from error
    if len(text) > _MAX_PATTERN:
        raise UnimplementedError(f"a pattern of {len(text)} characters")
    try:
        return BoundedPattern(translated(text))
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidArgumentError(f"Invalid pattern: {quoted(text)}, error: {error}") from error


def decoded(text: bytes) -> str:
    """Return UTF-8 as text; each byte that is not UTF-8 becomes one character."""
    return text.decode("utf-8", "surrogateescape")


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _replaced(text: str, pattern: BoundedPattern, rewrite: str, everywhere: bool) -> str:
    parts, is_valid = _rewrite_parts(rewrite)
    if not is_valid and not everywhere:
        return text
    if any(isinstance(part, int) and part > pattern.groups for part in parts):
        return text  # RE2 refuses to replace
    found: list[str] = []
    at, last = 0, -1
    while at <= len(text):
        match = pattern.search(text, at)
        if match is None:
            break
        begin, end = match[0]
        found.append(text[at:begin])
        if begin == last and begin == end:
            # An empty match directly behind another one does not count.
            found.append(text[last : last + 1])
            at = last + 1
            continue
        found.extend(part if isinstance(part, str) else text[slice(*match[part])] for part in parts)
        at = last = end
        if not everywhere:
            break
    return "".join([*found, text[at:]])


@functools.lru_cache(256)
def _rewrite_parts(rewrite: str) -> tuple[list[str | int], bool]:
    """Return what replaces a match, strings and numbers of groups, and whether `rewrite` was understood to its end."""
    parts: list[str | int] = []
    at = 0
    while at < len(rewrite):
        if rewrite[at] != "\\":
            end = rewrite.find("\\", at)
            end = len(rewrite) if end < 0 else end
            parts.append(rewrite[at:end])
            at = end
            continue
        following = rewrite[at + 1 : at + 2]
        if following == "\\":
            parts.append("\\")
        elif following.isascii() and following.isdigit():
            parts.append(int(following))
        else:
            return parts, False  # RE2 logs it, and goes on
        at += 2
    return parts, True


def _replace(strings: Strings, pattern: bytes, rewrite: bytes, everywhere: bool) -> Strings:
    found, text = compiled(pattern), decoded(rewrite)
    return mapped(strings, lambda each: encoded(_replaced(decoded(each), found, text, everywhere)))


@op("StaticRegexReplace")
def static_regex_replace(input: Strings, *, pattern: str, rewrite: str, replace_global: bool = True) -> Strings:
    return _replace(input, as_text(pattern), as_text(rewrite), replace_global)


@op("RegexReplace")
def regex_replace(input: Strings, pattern: Strings, rewrite: Strings, *, replace_global: bool = True) -> Strings:
    return _replace(input, single(pattern, "pattern"), single(rewrite, "rewrite"), replace_global)


@op("StaticRegexFullMatch")
def static_regex_full_match(input: Strings, *, pattern: str) -> Tensor:
    return _full_match(input, as_text(pattern))


@op("RegexFullMatch")
def regex_full_match(input: Strings, pattern: Strings) -> Tensor:
    return _full_match(input, single(pattern, "pattern"))


def _full_match(strings: Strings, pattern: bytes) -> Tensor:
    found = compiled(pattern)
    results = [found.matches_fully(decoded(each)) for each in elements(strings)]
    return torch.tensor(results, dtype=torch.bool).reshape(strings.shape)
