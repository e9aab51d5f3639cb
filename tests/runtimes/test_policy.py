"""Networks with a static policy in ONNX Runtime: one engine, and the results of its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.errors import BundleError, UsageError
from dfs_deploy.exporters import export
from dfs_deploy.models import DFSNetwork
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime import engine_choice
from dfs_deploy.runtimes.onnxruntime.static import engine_files
from tests.bundles import copied, labelled, relative, rewritten, run_path, static_bundle, wide_network
from tests.checks import refuses
from tests.settled import CONTRACT, pixels, settled_network

NETWORKS = {
    "narrow": settled_network,  # no blocked layout has so few channels
    "wide": wide_network,
}
CASES = [
    *(("narrow", policy) for policy in ("2,2,2", "0,0,0", "3,1,2")),
    *(("wide", policy) for policy in ("3,3,3", "1,1,1", "1,0,2")),
]
"""Network and policy of skip, 8, 16, full; features change their layout between blocks in some."""

INT8_BOUND = 0.05
EXACT_BOUND = 1e-4
"""Of the logits beside the reference's, whose activations an INT8 engine rounds on its own grid."""


@pytest.fixture(scope="module", params=CASES, ids=str)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, DFSNetwork]:
    name, policy = request.param
    network = NETWORKS[name]().with_policy([int(choice) for choice in policy.split(",")])
    folder = tmp_path_factory.mktemp("policy")
    save_checkpoint(folder / "net.pt", network, CONTRACT)
    return export(folder / "net.pt", folder / "net.dfs", calibration_data=labelled(network)).bundle, network


@pytest.fixture
def static(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The policy 8, skip, 16; may be changed."""
    return Bundle(copied(static_bundle(tmp_path_factory), tmp_path))


def test_a_policy_runs_as_one_engine(exported: tuple[Bundle, DFSNetwork]) -> None:
    bundle, network = exported
    images = pixels(12)
    with Runtime(bundle, plan=False) as runtime:
        assert bundle.policy is not None
        assert len(runtime.engine_calls(bundle.policy)) == 1
        assert runtime.engine_calls(bundle.policy) == runtime.engine_calls(bundle.policy)
        assert runtime.gate_calls() == ()
        assert runtime.description["gate"] == "none: a static policy"
        assert "one engine" in runtime.description["layout"]
        result = runtime(images)
        assert (result.path == bundle.policy).all()
        assert relative(result.logits, run_path(bundle, runtime.substitutions, images, bundle.policy)) < 1e-5
    reference = network.route(torch.from_numpy(CONTRACT.normalize(images))).logits.numpy()
    assert relative(result.logits, reference) < (INT8_BOUND if 1 in bundle.policy else EXACT_BOUND)


def test_batch_and_single_agree_to_the_bit(exported: tuple[Bundle, DFSNetwork]) -> None:
    images = pixels(40)
    with Runtime(exported[0]) as runtime:
        together = runtime(images)
        for count in (1, 3, 9):
            parts = [runtime(images[i : i + count]).logits for i in range(0, len(images), count)]
            assert np.array_equal(np.concatenate(parts), together.logits)


def test_its_call_runs_the_image_before(static: Bundle) -> None:
    with Runtime(static) as runtime:
        assert static.policy is not None
        (call,) = runtime.engine_calls(static.policy)
        expected = runtime(pixels(1)).logits
        call()
        assert np.array_equal(runtime(pixels(1)).logits, expected)


def test_its_threads_are_those_of_one_engine(static: Bundle) -> None:
    with Runtime(static, threads=2) as runtime, Runtime(static) as one:
        assert runtime.description["threads"] == 2
        assert runtime.description["pools"].startswith("1 engine(s), 1 thread(s)")
        assert relative(runtime(pixels(4)).logits, one(pixels(4)).logits) < 1e-5


def test_a_plan_decides_what_is_joined(static: Bundle) -> None:
    entry = engine_choice.ChosenEngine(1, "8", "fp32", {"int8": 2.0, "fp32": 1.0})
    engine_choice.save_choice(
        static, engine_choice.EngineChoice(engine_choice.FORMAT.version, engine_choice.choice_key(static, 1), [entry])
    )
    with Runtime(static) as planned, Runtime(static, plan=False) as plain:
        assert planned.description["plan"] == "measured here"
        assert ("8", "fp32", (1,)) in {(s.option, s.served_by, s.blocks) for s in planned.substitutions}
        by_fp32, by_int8 = planned(pixels(6)).logits, plain(pixels(6)).logits
        assert static.policy is not None
        expected = run_path(static, planned.substitutions, pixels(6), static.policy)
        assert relative(by_fp32, expected) < 1e-5
    assert 0.0 < relative(by_fp32, by_int8) < INT8_BOUND


def test_a_gate_cannot_be_chosen_for_it(static: Bundle) -> None:
    with refuses(UsageError, "gate 'numpy'", "static policy", "leave gate out"):
        Runtime(static, gate="numpy")


def test_an_engine_that_does_not_fit_the_others_is_refused(static: Bundle) -> None:
    """One file says that it has operators of another version, with a digest that fits."""
    assert static.policy is not None
    file = engine_files(static, static.policy)[-1]
    model = onnx.load_from_string(static.model(file))
    model.opset_import[0].version -= 1
    rewritten(static.path, {file: model.SerializeToString()})
    with refuses(BundleError, file, "another version"):
        Runtime(static.path)


def test_logits_of_another_type_are_refused(static: Bundle) -> None:
    assert static.policy is not None
    file = engine_files(static, static.policy)[-1]
    model = onnx.load_from_string(static.model(file))
    last = model.graph.node[-1]
    last.output[0] = "logits"
    model.graph.node.append(onnx.helper.make_node("Cast", ["logits"], ["output"], to=onnx.TensorProto.FLOAT16))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    rewritten(static.path, {file: model.SerializeToString()})
    with refuses(BundleError, "static policy", "float32", "export it again"):
        Runtime(static.path)
