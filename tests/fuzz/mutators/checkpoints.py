"""Checkpoints: planted values, shapes, types and strides; the archive around them; the header of ``.safetensors``."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.mutators.archives import Member, members_of, mutate_zip, written_zip
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.jsons import mutate_json, mutate_value
from tests.fuzz.mutators.pickles import hostile_pickle, mutate_pickle
from tests.fuzz.mutators.raw import mutate_bytes


def mutate_torch(draw: Draw, content: bytes) -> bytes:
    """Changes a ``torch.save`` archive, or the older format without one."""
    kind = draw.random()
    if kind < 0.4:
        return saved(draw, mutate_content(draw, torch.load(io.BytesIO(content), weights_only=True)))
    if kind < 0.43:
        return hostile_pickle(draw)
    if content[:2] != b"PK":
        return mutate_pickle(draw, content) if kind < 0.6 else _legacy(draw, content)
    if kind < 0.5:
        return mutate_bytes(draw, content)
    members = members_of(content)
    if kind < 0.9:
        members = [
            replace(member, data=mutate_pickle(draw, member.data)) if member.name.endswith(b"data.pkl") else member
            for member in members
        ]
        return mutate_zip(draw, members) if draw.chance(0.15) else written_zip(members)
    if draw.chance(0.2):
        folder = members[0].name.split(b"/")[0]
        members += [
            Member(folder + b"/code/x.py", b"import os; os.system('touch ran')"),
            Member(folder + b"/constants.pkl", hostile_pickle(draw)),
        ]
    return mutate_zip(draw, members)


def saved(draw: Draw, content: Any) -> bytes:
    """What ``torch.save`` makes of something, in either of its formats."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=draw.chance(0.7))
    return buffer.getvalue()


def mutate_content(draw: Draw, content: dict[Any, Any]) -> Any:
    """Changes the plain values or the tensors of a state dict or of what holds one."""
    if draw.chance(0.04):
        return draw.choice(([], None, 5, "text", torch.zeros(3), [content], {"a": content}, {1: content}, {}))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        inner = next((key for key in ("state_dict", "network") if isinstance(content.get(key), dict)), None)
        plain = {key: value for key, value in content.items() if isinstance(key, str) and _is_plain(value)}
        if isinstance(content.get("network"), str) and draw.chance(0.5):
            content = {**content, "network": _mutate_description(draw, content["network"])}
        elif plain and draw.chance(0.5):
            content = {**content, **mutate_value(draw, plain)}
            for key in set(plain) - set(content):
                del content[key]
        elif inner is not None:
            content = {**content, inner: _mutate_tensors(draw, content[inner])}
        else:
            content = _mutate_tensors(draw, content)
        if draw.chance(0.08):
            return _with_bomb(draw, content)
        if draw.chance(0.1):
            content[draw.choice(("state_dict", "state_dict_ema", "model", "ema", 5, "", draw.text()))] = draw.choice(
                ({}, content.get("state_dict", {}), 5, None, "x", [1], {"a": {"b": {}}})
            )
    return content


def _mutate_description(draw: Draw, text: str) -> str:
    """Changes the JSON that describes a network, in a file of our own, unless an earlier change left none."""
    try:
        return mutate_json(draw, text.encode()).decode("utf-8", "replace")
    except (ValueError, RecursionError):
        return text[: draw.randrange(len(text) + 1)]


def _with_bomb(draw: Draw, content: dict[Any, Any]) -> dict[Any, Any]:
    """Puts a list of ten times a list of ten times a list ... somewhere: small in the file, endless to walk through."""
    kind = draw.choice(("list", "tuple", "dict"))
    bomb: Any = 1
    for _ in range(40):
        bomb = {"list": [bomb] * 10, "tuple": (bomb,) * 10, "dict": dict.fromkeys("abcdefghij", bomb)}[kind]
    holders: list[dict[Any, Any]] = [content]
    while draw.chance(0.6) and (
        inner := [value for value in holders[-1].values() if isinstance(value, dict) and value]
    ):
        holders.append(draw.choice(inner))
    key = draw.choice(sorted(map(str, holders[-1])))
    draw.note(f"bomb of {kind} at {key}")
    changed: Any = {**holders.pop(), key: bomb}
    path = holders
    for holder in reversed(path):
        name = next(name for name, value in holder.items() if isinstance(value, dict) and (set(value) <= set(changed)))
        changed = {**holder, name: changed}
    return dict(changed)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _mutate_tensors(draw: Draw, tensors: Any) -> Any:
    if not isinstance(tensors, dict) or not tensors:
        return tensors
    result = dict(tensors)
    key = draw.choice(sorted(result, key=str))
    value = result[key]
    kind = draw.choice(
        ("shape", "shape", "type", "stride", "stride", "value", "drop", "rename", "foreign", "prefix", "plain", "odd")
    )
    draw.note(f"tensor {kind} {key}")
    if kind == "drop":
        del result[key]
    elif kind == "rename":
        result[draw.choice((draw.text(), key + "x", key.replace("0", "99"), f"module.{key}"))] = result.pop(key)
    elif kind == "foreign":
        result[
            draw.choice(
                (draw.text(), "total_ops", "n_averaged", "group9_layer0.conv1.weight", "group1_layer7.conv1.weight")
            )
        ] = torch.zeros(1)
    elif kind == "prefix":
        prefix = draw.choice(("module.", "_orig_mod.", "model.", "\x1b[2J", "ema_"))
        result = {prefix + str(name): each for name, each in result.items()}
    elif kind == "plain":
        result[key] = draw.choice((None, 5, "x", [1.0], {"a": 1}, (2, 3)))
    elif isinstance(value, Tensor):
        result[key] = _odd_tensor(draw, value, kind)
    return result


