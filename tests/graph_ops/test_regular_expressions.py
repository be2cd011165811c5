"""Regular expressions mean what they mean in RE2, or are refused."""

import numpy as np
import pytest
from op_inputs import Results
from op_inputs import strings as s
from op_rows import check, operations, row

from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.graph_ops.registry import OPS

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
