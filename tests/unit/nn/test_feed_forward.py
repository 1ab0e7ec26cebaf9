"""Feed-forwards: the MLP, gated units, and mixtures of experts with their routing, losses and growth."""

import pytest
import torch
from torch import nn

from foretoken.core.errors import ConfigError
from foretoken.nn.feed_forward import GLUConfig, MixtureOfExpertsConfig, MLPConfig, grow
from foretoken.nn.mixer import Tokens
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.testing.agreement import perturb

FUNCTIONS = {
    "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(), "squared_relu": lambda x: x.relu() ** 2, "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"), "silu": nn.SiLU(), "sigmoid": nn.Sigmoid(), "identity": nn.Identity(),
}  # fmt: skip
RANDOM = MixtureOfExpertsConfig(router="random", balance=0, z=0)


def experts(width: int = 6, **settings):
    torch.manual_seed(0)
    mixture = MixtureOfExpertsConfig(**({"num_experts": 4} | settings)).build(width)
    perturb(mixture, 0)
    return mixture.double()


def by_hand(mixture, x: torch.Tensor) -> torch.Tensor:
    """Token by token: the k likeliest experts, weighted by a softmax."""
    outputs = []
    for token in x.flatten(0, -2):
        logits = mixture.router.weight @ token
        chosen = logits.argsort(descending=True)[: int(mixture.active)]
        shares = logits.softmax(0)[chosen]
        if mixture.config.weights == "chosen":
            shares = shares / shares.sum()
        outputs.append(sum(p * mixture.experts[e](token[None]).y[0] for p, e in zip(shares, chosen, strict=True)))
    return torch.stack(outputs).view_as(x)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activations(activation) -> None:
    x, function = torch.randn(3, 4), FUNCTIONS[activation]
    mlp = MLPConfig(activation=activation, expansion=2).build(4)
    torch.testing.assert_close(mlp(x).y, mlp.down(function(mlp.up(x))))
    glu = GLUConfig(activation=activation, bias=True).build(4)
    gate, up = glu.gate_up(x).chunk(2, -1)
    torch.testing.assert_close(glu(x).y, glu.down(function(gate) * up))


@pytest.mark.parametrize(("settings", "hidden"), [
    ({}, 32), ({"multiple": 5}, 35), ({"two_thirds": False}, 48), ({"expansion": 1.0, "multiple": 8}, 8),
])  # fmt: skip
def test_hidden_widths_of_gated_units(settings, hidden: int) -> None:
    glu = GLUConfig(**settings).build(12)
    assert glu.down.in_features == hidden and glu.gate_up.out_features == 2 * hidden


def test_two_thirds_has_the_parameters_of_an_mlp() -> None:
    sizes = [sum(p.numel() for p in c.build(48).parameters()) for c in (GLUConfig(), MLPConfig(bias=False))]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("settings", [
    {}, {"top_k": 4}, {"weights": "all", "top_k": 1}, {"expert": GLUConfig(expansion=1.0), "top_k": 3},
])  # fmt: skip
def test_tokens_go_to_their_experts(settings) -> None:
    mixture, x = experts(**settings), torch.randn(3, 5, 6, dtype=torch.float64)
    weight = torch.randn_like(x)
    results = []
    for run in (lambda x: mixture(x).y, lambda x: by_hand(mixture, x)):
        given = x.clone().requires_grad_()
        y = run(given)
        parts = [given, *mixture.parameters()]
        results.append((y, torch.autograd.grad((y * weight).sum(), parts, allow_unused=True, materialize_grads=True)))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(mixture(x[1:2, 2:3]).y, results[0][0][1:2, 2:3])  # whatever the other tokens are


def test_padding_goes_nowhere_and_is_not_counted() -> None:
    mixture, x = experts().train(), torch.randn(2, 6, 6, dtype=torch.float64)
    valid = torch.tensor([[True, False, True, True, False, True], [False, True, True, False, True, True]])
    y, _, aux = mixture(x, Tokens(valid=valid))
    alone, _, want = mixture(x[valid][None])
    torch.testing.assert_close(y[valid], alone[0])
    torch.testing.assert_close(aux, want)
    assert not y[~valid].any()
    nothing = mixture(x, Tokens(valid=torch.zeros_like(valid)))
    assert not nothing.y.any() and all(bool(value.isfinite().all()) for value in nothing.aux.values())


