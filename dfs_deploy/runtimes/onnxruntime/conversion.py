"""Conversion of features into the layout that an engine takes, if it has no file for the one in which they arrive."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from dfs_deploy.bundle.engines import FeatureGrid
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.bundle.onnx_messages import FLOAT, UINT8, empty_model, make_node, make_tensor, make_value
from dfs_deploy.runtimes.onnxruntime.blocked import DOMAIN
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, session_options
from dfs_deploy.system.ort import onnxruntime as ort

OTHER: dict[Layout, Layout] = {"float32": "uint8", "uint8": "float32"}
"""The layout that features of a layout can be converted into."""

_OPSET = 13
_FIRST, _LAST = [0, 3, 1, 2], [0, 2, 3, 1]
"""Permutations of axes that put channels first, and last."""


def conversion_model(
    to: Layout, grid: FeatureGrid, channels: int, channel_block: int = 1, opset: int = _OPSET
) -> bytes:
    """Makes an ONNX model that converts features of any batch, height and width.

    Args:
        to: layout that it leaves; it takes the other one.
        grid: grid of uint8; what lies beyond it becomes its nearest end.
        channels: channels of the features.
        channel_block: channels that lie together in float32 features; see ``blocked.py``.
        opset: version of its operators.
    """
    model = empty_model(opset)
    graph = model.graph
    ends: dict[Layout, tuple[int, tuple[int | str, ...]]] = {
        "float32": (FLOAT, ("n", channels, "h", "w")),
        "uint8": (UINT8, ("n", "h", "w", channels)),
    }
    graph.input.append(make_value("features", *ends[OTHER[to]]))
    graph.output.append(make_value("converted", *ends[to]))
    graph.initializer.append(make_tensor("scale", FLOAT, (), np.array(grid.scale, "<f4").tobytes()))
    graph.initializer.append(make_tensor("zero_point", UINT8, (), bytes([grid.zero_point])))

    def node(operator: str, source: str, target: str, domain: str = "", **attributes: int | list[int]) -> None:
        constants = ["scale", "zero_point"] if operator.endswith("izeLinear") else []
        graph.node.append(make_node(operator, [source, *constants], target, domain, **attributes))

    # In the plain layout bytes are transposed, a quarter of the memory of floats.
    if channel_block == 1 and to == "uint8":
        node("QuantizeLinear", "features", "between")
        node("Transpose", "between", "converted", perm=_LAST)
    elif channel_block == 1:
        node("Transpose", "features", "between", perm=_FIRST)
        node("DequantizeLinear", "between", "converted")
    else:
        model.opset_import.add(domain=DOMAIN, version=1)
        if to == "uint8":
            node("ReorderOutput", "features", "between", DOMAIN, channels_last=1, channels=channels)
            node("QuantizeLinear", "between", "converted")
        else:
            node("DequantizeLinear", "features", "between")
            node("ReorderInput", "between", "converted", DOMAIN, channels_last=1)
    data: bytes = model.SerializeToString()
    return data


class Converters:
    """Sessions that convert features, made when they are first asked for; clones share them.

    Args:
        grids: grid of the output of each block.
        channel_block: channels that lie together in float32 features.
    """

    def __init__(self, grids: Sequence[FeatureGrid], channel_block: int) -> None:
        self._grids, self._channel_block = grids, channel_block
        self._made: dict[tuple[Layout, FeatureGrid, int], ort.InferenceSession] = {}
        self._lock = threading.Lock()

    def session(self, block: int, channels: int, to: Layout) -> ort.InferenceSession:
        """The session that converts the output of a block, of so many channels, into a layout."""
        key = to, self._grids[block], channels
        with self._lock:
            if key not in self._made:
                model = conversion_model(*key, self._channel_block)
                # One thread: so little work does not pay for waking others.
                self._made[key] = open_session(model, f"the conversion into {to}", session_options(1))
            return self._made[key]
