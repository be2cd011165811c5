"""Regular expressions mean what they mean in RE2, or are refused."""

import math

import numpy as np
import pytest
from op_inputs import Results
from op_inputs import strings as s
from op_rows import check, operations, row

from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.graph_ops.registry import OPS
from torch_tfckpt.graph_ops.regular_expressions import compiled

TEXTS = s(
    [
        b"",
        b"a",
        b"aaa",
        b"abcabc",
        b"Hello, World! 42",
        b"one two\nthree\n",
        b"x\n",
        b"a.b-c_d",
        b"caf\xc3\xa9 \xe2\x82\xac",
        b"\xff\xfe",
        b"\t\v \f",
        b"AbC",
        b"{,3} {} a{2}",
        b"[x] ] -",
        b"\\ $ ^",
        b"12-34-56",
    ]
)
PATTERNS = [
    "a",
    "a*",
    "a+?",
    "b*",
    "",
    "^",
    "$",
    "^a|c$",
    "(?m)^t",
    "(?m)$",
    "x$",
    "x\\z",
    "\\s",
    "\\S+",
    "[\\s]",
    "\\d+",
    "\\D",
    "\\w+",
    "\\W",
    "\\bt",
    "\\B",
    ".",
    "(?s).",
    "..",
    "(?i)abc",
    "a(?i)b",
    "(?i:B)c",
    "(?i)h|w",
    "(a)(b)?",
    "(?P<x>b)(c)",
    "(?<y>b)",
    "(?:ab)+",
    "a{2}",
    "a{2,}",
    "a{1,2}?",
    "{,3}",
    "a{",
    "{}",
    "[a-c]+",
    "[^a-c]",
    "[]x]",
    "[^]x]",
    "[a\\-c]",
    "[-a]",
    "[a-]",
    "[\\]x]",
    "[[:alpha:]]+",
    "[[:^alpha:]]",
    "[[:space:][:punct:]]",
    "\\Qa.b\\E",
    "\\Q$",
    "\\x61",
    "\\x{20AC}",
    "\\x{110000}",
    "\\141",
    "\\a",
    "\\v",
    "\\t|\\n",
    "\\A.",
    "\\Z",
    "(",
    ")",
    "(?=a)",
    "(?!a)",
    "(?<=a)b",
    "(?P=x)",
    "(?#c)",
    "\\1",
    "(a)\\1",
    "a**",
    "a*+",
    "a++",
    "a?+",
    "*",
    "+a",
    "a|*",
    "(?P<x>a)(?P<x>b)",
    "a{1001}",
    "a{2,1}",
    "[b-a]",
    "[",
    "[a",
    "[]",
    "\\",
    "[[:foo:]]",
    "\u00e9",
    "[\u00e9\u20ac]",
    "caf.",
    "\\pL",
    "\\C",
    "(?U)a+",
    "(?-s).",
    "(?i)\u00c9",
    "a||b",
    "(|a)+",
    "^*",
    "(?i",
    "(?z)a",
    "\\_",
    "\\-",
    "[!\"#$%&()\\*\\+,-\\./:;<=>?@\\[\\\\\\]^_`{|}~\\']",
    "a(?i)b|C",
    "x*",
    "(a|ab)(c|bcd)",
    "[a&&b]",
    "[a--c]",
    "[a||b]",
    "[\\x{20}-a]",
    "(?m)(x)$",
    "\\.",
    "$a",
    "a^",
    "(?s-m:.)$",
    "\\b",
    "[\\d\\-x]",
    "[\\w.]+",
    "[\\D]",
    "a{0}",
    "(?i)K",
    "(?i)[k-s]+",
]
# Patterns with which `re` may take 2^n steps, or more than n^2, with two groups each.
CHOOSING = [
    "()(a+)+$",
    "((a|b|ab)*)c",
    "((a?){3})a{3}",
    "(.*)(b)",
    "(.*?)([-, ])",
    "(\\S+)[.](\\S+)",
    "((a*)*)",
    "((a*)+)c",
    "((a*?)*)",
    "((|a)+)b",
    "((a|)+)b",
    "((a|b)*c)*",
    "(a|(aa))*?b",
    "((b+b+)+)c",
    "((ab?)*?)(?:c|$)",
    "(a{1,2}){2}(b)?",
    "((a??b)*)",
    "(\\b\\w+\\b)*(\\W)",
    "((?i:A|ab)*)(B)",
    "(^|a)*(b)",
    "((?m)^[a-z ]*$)(\\n)",
    "([^,]*,?)*([!])",
    "(\\w+\\s?)*(\\d)",
    "((\x61|\u00e9|f)*)",
    "(a){2,}|(b)*",
    "((a*){2,3})",
    "((a{2}|a)*?)(b|$)",
    "(a|b(c)?)*",
]
LONG = s([b"a" * 2000 + b"!", b"ab" * 1000 + b"c", b"one two " * 200 + b"3", b"x"])
UNSUPPORTED = ["\\B", "\\pL", "\\C", "(?U)a+", "(?i)\u00c9", "[[:^alpha:]]", "a(?i)b|C"]
SUPPORTED = [pattern for pattern in PATTERNS if pattern not in UNSUPPORTED]

