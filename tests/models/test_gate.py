from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dfs_deploy.models import Gate, decide
from dfs_deploy.network import cifar_resnet

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
    gate = Gate(architecture, 3)
    assert [embedding.in_features for embedding in gate.embeddings] == [4, 4, 8, 16]
    assert all(embedding.out_features == 5 for embedding in gate.embeddings)
    assert gate.projection.weight.shape == (3, 6)


def test_the_gate_is_pooling_embedding_lstm_and_projection() -> None:
    """Against the sequence form of the LSTM, which is what the authors' release steps."""
    torch.manual_seed(0)
    architecture = cifar_resnet((2, 1, 1), (4, 8, 16))
    gate = Gate(architecture, 4).eval()
    lstm = nn.LSTM(architecture.gate.embedding, architecture.gate.hidden)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(lstm, f"{name}_l0").copy_(getattr(gate.lstm, name))
    maps = [torch.randn(3, channels, 8, 8) for channels in (4, 4, 8)]
    state = gate.initial_state(maps[0])
    assert not state.hidden.any()
    assert not state.cell.any()
    scores = []
    for block, features in enumerate(maps):
        score, state = gate(block, features, state)
        scores.append(score)
    embedded = [gate.embeddings[block](features.mean((2, 3))) for block, features in enumerate(maps)]
    hidden, _ = lstm(torch.stack(embedded))
    torch.testing.assert_close(torch.stack(scores), gate.projection(hidden))
    torch.testing.assert_close(state.hidden, hidden[-1])


def test_samples_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    gate = Gate(cifar_resnet((2, 1, 1), (4, 8, 16)), 4)
    features = torch.randn(5, 4, 8, 8)
    together, _ = gate(0, features, gate.initial_state(features))
    alone, _ = gate(0, features[2:3], gate.initial_state(features[2:3]))
    assert alone.shape == (1, 4)
    torch.testing.assert_close(together[2:3], alone)
