"""Pickles, changed instruction by instruction: names that would run code, planted numbers, lengths and memo tricks."""

from __future__ import annotations

import pickletools
import struct

from tests.fuzz.mutators.draw import NUMBERS, Draw
from tests.fuzz.mutators.raw import mutate_bytes

CANARY = ("tests.fuzz.canary", "touch")

_NAMES = (
    *(
        CANARY,
        CANARY,
        ("os", "system"),
        ("posix", "system"),
        ("posix", "mkdir"),
        ("builtins", "exec"),
        ("builtins", "eval"),
    ),
    *(("builtins", "getattr"), ("builtins", "open"), ("subprocess", "Popen"), ("importlib", "import_module")),
    *(("torch", "load"), ("numpy", "load"), ("torch.storage", "_load_from_bytes"), ("torch.hub", "load")),
    *(("pickle", "loads"), ("runpy", "run_path"), ("webbrowser", "open"), ("socket", "create_connection")),
    *(("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("torch", "FloatStorage")),
    *(
        ("collections", "OrderedDict"),
        ("builtins", "bytearray"),
        ("torch.nn.parameter", "Parameter"),
        ("torch", "Size"),
    ),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("numpy.core.multiarray", "scalar")),
    *(("numpy.core.multiarray", "_reconstruct"), ("\x1b[2J", "x\x1b"), ("a" * 5000, "b"), ("__main__", "x")),
    *(("torch._utils", "_rebuild_sparse_tensor"), ("torch._utils", "_rebuild_qtensor"), ("torch", "device")),
    *(("torch.serialization", "_get_layout"), ("torch._utils", "_rebuild_meta_tensor_no_storage")),
)


def mutate_pickle(draw: Draw, content: bytes) -> bytes:
    """Changes a pickle; ``content`` may have other bytes behind its end."""
    if draw.chance(0.1):
        return mutate_bytes(draw, content)
    steps = _instructions(content)
    end = sum(map(len, steps))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        kind = draw.choice(
            ("name", "call", "number", "number", "number", "length", "swap", "delete", "repeat", "memo", "deep")
        )
        at = draw.randrange(len(steps))
        if kind == "name":
            named = [i for i, step in enumerate(steps) if step[:1] == b"c"]
            if named:
                at = draw.choice(named)
                steps[at] = _global(*draw.choice(_NAMES))
        elif kind == "call":
            module, name = draw.choice(_NAMES)
            steps.insert(max(at, 1), _call(draw, module, name))
        elif kind == "number":
            numbers = [i for i, step in enumerate(steps) if step[:1] in b"KMJ\x8a"]
            if numbers:
                at = draw.choice(numbers)
                steps[at] = _long(draw.choice(NUMBERS) if draw.chance(0.8) else draw.randrange(300))
        elif kind == "length":
            steps.insert(max(at, 1), draw.choice(_LENGTHS) + b"abc")
        elif kind == "swap":
            other = draw.randrange(len(steps))
            steps[at], steps[other] = steps[other], steps[at]
        elif kind == "delete":
            del steps[at]
        elif kind == "repeat":
            steps[at:at] = [steps[at]] * draw.choice((1, 2, 500))
        elif kind == "memo":
            # A list of ten lists of ten lists ...: small in memory, without end for whoever walks through it.
            steps.insert(
                max(at, 1),
                b"]" + b"".join(b"q\xf0](" + b"h\xf0" * 10 + b"e" for _ in range(30)) + b"0" * draw.randrange(2),
            )
        else:
            steps.insert(
                max(at, 1), draw.choice((b"]" * 50_000, b"(" * 50_000, b"}" * 2000 + b"s" * 1000, b"2" * 10_000))
            )
        draw.note(f"pickle {kind} at {at}")
        if not steps:
            break
    return b"".join(steps) + content[end:]


def hostile_pickle(draw: Draw) -> bytes:
    """A pickle of nothing but a call, in any protocol."""
    module, name = draw.choice((CANARY, ("os", "system"), ("builtins", "exec")))
    draw.note(f"pickle that calls {module}.{name}")
    body = _call(draw, module, name, keep=True)
    return (
        draw.choice((b"", b"\x80\x02", b"\x80\x03", b"\x80\x04\x95" + struct.pack("<Q", len(body) + 1))) + body + b"."
    )


_LENGTHS = (
    b"X" + struct.pack("<I", 2**31 - 1),
    b"X" + struct.pack("<I", 2**32 - 1),
    b"T" + struct.pack("<i", 2**31 - 1),
    b"T" + struct.pack("<i", -1),
    b"\x8b" + struct.pack("<i", 2**31 - 1),
    b"\x8d" + struct.pack("<Q", 2**40),
    b"\x8e" + struct.pack("<Q", 2**40),
    b"B" + struct.pack("<I", 2**32 - 1),
    b"\x96" + struct.pack("<Q", 2**40),
    b"r" + struct.pack("<I", 2**31),
    b"\x95" + struct.pack("<Q", 2**50),
    b"I" + b"9" * 100_000 + b"\n",
    b"L" + b"9" * 100_000 + b"L\n",
    b"\x82\xff",
    b"\x84\xff\xff\xff\x7f",
)


def _instructions(content: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(content)]
    ends = [*places[1:], places[-1] + 1]
    return [content[begin:end] for begin, end in zip(places, ends, strict=True)]


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _call(draw: Draw, module: str, name: str, keep: bool = False) -> bytes:
    argument = draw.choice(
        (f"touch {draw.outside}/ran", f"{draw.outside}/ran", f"open({str(draw.outside / 'ran')!r}, 'w')")
    )
    ways = (
        _global(module, name) + b"(X" + struct.pack("<I", len(argument)) + argument.encode() + b"tR",
        b"(X" + struct.pack("<I", len(argument)) + argument.encode() + f"i{module}\n{name}\n".encode(),
        _string(module) + _string(name) + b"\x93" + _string(argument) + b"\x85R",
        _global(module, name) + _string(argument) + b"\x85\x81",
        b"(" + _global(module, name) + _string(argument) + b"o",
    )
    return draw.choice(ways) + (b"" if keep else draw.choice((b"0", b"0", b"")))


def _string(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _long(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data