ROWS = [
    *(row("StaticRegexReplace", TEXTS, pattern=pattern, rewrite="<\\0>") for pattern in SUPPORTED),
    *(
        row("StaticRegexReplace", TEXTS, pattern=pattern, rewrite="-", replace_global=False)
        for pattern in ("a", "", "b*", "$", "\\w+")
    ),
    *(row("StaticRegexFullMatch", TEXTS, pattern=pattern) for pattern in (*SUPPORTED, "(?s).*", "a|aaa", "x", "a*?")),
    *(
        row("StaticRegexReplace", TEXTS, pattern="(b)(c)?|(a)", rewrite=rewrite)
        for rewrite in ("\\1\\2", "[\\3]", "\\\\", "\\4", "\\x", "\\", "$1", "\u00e9", "")
    ),
    *(row("StaticRegexReplace", TEXTS, pattern=pattern, rewrite="<\\0|\\1|\\2>") for pattern in CHOOSING),
    *(row("StaticRegexFullMatch", TEXTS, pattern=pattern) for pattern in CHOOSING),
    *(row("StaticRegexReplace", LONG, pattern=pattern, rewrite="<\\2>") for pattern in CHOOSING),
    *(
        row("StaticRegexReplace", TEXTS, pattern=pattern, rewrite="-")
        for pattern in ("(a{100}){10}", "(a{100}){11}", "((a{2}){20}){30}", "(a{1001,})", "(?:a{31}){1,33}")
    ),
    row("RegexReplace", TEXTS, s(b"[a-c]"), s(b"\\0\\0")),
    row("RegexReplace", TEXTS, s(b"[a-c]"), s(b"x"), replace_global=False),
    row("RegexReplace", TEXTS, s([b"a"]), s(b"x")),
    row("RegexReplace", TEXTS, s(b"("), s(b"x")),
    row("RegexReplace", TEXTS.reshape(4, 4), s(b"\xe9"), s(b"x")),
    row("RegexFullMatch", TEXTS.reshape(4, 4), s(b"a+")),
    row("RegexFullMatch", s(b"abc"), s(b"a.c")),
    row("RegexFullMatch", TEXTS, s([b"a"])),
    row("StaticRegexReplace", np.zeros((0, 2), dtype=object), pattern="a", rewrite=""),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Equal to TensorFlow; what RE2 refuses is refused."""
    check(name, results)


@pytest.mark.parametrize("pattern", UNSUPPORTED)
def test_unsupported(pattern: str) -> None:
    """What `re` cannot express raises UnimplementedError, and is not taken as something else."""
    with pytest.raises(UnimplementedError):
        OPS["StaticRegexFullMatch"].function(s([b"a"]), pattern=pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+$", b"a" * 3000 + b"!"),
        ("(x+x+)+y", b"x" * 3000),
        ("(.*)*[|]", b"a" * 3000),
        ("(a|a)*[|]", b"a" * 3000),
        ("(a|b|ab)*c", b"ab" * 2000),
        ("a?" * 200 + "a" * 200, b"a" * 200),
        ("((a?){20}){20}b", b"a" * 400),
        ("\\s*" * 20 + "x", b" " * 1000),
        ("(.*),(.*),(.*),(.*);", b"," * 1000),
        ("(?:a|aa)+?;", b"a" * 3000),
        ("[a-z]+[0-9]", b"a" * 100_000),
    ],
)
def test_no_pattern_takes_long(pattern: str, text: bytes) -> None:
    """Patterns for which `re` would take 2^n steps, or a high power of n. The texts are too long to wait for those."""
    found = OPS["StaticRegexReplace"].function(s([text, b"-"]), pattern=pattern, rewrite="")
    assert found[1] == b"-"
    assert not OPS["StaticRegexFullMatch"].function(s([text + b"\n"]), pattern=pattern).any()


def test_too_many_parts() -> None:
    """Repetitions of a pattern that needs all of them to be followed do not decide how much memory is taken."""
    with pytest.raises(UnimplementedError, match="parts, counting those of each repetition"):
        OPS["StaticRegexFullMatch"].function(s([b"a"]), pattern="(" + "(a|a)" * 50 + "){1000}")


@pytest.mark.parametrize(
    ("pattern", "exponent"),
    [
        ("[^a-z]+", 1),
        ("\\s+", 1),
        ("[[:punct:]]", 1),
        ("(?i)<br ?/?>", 1),
        ("(\\w+)\\s*", 2),
        ("^\\s+|\\s+$", 2),
        ("https?://\\S+", 2),
        ("\\d+(,\\d+)*", 2),
        ("<[^>]+>", 2),
        ("'s|'t|'re| ?[a-z]+| ?[0-9]+|\\s+", 2),
        (".*foo", 3),
        ("(a+)+", math.inf),
        ("(a|ab)*c", math.inf),
    ],
)
def test_steps_are_known(pattern: str, exponent: float) -> None:
    """Patterns that are usual for vocabularies are not followed in all ways, which is slower."""
    assert compiled(pattern.encode()).exponent == exponent
