"""Networks over tokens: nothing hidden is seen by any path, padding is blocked, positions count valid tokens."""

import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import uniform_stack
from foretoken.nn.token_networks import NextTokenConfig, PositionQueriesConfig

STACK = uniform_stack(AttentionConfig(num_heads=2, positions="rotary"), 16, 2).replace(init_std=0.25)
QUERIES, NEXT = PositionQueriesConfig(encoder=STACK, num_layers=2, num_heads=2), NextTokenConfig(backbone=STACK)
L, N, V = 9, 5, 7


def made(config):
    torch.manual_seed(0)
    return config.build(V).double()


def inputs(rows=2):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V, (rows, L, 2), generator=generator)
    return tokens, torch.zeros(rows, L, dtype=torch.int64), torch.ones(rows, L, dtype=torch.bool)


def influence(network, tokens, rank, valid):
    """(N, L) bool: whether the logits of the last tokens move with each token's embedding."""
    embedded = network.embed(tokens).detach().requires_grad_()
    weight = network.embed.weight.detach()

    class Given(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self, asked):
            return embedded[:, : asked.shape[1]]

    network.embed = Given()
    logits = network(tokens, rank, valid, N)
    return torch.stack(
        [
            torch.autograd.grad(logits[0, n].norm(), embedded, retain_graph=True)[0][0].abs().sum((1, 2)) > 0
            for n in range(N)
        ]
    )


@pytest.mark.parametrize("answer", [(0, 1, 0, 1, 1), (1, 2, 3, 4, 5), (3, 1, 5, 2, 4), (5, 4, 3, 2, 1)])
def test_a_token_is_predicted_from_lower_ranks_only_and_from_all_of_them(answer):
    tokens, rank, valid = inputs()
    rank[:, -N:] = torch.tensor(answer)
    moved = influence(made(QUERIES), tokens, rank, valid)
    hidden = rank[0, -N:] > 0  # the others are not predicted
    assert torch.equal(moved[hidden], (rank[:1] < rank[0, -N:, None])[hidden])


def test_hidden_places_are_told_apart_by_position_alone():
    """All hidden tokens ask the same question from different places; the same place asks the same however many are asked."""
    network, (tokens, rank, valid) = made(QUERIES), inputs()
    rank[:, -N:] = 1
    logits = network(tokens, rank, valid, N)
    assert torch.pdist(logits[0]).min() > 1e-3
    torch.testing.assert_close(network(tokens, rank, valid, 2), logits[:, -2:])
    torch.testing.assert_close(network(tokens[:, :-1], rank[:, :-1], valid[:, :-1], N - 1), logits[:, :-1])


def test_next_token_sees_what_stands_before():
    tokens, rank, valid = inputs()
    moved = influence(made(NEXT), tokens, rank, valid)
    assert torch.equal(moved, torch.arange(L) < torch.arange(L - N, L)[:, None])


@pytest.mark.parametrize("config", [QUERIES, NEXT])
def test_padding_is_blocked_wherever_it_stands(config):
    network, (tokens, rank, valid) = made(config), inputs()
    rank[:, -N:] = torch.arange(1, N + 1)
    want = network(tokens, rank, valid, N)
    gap = torch.zeros(2, 3, dtype=torch.bool)
    for at, count in ((2, N), (L, N + 3)):  # in the prompt, and after the answer
        wide = [
            torch.cat((part[:, :at], fill, part[:, at:]), dim=1)
            for part, fill in zip((tokens, rank, valid), (tokens[:, 3:6], rank[:, -3:] * (at == L), gap), strict=True)
        ]
        torch.testing.assert_close(network(*wide, count)[:, :N], want)


def test_tokens_are_sums_of_words_and_both_networks_have_equal_parameters():
    network, (tokens, rank, valid) = made(QUERIES), inputs()
    torch.testing.assert_close(network(tokens.flip(2), rank, valid, N), network(tokens, rank, valid, N))
    deeper = NEXT.replace(backbone=STACK.replace(num_layers=4))
    counts = [sum(p.numel() for p in made(config).parameters()) for config in (QUERIES, deeper)]
    assert abs(counts[0] / counts[1] - 1) < 0.01


def test_odd_heads_are_refused():
    with pytest.raises(ConfigError, match="num_heads must divide half the width, got num_layers=6, num_heads=3"):
        PositionQueriesConfig(encoder=STACK, num_heads=3)
