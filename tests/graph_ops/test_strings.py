"""Operations on strings give the bytes that TensorFlow gives."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Results
from op_inputs import int32 as i32
from op_inputs import int64 as i64
from op_inputs import strings as s
from op_rows import check, operations, row

NO_ATTRIBUTES: dict[str, Any] = {}
NONE = np.zeros((0,), dtype=object)
WORDS = s(
    [b"Hello World", b"", b"  two  spaces ", b"\t\n\v\f\r tabs\r\n", b"caf\xc3\xa9", b"\xff\xfe", b"a,b,,c", b",x,"]
)
FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    3.14159265,
    1e-7,
    1e10,
    123456789.0,
    1e30,
    float("inf"),
    float("-inf"),
    float("nan"),
    1e5,
    0.1,
]

AS_STRING = [
    *(
        row("AsString", np.array(FLOATS, dtype), gradients=False, **attributes)
        for dtype in (np.float32, np.float64)
        for attributes in (
            NO_ATTRIBUTES,
            {"precision": 3},
            {"precision": 0},
            {"precision": 10},
            {"scientific": True},
            {"scientific": True, "precision": 2},
            {"shortest": True},
            {"shortest": True, "precision": 4},
            {"width": 12},
            {"width": 12, "fill": "0"},
            {"width": 12, "fill": "-"},
            {"width": 12, "fill": "+"},
            {"width": 12, "fill": " "},
            {"width": 12, "fill": "#", "precision": 0},
            {"width": 3, "precision": 1},
            {"width": 0},
            {"fill": "+"},
            {"fill": " "},
            {"width": 15, "fill": "0", "shortest": True},
            {"fill": "x"},
            {"fill": "00"},
            {"scientific": True, "shortest": True},
        )
    ),
    *(
        row("AsString", torch.tensor(FLOATS, dtype=dtype), gradients=False, **attributes)
        for dtype in (torch.float16, torch.bfloat16)
        for attributes in (NO_ATTRIBUTES, {"precision": 2, "width": 9}, {"shortest": True})
    ),
    *(
        row("AsString", np.array([0, 1, 5, 100, 127], dtype), **attributes)
        for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
        for attributes in (
            NO_ATTRIBUTES,
            {"width": 6},
            {"width": 6, "fill": "0"},
            {"width": 6, "fill": "+"},
            {"fill": " "},
        )
    ),
    *(
        row("AsString", np.array(values, dtype))
        for dtype, values in (
            (np.int64, [-(2**63), 2**63 - 1]),
            (np.int32, [-(2**31), -1]),
            (np.int8, [-128, -1]),
            (np.uint64, [2**64 - 1]),
            (np.uint32, [2**32 - 1]),
            (np.uint8, [255]),
        )
    ),
    row("AsString", np.array([1, -2], np.int32), width=6, fill="-"),
    row("AsString", np.array([1, -2], np.int32), width=6, fill="0"),
    row("AsString", np.array([1, -2], np.int32), precision=2),
    row("AsString", np.array([1, -2], np.int32), scientific=True),
    row("AsString", np.array([1, -2], np.int32), shortest=True),
    row("AsString", np.array([True, False])),
    row("AsString", np.array([True, False]), width=7),
    row("AsString", np.array(3, np.int32)),
    row("AsString", np.zeros((0, 3), np.int32)),
    row("AsString", np.arange(6, dtype=np.int64).reshape(2, 3), view=True),
    row("AsString", np.array([1 + 2j, -0.5j], np.complex64), gradients=False),
    row("AsString", np.array([1 + 2j, -0.5j], np.complex128), gradients=False, precision=2, width=7),
    row("AsString", WORDS),
    row("AsString", WORDS, precision=2),
    row("AsString", WORDS, scientific=True),
]

JOINS = [
    row("StringJoin", [s([b"a", b"b"]), s([b"c", b"d"])]),
    row("StringJoin", [s([b"a", b"b"]), s([b"c", b"d"])], separator="--"),
    row("StringJoin", [s([b"a", b"b"]), s(b"x"), s([b"c", b"\xff"])], separator=","),
    row("StringJoin", [s(b"a"), s(b"b"), s(b"")], separator="\u00e9"),
    row("StringJoin", [s([[b"a"], [b"b"]])]),
    row("StringJoin", [NONE, s(b"x")]),
    row("StringJoin", [s([b"a"]), s([b"c", b"d"])]),
    row("StringJoin", [s([[b"a", b"b"]]), s([b"c", b"d"])]),
    *(
        row("ReduceJoin", s([[[b"a", b"b"], [b"c", b"d"]], [[b"e", b"f"], [b"g", b"h"]]]), i32(axes), **attributes)
        for axes in (0, 1, 2, -1, [0, 1], [1, 0], [2, 0], [-1, -3], [0, 1, 2], [2, 1, 0], [], [0, 0], 3, [-4])
        for attributes in (NO_ATTRIBUTES, {"keep_dims": True, "separator": "."})
    ),
    row("ReduceJoin", np.zeros((2, 0), dtype=object), i32([1])),
    row("ReduceJoin", np.zeros((2, 0), dtype=object), i32([0])),
    row("ReduceJoin", s(b"a"), i32([])),
    row("ReduceJoin", s([b"a", b"b"]), i32([0]), separator="\u00e9"),
    *(
        row("UnsortedSegmentJoin", strings, ids, i32(count), separator=separator)
        for strings, ids, count, separator in (
            (s([b"a", b"b", b"c"]), i32([0, 1, 0]), 3, ","),
            (s([b"a", b"b", b"c"]), i64([2, -1, 2]), 3, ""),
            (s([[b"a", b"b"], [b"c", b"d"]]), i32([1, 1]), 2, "-"),
            (s([b"a"]), i32([3]), 2, ""),
            (NONE, i32([]), 2, ""),
        )
    ),
]

PARTS = [
    *(
        row(op, WORDS, **attributes)
        for op in ("StringLower", "StringUpper")
        for attributes in (NO_ATTRIBUTES, {"encoding": "utf-8"})
    ),
    *(
        row(
            op,
            s(
                [
                    text.encode()
                    for text in (
                        "\u00c4\u00d6\u00dc \u0130stanbul",
                        "\u039f\u0394\u039f\u03a3 \u03a3",
                        "stra\u00dfe",
                        "\ufb01",
                        "\u01c5",
                    )
                ]
            ),
            encoding=encoding,
        )
        for op in ("StringLower", "StringUpper")
        for encoding in ("", "utf-8")
    ),
    row("StringLower", s(b"ABC")),
    row("StringUpper", NONE),
    row("StringLower", WORDS, encoding="latin"),
    row("StringStrip", WORDS),
    row("StringStrip", s([[b" a ", b"\x00 b"], [b"\xc2\xa0c\xc2\xa0", b"\x1c d \x85"]])),
    row("StringStrip", s(b"")),
    *(row("StringLength", WORDS, unit=unit) for unit in ("BYTE", "UTF8_CHAR")),
    row("StringLength", s([[b"\xe2\x82\xac\xf0\x9f\x98\x80", b"\x80\x80"]]), unit="UTF8_CHAR"),
    row("StringLength", s(b"abc")),
    row("StringLength", NONE),
    *(
        row("Substr", texts, kind(pos), kind(size), unit=unit)
        for unit in ("BYTE", "UTF8_CHAR")
        for kind in (i32, i64)
        for texts, pos, size in (
            (s([b"hello", b"w\xc3\xb6rld"]), 1, 3),
            (s([b"hello", b"w\xc3\xb6rld"]), -3, 2),
            (s([b"hello", b"w\xc3\xb6rld"]), [0, 2], [5, 100]),
            (s([b"hello", b"w\xc3\xb6rld"]), 5, 1),
            (s([b"hello", b"w\xc3\xb6rld"]), 9, 1),
            (s([b"hello", b"w\xc3\xb6rld"]), -9, 1),
            (s([b"hello", b"w\xc3\xb6rld"]), -5, 2),
            (s([[b"ten", b"eleven"], [b"twelve", b"thirteen"]]), [[0, 1], [2, 3]], [[1, 2], [3, 0]]),
            (s([[b"ten", b"eleven"], [b"twelve", b"thirteen"]]), [1, 2], [1, 2]),
            (s(b"thirteen"), [1, 5, 7], [3, 2, 1]),
            (s(b"\xe2\x82\xac\xf0\x9f\x98\x80x"), 1, 1),
            (s(b"abc"), 1, 0),
            (s(b"abc"), [1, 0], 1),
            (s([b""]), 0, 3),
        )
    ),
    *(
        row("StringSplitV2", texts, s(separator), maxsplit=limit)
        for texts in (
            s([b"a b  c", b"", b" x ", b"\tq\n r\v"]),
            s([b"a,b,,c", b",", b"", b"x", b",,y"]),
            NONE,
        )
        for separator in (b"", b",", b" ", b",,", b"x")
        for limit in (-1, 0, 1, 2)
    ),
    row("StringSplitV2", s(b"a b"), s(b"")),
    row("StringSplitV2", s([b"a b"]), s([b" "])),
    row("StringSplitV2", s([b"ab\x00cd"]), s(b"\x00")),
    *(
        row("StringSplit", s([b"a,b;c", b"", b",,x", b"y;"]), s(marks), skip_empty=skip)
        for marks in (b",", b",;", b"", b" ")
        for skip in (True, False)
    ),
    row("StringSplit", s([[b"a"]]), s(b",")),
]

NUMBERS = [
    *(
        row("StringToNumber", s(texts), out_type=dtype)
        for dtype in (torch.float32, torch.float64, torch.int32, torch.int64)
        for texts in (
            [b"1", b" -2 ", b"+3", b"007"],
            [b"2147483647", b"-2147483648"],
            [b"2147483648"],
            [b"9223372036854775807"],
            [b"9223372036854775808"],
            [b"1.5"],
            [b"0x1A"],
            [b""],
            [b"1_0"],
            [b"abc"],
            [b"1 2"],
            b"4",
            [],
        )
    ),
    *(
        row("StringToNumber", s(texts), out_type=dtype)
        for dtype in (torch.float32, torch.float64)
        for texts in (
            [b"1e5", b"-1.25E-3", b".5", b"5.", b"1e40", b"-1e400", b"1e-50", b"3.4028235e38", b"0.1", b"16777217"],
            [b"inf", b"-inf", b"+INF", b"nan", b"NaN"],
            [b"infinity"],
            [b"1e"],
            [b"."],
            [b"0x"],
            [b"-0x10", b"0XfF"],
            [b"\t1\n", b"\v2\f"],
            [b"1f"],
            [b"1d"],
        )
    ),
]

BYTES = bytes(range(1, 17))
RAW = [
    *(
        row("DecodeRaw", s([BYTES, BYTES[::-1]]), gradients=False, out_type=dtype, little_endian=little)
        for dtype in (
            torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.int8, torch.int16, torch.uint16,
            torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        )
        for little in (True, False)
    ),
    row("DecodeRaw", s([b"\x00\x01\x02"]), out_type=torch.bool),
    row("DecodeRaw", s([b"abc", b"abcd"]), out_type=torch.uint8),
    row("DecodeRaw", s([b"abc"]), out_type=torch.int32),
    row("DecodeRaw", s(b"abcd"), out_type=torch.int16),
    row("DecodeRaw", s([b"", b""]), out_type=torch.int32),
    row("DecodeRaw", NONE, out_type=torch.int32),
]  # fmt: skip

TEXTS = s(
    [
        b"abc",
        "\u20ac\U0001f600".encode(),
        b"",
        b"a\xffb",
        b"\xe2\x82",
        b"\xf0\x9f\x98x",
        b"\xef\xbf\xbd\xff",
        b"\x01\x7f\xc2\x85",
    ]
)
UNICODE = [
    *(
        row("UnicodeDecode", TEXTS, input_encoding="UTF-8", errors=errors, **attributes)
        for errors in ("replace", "ignore")
        for attributes in (
            NO_ATTRIBUTES,
            {"replacement_char": 63},
            {"replace_control_characters": True},
            {"Tsplits": torch.int32},
        )
    ),
    row("UnicodeDecode", TEXTS, input_encoding="UTF-8", errors="strict"),
    row("UnicodeDecode", TEXTS[:3], input_encoding="UTF-8", errors="strict"),
    row("UnicodeDecode", TEXTS[:3], input_encoding="NONE"),
    row("UnicodeDecode", s([b"\x00a\x20\xac", b"\xd8\x3d\xde\x00"]), input_encoding="UTF-16-BE"),
    row("UnicodeDecode", s([b"\x00\x00\x00a\x00\x01\xf6\x00"]), input_encoding="UTF-32-BE"),
    row("UnicodeDecode", s([b"abc", b"x\x80y"]), input_encoding="US-ASCII"),
    row("UnicodeDecode", s([b"abc\xe9"]), input_encoding="ISO-8859-1"),
    row("UnicodeDecode", s([[b"ab"], [b"c"]]), input_encoding="UTF-8"),
    *(
        row("UnicodeEncode", i32([97, 8364, 128512, 98]), splits([0, 1, 1, 4]), output_encoding=encoding)
        for encoding in ("UTF-8", "UTF-16-BE", "UTF-32-BE")
        for splits in (i32, i64)
    ),
    *(
        row(
            "UnicodeEncode",
            i32([97, 0xD800, 0x110000, -1, 98]),
            i64([0, 5]),
            output_encoding="UTF-8",
            errors=errors,
            **more,
        )
        for errors in ("replace", "ignore", "strict")
        for more in (NO_ATTRIBUTES, {"replacement_char": 63})
    ),
    row("UnicodeEncode", i32([]), i64([0]), output_encoding="UTF-8"),
    row("UnicodeEncode", i32([97, 98]), i64([0, 1]), output_encoding="UTF-8"),
    row("UnicodeEncode", i32([97, 98]), i64([0, 2, 1, 2]), output_encoding="UTF-8"),
    row("UnicodeEncode", i32([97, 98]), i64([1, 2]), output_encoding="UTF-8"),
]

ROWS = [*AS_STRING, *JOINS, *PARTS, *NUMBERS, *RAW, *UNICODE]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Equal to TensorFlow; what it refuses is refused."""
    check(name, results)
