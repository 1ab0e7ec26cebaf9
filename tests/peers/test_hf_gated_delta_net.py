"""Hugging Face's gated delta net (Qwen3-Next), with our weights, gives our numbers."""

import pytest
import torch

from foretoken.nn.mixers.delta_net import DeltaNet, DeltaNetConfig

pytest.importorskip("transformers")

WIDTH, HEADS, KEYS, VALUES = 24, 3, 4, 8  # keys and values of one head


def peer_of(ours: DeltaNet) -> torch.nn.Module:
    """Its projection is laid out head by head (q, k, v, gate) and (b, a), ours part by part."""
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=WIDTH, linear_num_value_heads=HEADS, linear_num_key_heads=HEADS, linear_key_head_dim=KEYS,
        linear_value_head_dim=VALUES, linear_conv_kernel_dim=4, rms_norm_eps=ours.config.norm_eps,
    )  # fmt: skip
    peer = Qwen3NextGatedDeltaNet(config, 0).double()
    sizes = [HEADS * KEYS] * 2 + [HEADS * VALUES] * 2 + [HEADS] * 2
    q, k, v, gate, b, a = (part.unflatten(0, (HEADS, -1)) for part in ours.project.weight.split(sizes))
    assert ours.conv is not None and ours.decay_bias is not None and ours.decay_log_rate is not None
    peer.load_state_dict({
        "in_proj_qkvz.weight": torch.cat((q, k, v, gate), 1).flatten(0, 1),
        "in_proj_ba.weight": torch.cat((b, a), 1).flatten(0, 1),
        "conv1d.weight": ours.conv.weight[:, None],
        "dt_bias": ours.decay_bias,
        "A_log": ours.decay_log_rate,
        "norm.weight": ours.norm,
        "out_proj.weight": ours.out.weight,
    })  # fmt: skip
    return peer


@pytest.mark.parametrize("length", [1, 5, 100])
def test_gated_delta_net_of_hugging_face(length: int) -> None:
    torch.manual_seed(0)
    config = DeltaNetConfig(
        num_heads=HEADS, expand_k=HEADS * KEYS / WIDTH, expand_v=HEADS * VALUES / WIDTH, decay=True, output_gate=True
    )
    ours = config.build(WIDTH).double()
    torch.nn.init.normal_(ours.norm)
    peer, results = peer_of(ours), []
    for layer in (peer, lambda x: ours(x).y):
        x = torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        y = layer(x.requires_grad_())
        results.append((y, *torch.autograd.grad((y * x.detach().cos()).sum(), x)))
    for got, want in zip(results[1], results[0], strict=True):
        # the peer's recurrence runs in float32
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
