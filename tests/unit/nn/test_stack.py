"""The residual stack: patterns, streaming, partial reads, cross-attention, adaptive norms, parallel parts, gates, initial weights."""

import pytest
import torch
from torch import nn

from foretoken.core.errors import ConfigError
from foretoken.nn.feed_forward import GLUConfig, MixtureOfExpertsConfig
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.gru import GRUConfig
from foretoken.nn.stack import BlockConfig, CrossAttentionConfig, Seen, StackConfig
from foretoken.testing.agreement import perturb

CONFIGS = {
    "plain": StackConfig(width=8, num_layers=2),
    "post, rms, no final norm": StackConfig(width=8, num_layers=2, pattern=(BlockConfig(order="post", norm="rms"),), final_norm=False),
    "alternating": StackConfig(
        width=8, num_layers=3,
        pattern=(BlockConfig(mixer=AttentionConfig(window=3, num_heads=2)), BlockConfig(feed_forward=None)),
    ),
    "cross": StackConfig(width=8, num_layers=2, pattern=(BlockConfig(cross=CrossAttentionConfig(num_heads=2, context_width=5)),)),
    "parallel": StackConfig(width=8, num_layers=2, pattern=(BlockConfig(parallel=True),)),
    "parallel, post, adaptive": StackConfig(
        width=8, num_layers=2, pattern=(BlockConfig(parallel=True, order="post", condition_width=6),)
    ),
    "gated": StackConfig(width=8, num_layers=2, pattern=(BlockConfig(gate="gru"),)),
    "parallel, gated": StackConfig(width=8, num_layers=2, pattern=(BlockConfig(gate="gru", parallel=True),)),
    "gated cross": StackConfig(
        width=8, num_layers=1, pattern=(BlockConfig(gate="gru", cross=CrossAttentionConfig(context_width=5)),)
    ),
    "experts": StackConfig(
        width=8, num_layers=2,
        pattern=(BlockConfig(feed_forward=MixtureOfExpertsConfig(num_experts=3), mixer=GRUConfig()),),
    ),
    "swiglu": StackConfig(width=8, num_layers=2, pattern=(BlockConfig(feed_forward=GLUConfig(), norm="rms"),)),
    "adaptive": StackConfig(width=8, num_layers=2, pattern=(BlockConfig(condition_width=6, mixer=AttentionConfig(positions="rotary")),)),
}  # fmt: skip


def build(config: StackConfig) -> nn.Module:
    torch.manual_seed(0)
    stack = config.build()
    perturb(stack, 0, scale=0.2)
    return stack.double().eval()


def extras(config: StackConfig, rows: int) -> dict:
    more = {}
    if any(block.cross for block in config.pattern):
        valid = torch.arange(4)[None] < torch.arange(1, rows + 1)[:, None]
        more["context"] = Seen(torch.randn(rows, 4, 5, dtype=torch.float64), valid)
    if any(block.condition_width for block in config.pattern):
        more["condition"] = torch.randn(rows, 6, dtype=torch.float64)
    return more


@pytest.mark.parametrize("name", CONFIGS)
def test_streams_and_reads_like_a_whole(name: str) -> None:
    config = CONFIGS[name]
    stack, more = build(config), extras(config, 3)
    x = torch.randn(3, 11, 8, dtype=torch.float64)
    tokens = Tokens(valid=torch.rand(3, 11) < 0.8, fresh=torch.rand(3, 11) < 0.2)
    with torch.no_grad():
        want = stack(x, tokens=tokens, **more).y
        state, parts = stack.initial_state(3), []
        for at in range(11):
            part = Tokens(valid=tokens.valid[:, at : at + 1], fresh=tokens.fresh[:, at : at + 1])
            y, state, _ = stack(x[:, at : at + 1], state, tokens=part, **more)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1)[tokens.valid], want[tokens.valid])
        for read in (slice(-1, None), slice(2, None, 3), slice(1, 4)):
            torch.testing.assert_close(stack(x, tokens=tokens, read=read, **more).y, want[:, read])


def test_the_pattern_repeats() -> None:
    blocks = build(CONFIGS["alternating"]).layers()
    assert [block.mixer.config.window for block in blocks] == [3, 0, 3]
    assert [block.feed_forward is None for block in blocks] == [False, True, False]


def test_every_parameter_takes_part() -> None:
    for name, config in CONFIGS.items():
        stack, more = build(config), extras(config, 2)
        (stack(torch.randn(2, 5, 8, dtype=torch.float64), **more).y * torch.randn(2, 5, 8)).sum().backward()
        idle = [
            path
            for path, parameter in stack.named_parameters()
            if parameter.grad is None or not parameter.grad.abs().sum() > 1e-12
        ]
        assert idle == [], name


def test_cross_attention_sees_only_what_exists() -> None:
    stack = build(CONFIGS["cross"])
    x, keys = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    valid = torch.tensor([[True, True, False, False], [False] * 4])
    want = stack(x, context=Seen(keys, valid)).y
    garbage = torch.where(valid[..., None], keys, 1e3 * torch.randn_like(keys))
    torch.testing.assert_close(stack(x, context=Seen(garbage, valid)).y, want)
    torch.testing.assert_close(stack(x[:1], context=Seen(keys[:1, :2])).y, want[:1])
    assert not torch.allclose(stack(x, context=Seen(-keys, valid)).y[0], want[0])
    assert bool(want.isfinite().all())
    grow = torch.randn(1, 2, 8, dtype=torch.float64)
    torch.testing.assert_close(
        stack(grow, context=Seen(keys[1:], valid[1:])).y, stack(grow, context=Seen(keys[:1], valid[1:])).y
    )