def _odd_tensor(draw: Draw, tensor: Tensor, kind: str) -> Tensor:
    huge = draw.choice((10**4, 10**6, 10**8, 10**10, 10**12))
    if kind == "shape":
        flat = tensor.reshape(-1)
        return draw.choice(
            (flat, tensor[None], flat[None, :0], flat[:1], torch.cat([flat, flat]), torch.zeros(()), flat[:0])
        )
    if kind == "type":
        types = (
            torch.float16,
            torch.float64,
            torch.bfloat16,
            torch.int8,
            torch.int64,
            torch.bool,
            torch.complex64,
            torch.uint8,
        )
        return tensor.to(draw.choice(types))
    if kind == "stride":
        # A few bytes in the file, and an extent that no memory holds.
        extents = list(tensor.shape) or [1]
        extents[draw.randrange(len(extents))] = huge
        draw.note(extents)
        return torch.zeros(1, dtype=tensor.dtype).as_strided(extents, [0] * len(extents))
    if kind == "value":
        fill = draw.choice((float("nan"), float("inf"), 3e38, -3e38, 1e-40, 0.0, -1.0, 1e10))
        odd = tensor.double().clone(memory_format=torch.contiguous_format)
        if draw.chance(0.5) and odd.numel():
            odd.view(-1)[draw.randrange(odd.numel())] = fill
        else:
            odd.fill_(fill)
        return odd.to(tensor.dtype) if tensor.dtype.is_floating_point else odd
    return draw.choice(
        (
            tensor.float().to_sparse(),
            torch.nn.Parameter(tensor.float()),
            torch.empty(tensor.shape, device="meta"),
            torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
            torch.zeros(huge if huge < 10**7 else 10**6, dtype=torch.uint8),
            torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]) if tensor.numel() else tensor,
        )
    )


def _legacy(draw: Draw, content: bytes) -> bytes:
    """The old format: several pickles, one behind another, then the numbers."""
    import pickletools

    begins, place = [], 0
    while place < len(content):
        try:
            end = max(at for _, _, at in pickletools.genops(content[place:])) + 1
        except ValueError:
            break  # the numbers begin here
        begins.append(place)
        place += end
    begin = draw.choice(begins)
    draw.note(f"old format, pickle {begins.index(begin)}")
    return content[:begin] + mutate_pickle(draw, content[begin:])


def mutate_safetensors(draw: Draw, content: bytes) -> bytes:
    """Changes the header's JSON, its length, or the bytes."""
    (length,) = struct.unpack_from("<Q", content)
    header, payload = content[8 : 8 + length], content[8 + length :]
    kind = draw.choice(("header", "header", "header", "values", "values", "length", "bytes", "cut"))
    draw.note(f"safetensors {kind}")
    if kind == "header":
        header = mutate_json(draw, header)
    elif kind == "values":
        values = json.loads(header)
        metadata = values.setdefault("__metadata__", {})
        ours = metadata.get("dfs_deploy", '{"format": "x"}')
        inside = json.loads(ours)
        if isinstance(inside.get("network"), str) and draw.chance(0.7):
            metadata["dfs_deploy"] = json.dumps({**inside, "network": _mutate_description(draw, inside["network"])})
        else:
            metadata["dfs_deploy"] = mutate_json(draw, ours.encode()).decode("utf-8", "replace")
        header = json.dumps(values).encode()
    elif kind == "bytes":
        return mutate_bytes(draw, content)
    elif kind == "cut":
        payload = payload[: draw.randrange(len(payload))]
    planted = draw.number() % 2**64 if kind == "length" else len(header)
    return struct.pack("<Q", planted) + header + payload
