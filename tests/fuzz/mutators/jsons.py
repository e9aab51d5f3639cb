"""JSON, changed node by node and written again, also as no honest writer would."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.raw import mutate_bytes


class Raw(str):
    """Stands in the place of a value and is written as it is."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object, whose keys may stand twice."""


Slot = tuple[str, Any, int]
"""Path with list positions left out, container, and index in it."""


def mutate_json(draw: Draw, content: bytes) -> bytes:
    """Changes values, keys and the text of a JSON file."""
    if draw.chance(0.06):
        return _hostile_text(draw, content)
    value = json.loads(content, object_pairs_hook=Pairs)
    for _ in range(draw.choice((1, 1, 1, 1, 2, 3, 6))):
        _change(draw, value)
    text = written(value, ascii_only=draw.chance(0.5)).encode("utf-8", "surrogatepass")
    return mutate_bytes(draw, text) if draw.chance(0.08) else text


def mutate_lines(draw: Draw, content: bytes) -> bytes:
    """The same for a file of one JSON value a line."""
    lines = content.split(b"\n")
    filled = [i for i, line in enumerate(lines) if line]
    kind = draw.choice(("value", "value", "value", "delete", "repeat", "swap", "bytes"))
    at = draw.choice(filled)
    draw.note(f"line {at}: {kind}")
    if kind == "value":
        lines[at] = mutate_json(draw, lines[at])
    elif kind == "delete":
        del lines[at]
    elif kind == "repeat":
        lines[at:at] = [lines[at]] * draw.choice((1, 2, 1000))
    elif kind == "swap":
        other = draw.choice(filled)
        lines[at], lines[other] = lines[other], lines[at]
    else:
        return mutate_bytes(draw, content)
    return b"\n".join(lines)


def mutate_value(draw: Draw, value: Any) -> Any:
    """A value of Python's plain types, changed in one place; tuples become lists."""
    pairs = json.loads(json.dumps(value), object_pairs_hook=Pairs)
    _change(draw, pairs, plain=True)
    return _plain(pairs)


def written(value: Any, *, ascii_only: bool = True) -> str:
    """JSON text of a value that ``Raw`` and ``Pairs`` may stand in."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        members = (f"{written(k, ascii_only=ascii_only)}:{written(v, ascii_only=ascii_only)}" for k, v in value)
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(each, ascii_only=ascii_only) for each in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def _slots(value: Any, path: str = "") -> list[Slot]:
    found: list[Slot] = []
    if isinstance(value, Pairs):
        for i, (key, member) in enumerate(value):
            found.append((f"{path}.{key}", value, i))
            found += _slots(member, f"{path}.{key}")
    elif isinstance(value, list):
        for i, member in enumerate(value):
            found.append((f"{path}[]", value, i))
            found += _slots(member, f"{path}[]")
    return found


def _change(draw: Draw, value: Any, plain: bool = False) -> None:
    slots = _slots(value)
    if not slots:
        return
    by_path: dict[str, list[Slot]] = {}
    for slot in slots:
        by_path.setdefault(slot[0], []).append(slot)
    path, container, i = draw.choice(by_path[draw.choice(sorted(by_path))])
    kinds = ["replace"] * 5 + ["near"] * 4 + ["delete", "delete", "wrap", "swap", "repeat", "clear"]
    if isinstance(container, Pairs):
        kinds += ["rename", "twice", "foreign"]
    kind = draw.choice(kinds)
    old = container[i][1] if isinstance(container, Pairs) else container[i]
    draw.note(f"{kind} {path}")

    def put(new: Any) -> None:
        container[i] = (container[i][0], new) if isinstance(container, Pairs) else new

    if kind == "replace":
        put(_odd_value(draw, plain))
    elif kind == "near":
        put(_near(draw, old, plain))
    elif kind == "delete":
        del container[i]
    elif kind == "wrap":
        put(draw.choice(([old], [old, old], Pairs([("x", old)]))))
    elif kind == "swap":
        _, other, j = draw.choice(slots)
        put(copy.deepcopy(other[j][1] if isinstance(other, Pairs) else other[j]))  # not itself within itself
    elif kind == "repeat":
        times = draw.choice((1, 2, 10, 1000))
        container[i:i] = [container[i]] * (times if len(written(old)) < 2000 else 1)
    elif kind == "clear":
        put(Pairs() if isinstance(old, Pairs) else [] if isinstance(old, list) else None)
    elif kind == "rename":
        container[i] = (draw.choice((draw.text(), container[i][0] + "x", draw.choice(slots)[0])), old)
    elif kind == "twice":
        container.append((container[i][0], _odd_value(draw, plain)))
    elif kind == "foreign":
        container.append((draw.text(), _odd_value(draw, plain)))


def _odd_value(draw: Draw, plain: bool) -> Any:
    kind = draw.choice(("number", "number", "text", "text", "float", "constant", "container", "deep"))
    if kind == "number":
        return draw.number()
    if kind == "text":
        return draw.text()
    if kind == "float":
        odd: tuple[Any, ...] = (0.5, -0.0, 1e308, -1e308, 5e-324, 1.0000001, 1e15, 3e38)
        texts = () if plain else (Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("01"), Raw("1.e5"))
        return draw.choice((*odd, *texts, *((float("nan"), float("inf")) if plain else ())))
    if kind == "constant":
        return draw.choice((None, True, False))
    if kind == "container":
        return draw.choice(([], Pairs(), [None], [[]], [0] * 100, Pairs([("", 0)]), [1, 2, 3], ["a", "b"]))
    depth = draw.choice((10, 1200) if plain else (10, 600, 800, 900, 940, 1200, 100_000))
    if plain:
        nested: Any = []
        for _ in range(min(depth, 200)):
            nested = [nested]
        return nested
    left, right = draw.choice((("[", "]"), ('{"a":', "}")))
    return Raw(left * depth + "0" + right * depth)


def _near(draw: Draw, old: Any, plain: bool) -> Any:
    """A value of the same type, mostly."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return draw.choice((old + 1, old - 1, old * 2, -old, old * 1000, 0, draw.number()))
    if isinstance(old, float):
        return draw.choice((old * 1.001, -old, old * 1e6, old / 1e6, 0.0, old + 1, 1e300, int(old)))
    if isinstance(old, str):
        return draw.choice((old + "x", old[:-1], old.upper(), old[::-1], old + draw.text(), draw.text()))
    if isinstance(old, Pairs):
        return Pairs(draw.sample(old, len(old)))
    if isinstance(old, list):
        return draw.choice((old[::-1], old[:-1], old + old, old[:1] * 200 if len(written(old[:1])) < 500 else old))
    return _odd_value(draw, plain)


def _hostile_text(draw: Draw, content: bytes) -> bytes:
    kind = draw.randrange(9)
    draw.note(f"hostile text {kind}")
    return (
        b"",
        b"\xff\xfe" + content.decode().encode("utf-16-le"),
        b"\xef\xbb\xbf" + content,
        b"[" * 200_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        content + content,
        content.replace(b'"', b"'"),
        b"9" * 1_000_000,
        content[: draw.randrange(len(content))],
    )[kind]


def _plain(value: Any) -> Any:
    if isinstance(value, Pairs):
        return {key: _plain(member) for key, member in value}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return value
