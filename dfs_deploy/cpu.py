"""Which CPU this is and what it computes fast, as Linux tells in ``/proc/cpuinfo``."""

from __future__ import annotations

import itertools
import platform
from dataclasses import dataclass
from pathlib import Path

_INT8 = (
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx_vnni", "AVX VNNI"),
    ("i8mm", "Arm I8MM"),
    ("asimddp", "Arm dot product"),
)
_KEY_FACTS = ("model name", "CPU implementer", "CPU part", "CPU variant", "CPU revision", "Features")
_X86_VECTORS = ("avx", "amx")


@dataclass(frozen=True)
class Cpu:
    """A CPU, told from others.

    Attributes:
        model: model name, or the architecture where the system gives none.
        features: the kernel's names of what it can do; empty where the system does not say.
        int8: the instructions for 8-bit products that it has, or an empty string.
        float16: whether it computes in float16 and ONNX Runtime has kernels for it: 64-bit Arm with FEAT_FP16.
        key: what tells it from others in the key of a cache: of x86 the model's name, which virtual machines shorten to
            that of a family, and the vector instructions; of Arm the maker's numbers and the features.
    """

    model: str
    features: frozenset[str]
    int8: str
    float16: bool
    key: str


def describe_cpu(root: Path = Path("/")) -> Cpu:
    """Looks at the CPU.

    Args:
        root: of the file system.
    """
    facts, machine = cpu_facts(root), platform.machine()
    features = frozenset(facts.get("flags", facts.get("Features", "")).split())
    key = [facts[name] for name in _KEY_FACTS if name in facts] if facts else [platform.processor()]
    key += sorted(feature for feature in features if feature.startswith(_X86_VECTORS))
    return Cpu(
        model=facts.get("model name") or platform.processor() or machine,
        features=features,
        int8=next((name for flag, name in _INT8 if flag in features), ""),
        float16=machine.lower() in ("aarch64", "arm64") and "asimdhp" in features,
        key=" ".join([machine, *key]),
    )


def has_fast_float16() -> bool:
    """Whether this CPU computes in float16, and ONNX Runtime has kernels for it; see :class:`Cpu`."""
    return describe_cpu().float16


def cpu_facts(root: Path = Path("/")) -> dict[str, str]:
    """What ``/proc/cpuinfo`` says of the first CPU, by its own names; empty where there is no such file.

    Args:
        root: of the file system.
    """
    file = root / "proc/cpuinfo"
    if not file.is_file():
        return {}
    with file.open(errors="replace") as stream:
        # The kernel writes an entry as it is read, and machines of hundreds of cores have long files.
        pairs = [line.partition(":") for line in itertools.takewhile(str.strip, stream)]
    return {name.strip(): value.strip() for name, _, value in pairs}
