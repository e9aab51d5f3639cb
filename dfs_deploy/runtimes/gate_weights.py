"""The gate's weights, which its graph gives as outputs: a reader of ONNX is not needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import BundleError
from dfs_deploy.runtimes.gate import GateWeights

if TYPE_CHECKING:
    import onnxruntime as ort

_WEIGHTS = ("input_weight", "bias", "recurrent_weight", "projection_weight", "projection_bias")


def read_gate_weights(bundle: Bundle, runtime: str) -> GateWeights | None:
    """The weights of the gate among a runtime's engines; ``None`` with a static policy.

    Raises:
        BundleError: its graph does not give weights of its shapes.
    """
    from dfs_deploy.runtimes.onnxruntime.binding import open_session, session_options

    file = bundle.manifest.runtimes[runtime].gate
    if file is None:
        return None
    return gate_weights(open_session(bundle.read(file), f"{bundle.path}: {file}", session_options(1)), bundle)


def gate_weights(session: ort.InferenceSession, bundle: Bundle) -> GateWeights:
    """Asks the gate's graph for its weights, which are among its outputs; a reader of ONNX is not needed."""
    architecture, options = bundle.architecture, len(bundle.options)
    gates, hidden = architecture.gated_blocks, architecture.gate.hidden
    widest = max((block.out_channels for block in architecture.blocks[:gates]), default=1)
    feeds: dict[str, Any] = {
        "pooled": np.zeros((1, widest), np.float32),
        "block": np.array(0, np.int64),
        "hidden": np.zeros((1, hidden), np.float32),
        "cell": np.zeros((1, hidden), np.float32),
    }
    shapes = [(gates, 4 * hidden, widest), (gates, 4 * hidden), (4 * hidden, hidden), (options, hidden), (options,)]
    if gates == 0:
        return GateWeights(*(np.zeros(shape, np.float32) for shape in shapes))
    try:
        values = session.run(list(_WEIGHTS), feeds)
    except Exception as error:
        raise BundleError(
            f"{bundle.path}: the gate's graph does not give its weights ({error}); export again"
        ) from error
    if [value.shape for value in values] != shapes:
        raise BundleError(
            f"{bundle.path}: the gate's weights have other shapes than the architecture says; export again"
        )
    for block, shape in enumerate(architecture.blocks[:gates]):
        if values[0][block, :, shape.out_channels :].any():
            raise BundleError(
                f"{bundle.path}: the gate has weights for channels that block {block} has not; export again"
            )
    return GateWeights(*values)
