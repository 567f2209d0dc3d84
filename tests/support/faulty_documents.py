"""Malformed JSON and MessagePack documents of one fault each, with what is said of it."""

from __future__ import annotations

import msgpack

LONG_ROWS = ",".join("[" + ",".join(["0.5"] * 50) + "]" for _ in range(40))
JSON: dict[str, tuple[str | bytes, str]] = {
    "ragged": ('{"weights":{"wq":[[1,2],[3]]}}', "weights.wq is ragged: row 1 has 1 numbers, expected 2"),
    "ragged, long": (f'{{"w":{{"q":[{LONG_ROWS},[0.5]]}}}}', "w.q is ragged: row 40 has 1 numbers, expected 50"),
    "ragged, deep": ('{"w":[[[1,2]],[[1,2],[3,4]]]}', "w is ragged: row 1 has 2x2"),
    "null": ('{"w":[[1,2],[null,4]]}', "w[1][0] is null among numbers"),
    "NaN": ('{"w":[1,NaN]}', "w[1] is NaN, which is no JSON number"),
    "NaN, long": (f'{{"w":[{LONG_ROWS},[{"NaN," * 49}NaN]]}}', "w[40][0] is NaN"),
    "Infinity": ('{"a":{"w":-Infinity}}', "a.w is -Infinity"),
    "too large": ('{"w":[1,1e999]}', "w[1] is too large for a 64-bit float"),
    "key twice": ('{"a":{"b":1,"b":2}}', "a has the key 'b' twice"),
    "cut": ('{"a":[1,2', "ends too early, it is cut short at byte 9"),
    "cut, long": (f'{{"w":[{LONG_ROWS}', "ends too early"),
    "trailing comma": ('{"a":[1,2,]}', "is not valid JSON"),
    "text after it": ('{"a":[1,2]} x', "is not valid JSON: Extra data at byte 12"),
    "after a long array": (f'{{"w":[{LONG_ROWS}],"a":tru}}', f"at byte {len(LONG_ROWS) + 12:,}"),
    "not UTF-8": (b'{"a":"\xff"}', "is not valid UTF-8 at byte 6"),
    "too deep": ("[" * 100 + "]" * 100, "nests deeper than 64 levels"),
    "far too deep": ("[" * 200_000, "nests too deep"),
    "zero byte": (b'{"a":\0}', "has a zero byte at 5"),
    "huge integer": ('{"a":' + "9" * 5000 + "}", "an integer of thousands of digits"),
    "wrong size": ('{"a":{"shape":[2,3],"data":[1,2]}}', "a has 2 numbers in data, expected 2x3"),
    "bad shape": ('{"a":{"shape":[0,3],"data":[1,2]}}', "a states the shape [0, 3], expected positive sizes"),
    "row in a vector": ('{"a":[1,[2]]}', "a[1] is an array among numbers"),
}
MSGPACK: dict[str, tuple[bytes, str]] = {
    "a count that nothing backs": (b"\xdd\xff\xff\xff\xff", "claims 4,294,967,295 items"),
    "counts within counts": (b"\xdd\x00\x00\x00\x05" * 3, "claims 5 items"),
    "a map's count": (b"\xdf\x00\x01\x00\x00\xa1a", "claims 65,536 items"),
    "not a number": (b"\x81\xa1a\xcb\x7f\xf8\0\0\0\0\0\0", "a is nan, expected a finite number"),
    "not finite in an array": (b"\x81\xa1a\x91\xcb\x7f\xf0\0\0\0\0\0\0", "a[0] is too large"),
    "key twice": (b"\x82\xa1a\x01\xa1a\x02", "has the key 'a' twice"),
    "a byte without a meaning": (b"\x91\xc1", "[0] is no valid MessagePack at byte 1"),
    "a key that is no text": (b"\x81\x01\x02", "has a key of type int"),
    "not UTF-8": (b"\x91\xa2\xff\xff", "[0] is a text that is not valid UTF-8, at byte 1"),
    "cut": (b"\x81\xa1a\xda\x01\x00abc", "a is missing: the file ends at byte 9"),
    "more than a document": (b"\x91\x01\x01", "goes on for 1 bytes after its document"),
    "too deep": (b"\x91" * 100 + b"\x01", "nests deeper than 64 levels"),
    "ragged": (msgpack.packb({"w": [[1.0, 2.0], [3.0]]}), "w is ragged: row 1 has 1 numbers, expected 2"),
}
