from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dfs_deploy.models import decide
from dfs_deploy.models.gate import LSTMGate, StatelessGate
from dfs_deploy.network import Architecture, cifar_resnet

few_values = st.integers(1, 6).flatmap(
    lambda options: st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0]), min_size=options, max_size=options), min_size=1, max_size=8
    )
)


@given(few_values)
def test_of_equal_scores_the_lowest_index_wins(scores: list[list[float]]) -> None:
    choice = decide(torch.tensor(scores))
    assert choice.dtype == torch.int64
    assert choice.tolist() == [row.index(max(row)) for row in scores]


def test_all_equal_scores_choose_the_first() -> None:
    assert decide(torch.zeros(3, 5)).tolist() == [0, 0, 0]
    assert decide(torch.full((1, 4), -torch.inf)).tolist() == [0]


def test_scores_that_are_no_numbers_choose_an_option_that_there_is() -> None:
    scores = torch.tensor([[torch.nan, 1.0, 2.0], [torch.nan] * 3, [0.0, 3.0, 2.0]])
    assert decide(scores).tolist() == [2, 2, 1]


@given(st.integers(0, 10_000))
def test_different_scores_choose_the_greatest(seed: int) -> None:
    scores = torch.randn(16, 7, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_array_equal(decide(scores).numpy(), scores.numpy().argmax(1))


def test_there_is_an_embedding_for_each_block_before_a_gated_one() -> None:
    architecture = cifar_resnet((2, 1, 2), (4, 8, 16), gate_embedding=5, gate_hidden=6)
    gate = LSTMGate(architecture, [True] * 4, 3)
    assert [embedding.in_features for embedding in gate.embeddings] == [4, 4, 8, 16]
    assert all(embedding.out_features == 5 for embedding in gate.embeddings)
    assert gate.projection.weight.shape == (3, 6)


def test_the_gate_is_pooling_embedding_lstm_and_projection() -> None:
    """Against the sequence form of the LSTM, which is what the authors' release steps."""
    torch.manual_seed(0)
    architecture = cifar_resnet((2, 1, 1), (4, 8, 16))
    gate = LSTMGate(architecture, [True] * 3, 4).eval()
    lstm = nn.LSTM(architecture.gate.embedding, architecture.gate.hidden)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(lstm, f"{name}_l0").copy_(getattr(gate.lstm, name))
    maps = [torch.randn(3, channels, 8, 8) for channels in (4, 4, 8)]
    state = gate.initial_state(maps[0])
    assert not any(part.any() for part in state)
    scores = []
    for block, features in enumerate(maps):
        score, state = gate(block, features, state)
        scores.append(score)
    embedded = [gate.embeddings[block](features.mean((2, 3))) for block, features in enumerate(maps)]
    hidden, _ = lstm(torch.stack(embedded))
    torch.testing.assert_close(torch.stack(scores), gate.projection(hidden))
    torch.testing.assert_close(state[0], hidden[-1])


def test_samples_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    gate = LSTMGate(cifar_resnet((2, 1, 1), (4, 8, 16)), [True] * 3, 4)
    features = torch.randn(5, 4, 8, 8)
    together, _ = gate(0, features, gate.initial_state(features))
    alone, _ = gate(0, features[2:3], gate.initial_state(features[2:3]))
    assert alone.shape == (1, 4)
    torch.testing.assert_close(together[2:3], alone)


def test_the_gate_does_not_step_before_a_block_that_is_fixed() -> None:
    architecture = cifar_resnet((2, 1, 1), (4, 8, 16))
    for kind, parts in ((LSTMGate, "embeddings"), (StatelessGate, "steps")):
        gate = kind(architecture, [True, False, True], 4)
        assert [any(True for _ in part.parameters()) for part in getattr(gate, parts)] == [True, False, True]


def _stateless(architecture: Architecture) -> StatelessGate:
    torch.manual_seed(0)
    gate = StatelessGate(architecture, [True] * architecture.gated_blocks, 4)
    for step in gate.steps:
        nn.init.uniform_(step.norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(step.norm.running_var, 0.01, 0.02)
    return gate


def test_the_stateless_gate_is_pooling_and_two_layers_of_its_own_for_each_block() -> None:
    gate = _stateless(cifar_resnet((2, 1, 1), (4, 8, 16), gate_hidden=6)).eval()
    for block, channels in enumerate((4, 4, 8)):
        features = torch.randn(3, channels, 8, 8)
        score, state = gate(block, features, gate.initial_state(features))
        step = gate.steps[block]
        reduced = torch.relu(step.norm(step.reduce(features.mean((2, 3)))))
        torch.testing.assert_close(score, step.score(reduced))
        assert state == ()
        assert step.reduce.weight.shape == (6, channels)


def test_one_image_is_no_batch_to_a_stateless_gate() -> None:
    gate = _stateless(cifar_resnet((2, 1, 1), (4, 8, 16))).train()
    features = torch.randn(1, 4, 8, 8)
    trained, _ = gate(0, features, ())
    torch.testing.assert_close(trained, gate.eval()(0, features, ())[0])


@pytest.mark.parametrize("kind", [LSTMGate, StatelessGate])
@given(st.permutations(range(4)), st.integers(0, 1000))
def test_a_new_gate_prefers_options_in_order_for_whatever_it_sees(
    kind: type[LSTMGate] | type[StatelessGate], order: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    architecture = cifar_resnet((2, 1, 1), (4, 8, 16))
    gate = kind(architecture, [True] * 3, 4)
    gate.prefer(order)
    features = 3.0 * torch.randn(16, 4, 4, 4) + 2.0
    scores, _ = gate(0, features, gate.initial_state(features))
    assert scores.argsort(1, descending=True).tolist() == [order] * 16
    assert scores.softmax(1).max() < 0.6, "so close together that training soon moves them"
    assert scores.std(0).max() > 0.0


@pytest.mark.parametrize("kind", [LSTMGate, StatelessGate])
def test_standardised_it_sees_mean_0_and_deviation_1(kind: type[LSTMGate] | type[StatelessGate]) -> None:
    torch.manual_seed(0)
    gate = kind(cifar_resnet((2, 1, 1), (4, 8, 16)), [True] * 3, 4)
    features = 7.0 + 0.01 * torch.randn(64, 8, 1, 1)
    before = {name: value.clone() for name, value in gate.named_parameters()}
    gate.standardize(2, features)
    if isinstance(gate, StatelessGate):  # which normalises by itself
        assert all(torch.equal(value, before[name]) for name, value in gate.named_parameters())
        return
    seen = gate.embeddings[2](features.mean((2, 3)))
    torch.testing.assert_close(seen.mean(0), torch.zeros(10), rtol=0, atol=1e-3)
    torch.testing.assert_close(seen.std(0), torch.ones(10), rtol=1e-3, atol=1e-3)