def test_losses_are_those_of_the_papers() -> None:
    mixture, x = experts(balance=0.5, z=0.25).train(), torch.randn(3, 5, 6, dtype=torch.float64)
    aux, logits = mixture(x).aux, (x @ mixture.router.weight.T).flatten(0, 1)
    chosen = logits.topk(2).indices
    share = torch.stack([(chosen == e).double().mean() for e in range(4)])
    torch.testing.assert_close(aux["load"].double(), share)
    torch.testing.assert_close(aux["balance_loss"], 0.5 * 4 * (share * logits.softmax(-1).mean(0)).sum())
    torch.testing.assert_close(aux["z_loss"], 0.25 * logits.exp().sum(-1).log().square().mean())
    (gradient,) = torch.autograd.grad(aux["balance_loss"], mixture.router.weight)
    assert bool(gradient.abs().sum() > 0)
    assert mixture.eval()(x).aux == {} and set(experts(balance=0, z=0).train()(x).aux) == {"load"}


def test_balancing_evens_the_load() -> None:
    torch.manual_seed(0)
    mixture = MixtureOfExpertsConfig(num_experts=4, balance=1.0).build(6).train()
    x = torch.randn(1, 256, 6) + 1.0  # tokens that lean to one side
    before = float(mixture(x).aux["load"].max())
    optimiser = torch.optim.Adam(mixture.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        mixture(x).aux["balance_loss"].backward()
        optimiser.step()
    assert before > 0.35 and float(mixture(x).aux["load"].max()) < 0.3


def test_a_random_router_is_saved_and_never_trained() -> None:
    torch.manual_seed(0)
    stack = StackConfig(width=8, num_layers=1, pattern=(BlockConfig(feed_forward=RANDOM),)).build()
    assert not any("router" in name for name, _ in stack.named_parameters())
    x = torch.randn(2, 3, 8)
    other = StackConfig(width=8, num_layers=1, pattern=(BlockConfig(feed_forward=RANDOM),)).build()
    assert not torch.equal(other(x).y, stack(x).y)
    other.load_state_dict(stack.state_dict())
    assert torch.equal(other(x).y, stack(x).y)
    assert float(stack.layers()[0].feed_forward.random_router.std()) > 0.1  # stack weights start smaller


def test_the_number_of_experts_grows() -> None:
    mixture = RANDOM.replace(num_experts=8, top_k=8, first_top_k=2).build(6)
    counts = []
    for progress in (0.0, 0.25, 0.5, 1.0, 2.0):
        grow(nn.Sequential(mixture), progress)
        counts.append(int(mixture.active))
    assert counts == [2, 4, 5, 8, 8]
    x = torch.randn(2, 3, 6)
    want = mixture(x).y
    mixture.use(3)
    assert not torch.allclose(mixture(x).y, want)
    again = RANDOM.replace(num_experts=8, top_k=8, first_top_k=2).build(6)
    again.load_state_dict(mixture.state_dict())
    assert int(again.active) == 3
    fixed = RANDOM.build(6)
    grow(fixed, 0.0)
    assert int(fixed.active) == 2


def test_routing_is_in_full_precision() -> None:
    mixture, x = experts().float(), torch.randn(2, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _, aux = mixture.train()(x)
    assert {value.dtype for value in aux.values()} == {torch.float32} and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), mixture(x).y, atol=0.1, rtol=0.1)
    assert mixture(x[:, :0]).y.shape == (2, 0, 6)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: MixtureOfExpertsConfig(top_k=9), "top_k must lie in .1, num_experts., got top_k=9 and num_experts=8"),
    (lambda: MixtureOfExpertsConfig(first_top_k=3), "first_top_k must lie in"),
    (lambda: MixtureOfExpertsConfig(balance=-1), "balance and z must be at least 0"),
    (lambda: MixtureOfExpertsConfig(router="random"), "set balance=0 and z=0, got balance=0.01"),
    (lambda: MixtureOfExpertsConfig(top_k=1), "a learned router needs top_k of at least 2"),
    (lambda: RANDOM.build(4).use(9), "got 9"),
    (lambda: GLUConfig(multiple=0), "multiple must be at least 1"),
    (lambda: MLPConfig(expansion=0.1).build(4), "hidden width of at least 1"),
])  # fmt: skip
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
