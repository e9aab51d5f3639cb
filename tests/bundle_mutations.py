"""Changes bundles at random and opens them: ``python -m tests.bundle_mutations KIND BUNDLE COUNT SEED``.

KIND is ``manifest`` (keys, types and values of the manifest) or ``engine`` (bits and fields of an engine, its digest
recorded anew). Prints how many cases ended in which way. Ends by a signal if one takes too long, and with a traceback
if one ends in another error than the project's own.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import DfsDeployError, InternalError
from dfs_deploy.io.files import sha256
from dfs_deploy.runtimes import Runtime

Random = np.random.Generator
Slot = tuple[Any, Any]
"""A container and the key or index of a value in it."""

SECONDS = 20
"""That one case may take: much more than any does, so that a busy machine does not fail it."""

MEMORY = 8 << 30
"""Address space; a case that asks for more ends in a MemoryError, which is not the project's own."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 65536, 65537, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30),
    *(0.0, -0.0, 0.5, 1.5, -1.0, 1e-320, 1e-38, 1e30, 1e308, 5e-324),
    *("", "a", "skip", "8", "int8", "float32", "uint8", "../x", "/etc/passwd", "\x1b[2J", "a\nb", "\u202e", "x" * 5000),
    *([], {}, [[]], [None], {"": {}}, [0] * 100, "9" * 400),
)


def slots(value: Any) -> Iterator[Slot]:
    """Every place in nested lists and dictionaries."""
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from slots(value[key])


def mutate_values(values: dict[str, Any], random: Random) -> None:
    """Changes a few values: another value, a key gone or twice, two values exchanged, deep nesting."""
    for _ in range(random.integers(1, 4)):
        places = list(slots(values))
        if not places:
            return
        container, key = places[random.integers(len(places))]
        other, second = places[random.integers(len(places))]
        match random.integers(7):
            case 0:
                del container[key]
            case 1 if isinstance(container, list):
                container.extend([container[key]] * int(random.integers(1, 50)))
            case 2 if isinstance(container, dict):
                container[str(VALUES[random.integers(len(VALUES))])] = container[key]
            case 3:
                container[key] = json.loads(json.dumps(other[second]))
            case 4:
                nested: Any = container[key]
                for _ in range(random.integers(1, 300)):
                    nested = [nested]
                container[key] = nested
            case 5 if isinstance(container[key], int | float) and not isinstance(container[key], bool):
                container[key] = container[key] * random.choice([-1, 0, 2, 0.5, 1000])
            case _:
                container[key] = VALUES[random.integers(len(VALUES))]


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Flips bits, cuts, repeats or moves pieces."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 6)):
        at = int(random.integers(len(changed) + 1))
        near = int(random.integers(min(len(changed), 400) + 1))  # names and shapes stand before the weights
        at = near if random.integers(2) else at
        size = int(random.integers(1, 64))
        match random.integers(4):
            case 0:
                del changed[at : at + size]
            case 1:
                changed[at:at] = changed[at : at + size]
            case 2:
                changed[at:at] = random.bytes(size)
            case _ if at < len(changed):
                changed[at] ^= 1 << int(random.integers(8))
    return bytes(changed)


NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**16, 2**31, 2**40, 2**62, -(2**63))


def mutate_model(data: bytes, random: Random) -> bytes:
    """Changes operators, attributes, names, shapes or constants of a model, which stays one."""
    model = onnx.load_from_string(data)
    graph = model.graph
    for _ in range(random.integers(1, 4)):
        node = graph.node[random.integers(len(graph.node))]
        number = NUMBERS[random.integers(len(NUMBERS))]
        match random.integers(9):
            case 0:
                node.op_type = str(
                    random.choice(["Add", "Mul", "Relu", "Gemm", "Transpose", "Flatten", "Gather", "Pad"])
                )
            case 1 if node.attribute:
                attribute = node.attribute[random.integers(len(node.attribute))]
                if attribute.ints:
                    attribute.ints[random.integers(len(attribute.ints))] = number
                else:
                    attribute.i = number
            case 2 if node.input:
                node.input[random.integers(len(node.input))] = graph.node[random.integers(len(graph.node))].output[0]
            case 3 if graph.initializer:
                tensor = graph.initializer[random.integers(len(graph.initializer))]
                if tensor.dims:
                    tensor.dims[random.integers(len(tensor.dims))] = number
            case 4 if graph.initializer:
                tensor = graph.initializer[random.integers(len(graph.initializer))]
                tensor.raw_data = random.bytes(len(tensor.raw_data))
            case 5:
                value = [*graph.input, *graph.output][random.integers(len(graph.input) + len(graph.output))]
                shape = value.type.tensor_type.shape
                if shape.dim:
                    shape.dim[random.integers(len(shape.dim))].dim_value = number
            case 6:
                graph.node.append(node)
            case 7:
                del graph.node[random.integers(len(graph.node))]
                if not graph.node:
                    break
            case _:
                for _ in range(int(random.integers(1, 200))):
                    graph.node.insert(0, node)
    return bytes(model.SerializeToString())


def outcome(path: Path) -> str:
    """Opens a bundle and runs every option on it; the name of the error that it ends in, or ``runs``."""
    signal.alarm(SECONDS)
    try:
        with Runtime(path, plan=False, prepared=False) as runtime:
            channels, height, width = runtime.input.shape
            images = np.zeros((1, height, width, channels), np.uint8)
            runtime(images)
            if runtime.bundle.policy is None:
                for option in range(len(runtime.options)):
                    runtime(images, path=np.full((1, runtime.bundle.architecture.gated_blocks), option))
    except InternalError:
        raise
    except DfsDeployError as error:
        assert "\n" not in str(error)
        return type(error).__name__
    finally:
        signal.alarm(0)
    return "runs"


def main(kind: str, bundle: str, count: str, seed: str) -> None:
    """Runs the cases; the bundle is changed, and in the end is as it was."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    path, found = Path(bundle), Counter[str]()
    manifest = path / "manifest.json"
    original = manifest.read_bytes()
    engines = sorted(name for name in Bundle(path).manifest.files if name.startswith(("common/", "onnxruntime/block")))
    for case in range(int(count)):
        random = np.random.default_rng([int(seed), case])
        values = json.loads(original)
        sys.stderr.write(f"case {case}\n")
        if kind == "manifest":
            mutate_values(values, random)
            manifest.write_bytes(json.dumps(values).encode())
            found[outcome(path)] += 1
        else:
            name = engines[random.integers(len(engines))]
            data = (path / name).read_bytes()
            changed = (mutate_model if random.integers(2) else mutate_bytes)(data, random)
            values["files"][name] = {"sha256": sha256(changed), "size": len(changed)}
            (path / name).write_bytes(changed)
            manifest.write_bytes(json.dumps(values).encode())
            found[outcome(path)] += 1
            (path / name).write_bytes(data)
    manifest.write_bytes(original)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
