"""Forms in INT8 of the parts of a network, each chosen once, for all engines and graphs that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.calibration import ALWAYS, STATIC, CalibratedRange, Ranges, block_ranges
from dfs_deploy.exporters.int8 import Grid, Int8Part
from dfs_deploy.exporters.int8_choice import Chosen, choose, choose_for_tensorrt
from dfs_deploy.exporters.reference import Reference
from dfs_deploy.exporters.split import Part
from dfs_deploy.system.cpu import WeightBits


@dataclass(frozen=True)
class FormKey:
    """Everything that a form depends on.

    Attributes:
        runtime: name of the runtime.
        part: name of the part.
        bits: bitwidth of the option whose weights the part has.
        place: see ``Int8Forms.ranges_of``.
        option: see ``Int8Forms.ranges_of``.
        takes: see ``Int8Forms.of``.
        gives: see ``Int8Forms.of``.
    """

    runtime: str
    part: str
    bits: int
    place: int
    option: int
    takes: Grid | None
    gives: Grid | None

    @property
    def layout(self) -> Layout:
        """Layout in which the features arrive."""
        return "float32" if self.takes is None else "uint8"


@dataclass
class Int8Forms:
    """Forms of parts in INT8.

    Args:
        ranges: an interval for each value of each option that INT8 engines run.
        weight_bits: bits of INT8 weights for ONNX Runtime, 8 or 7.
        reference: features on which layers are chosen that stay in float; ``None`` to keep none.

    Attributes:
        chosen: choice and reason of each form that was chosen by measurement.
    """

    ranges: Ranges
    weight_bits: WeightBits = 8
    reference: Reference | None = None
    chosen: dict[FormKey, Chosen] = field(default_factory=dict)
    _made: dict[FormKey, Int8Part] = field(default_factory=dict, repr=False)

    def ranges_of(self, place: int, option: int) -> Mapping[str, CalibratedRange]:
        """Calibrated intervals of the values of a part; empty if it does not run in INT8.

        Args:
            place: index of its block; 0 for the stem, and that of the last block and one for the head.
            option: index of its option; ``ALWAYS`` or ``STATIC``.
        """
        return block_ranges(self.ranges, place, option)

    def of(
        self, runtime: str, part: Part, place: int, option: int, takes: Grid | None = None, gives: Grid | None = None
    ) -> Int8Part:
        """The form of a part for a runtime.

        Args:
            runtime: name of the runtime.
            part: the part.
            place: see ``ranges_of``.
            option: see ``ranges_of``.
            takes: grid on which the features arrive; ``None`` for float32, as always for TensorRT.
            gives: grid on which the output leaves; ``None`` for float32, as always for TensorRT.
        """
        key = FormKey(runtime, part.name, part.bits, place, option, takes, gives)
        if key not in self._made:
            self._made[key] = self._make(key, part)
        return self._made[key]

    def _make(self, key: FormKey, part: Part) -> Int8Part:
        ranges, features = self.ranges_of(key.place, key.option), self._features(key.place, key.option)
        if features is None and key.runtime == "tensorrt":
            return Int8Part.for_tensorrt(part, ranges)
        if features is None:
            return Int8Part.for_onnxruntime(part, ranges, key.takes, key.gives, self.weight_bits)
        if key.runtime == "tensorrt":
            form, self.chosen[key] = choose_for_tensorrt(part, ranges, features)
        else:
            form, self.chosen[key] = choose(part, ranges, key.takes, key.gives, self.weight_bits, features)
        return form

    def _features(self, place: int, option: int) -> NDArray[np.float32] | None:
        if self.reference is None:
            return None
        if option == STATIC and place > 0:
            return self.reference.static[place - 1].numpy()
        routed = None if option in (ALWAYS, STATIC) else option
        return self.reference.reaching(place, routed).numpy()