def test_adaptive_norms_start_silent() -> None:
    torch.manual_seed(0)
    stack = CONFIGS["adaptive"].build()
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(stack(x, condition=torch.randn(2, 6)).y, stack.norm(x))  # the gates are closed
    changed = build(CONFIGS["adaptive"])
    a, b = (changed(x.double(), condition=torch.randn(2, 6, dtype=torch.float64)).y for _ in range(2))
    assert not torch.allclose(a, b)


def test_parallel_parts_share_one_norm() -> None:
    stack = build(CONFIGS["parallel"])
    block, x = stack.layers()[0], torch.randn(2, 5, 8, dtype=torch.float64)
    normed = block.around_mixer.norm(x)
    torch.testing.assert_close(block(x).y, x + block.mixer(normed).y + block.feed_forward(normed).y)
    assert block.around_feed_forward is None


def test_gates_choose_between_stream_and_part() -> None:
    block, x = build(CONFIGS["gated"]).layers()[0], torch.randn(2, 5, 8, dtype=torch.float64)
    gate = block.around_mixer.gate
    y = block.mixer(block.around_mixer.norm(x)).y.relu()
    u, w = gate.choose.weight.chunk(2, dim=1)  # of x and of y
    r, z = (x @ u.T + y @ w.T).chunk(2, dim=-1)
    u, w = gate.propose.weight.chunk(2, dim=1)
    z = (z - gate.closed).sigmoid()
    want = (1 - z) * x + z * torch.tanh((r.sigmoid() * x) @ u.T + y @ w.T)
    torch.testing.assert_close(gate(x, y), want)
    after = block.around_feed_forward
    torch.testing.assert_close(block(x).y, after.gate(want, block.feed_forward(after.norm(want)).y.relu()))
    joined = build(CONFIGS["parallel, gated"]).layers()[0]  # one gate around the sum
    normed = joined.around_mixer.norm(x)
    both = joined.mixer(normed).y + joined.feed_forward(normed).y
    torch.testing.assert_close(joined(x).y, joined.around_mixer.gate(x, both.relu()))


def test_gates_start_nearly_closed() -> None:
    torch.manual_seed(0)
    stack = StackConfig(width=64, num_layers=1, final_norm=False, pattern=(BlockConfig(gate="gru"),)).build()
    gate, x = stack.layers()[0].around_mixer.gate, torch.randn(2, 5, 64)
    passed = 1 - torch.tensor(-2.0).sigmoid()
    assert float((gate(x, torch.zeros_like(x)) - passed * x).detach().abs().max()) < 0.15
    with torch.no_grad():
        gate.closed.fill_(1e3)
    torch.testing.assert_close(gate(x, torch.randn_like(x)), x)


@pytest.mark.parametrize(("bias", "passed"), [(0.0, 0.5), (2.0, 0.8808), (40.0, 1.0)])
def test_how_far_gates_are_closed_is_a_setting(bias: float, passed: float) -> None:
    pattern = (BlockConfig(gate="gru", gate_bias=bias),)
    gate = StackConfig(width=8, num_layers=1, pattern=pattern, init_std=0.0).build().layers()[0].around_mixer.gate
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(gate(x, torch.randn_like(x)), passed * x, rtol=1e-4, atol=1e-6)
    assert BlockConfig().gate_bias == 2.0


def test_what_feed_forwards_add_to_the_loss_is_told_by_layer() -> None:
    stack = build(CONFIGS["experts"]).train()
    x, valid = torch.randn(2, 6, 8, dtype=torch.float64), torch.rand(2, 6) < 0.7
    aux = stack(x, tokens=Tokens(valid=valid)).aux
    names = {f"{layer}/feed_forward/{name}" for layer in (0, 1) for name in ("balance_loss", "z_loss", "load")}
    assert set(aux) == names
    read = stack(x, tokens=Tokens(valid=valid), read=slice(3, None)).aux  # of what the last layer computes
    torch.testing.assert_close(read["0/feed_forward/load"], aux["0/feed_forward/load"])
    assert not torch.equal(read["1/feed_forward/load"], aux["1/feed_forward/load"])
    assert stack.eval()(x).aux == {}


def test_initial_weights() -> None:
    torch.manual_seed(0)
    stack = StackConfig(width=64, num_layers=1, init_std=0.05).build()
    for part in stack.modules():
        if isinstance(part, nn.Linear):
            assert abs(float(part.weight.detach().std()) - 0.05) < 0.002 and not part.bias.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StackConfig(width=0), "width >= 1"),
        (lambda: StackConfig(num_layers=0), "num_layers >= 1"),
        (lambda: StackConfig(pattern=()), "a pattern"),
        (
            lambda: StackConfig(width=10, pattern=(BlockConfig(mixer=AttentionConfig(num_heads=3)),)).build(),
            "num_heads must divide width",
        ),
        (
            lambda: CrossAttentionConfig(num_heads=3).build(10),
            "num_heads must divide width, got width=10 and num_heads=3",
        ),
        (lambda: BlockConfig(parallel=True, feed_forward=None), "parallel=True needs a feed_forward"),
        (lambda: BlockConfig(parallel=True, cross=CrossAttentionConfig()), "and no cross"),
        (lambda: BlockConfig(gate="gru", order="post"), "got order='post'"),
        (lambda: BlockConfig(gate="gru", condition_width=4), "condition_width=4"),
    ],
)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
