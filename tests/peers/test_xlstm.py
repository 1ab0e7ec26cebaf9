"""With copied weights, our xLSTM 7B layer gives what Hugging Face's plain PyTorch one does: values, gradients, memory."""

import pytest
import torch

from foretoken.nn.mixers.mlstm import MLSTM7B, MLSTM7BConfig
from foretoken.testing.agreement import perturb

pytest.importorskip("transformers", reason="needs the extra 'peers'")
published = pytest.importorskip("transformers.models.xlstm.modeling_xlstm", reason="this transformers has no xLSTM")
if published.external_xlstm:
    pytest.skip("the package xlstm takes the place of the plain layer", allow_module_level=True)

WIDTH, HEADS, LENGTH = 64, 4, 100  # one and a half of their chunks


def pair(scale: float) -> tuple[torch.nn.Module, MLSTM7B]:
    torch.manual_seed(0)
    config = published.xLSTMConfig(hidden_size=WIDTH, num_heads=HEADS, num_hidden_layers=1, mode="inference")
    theirs = published.xLSTMLayer(config).eval()
    perturb(theirs, 0, scale)
    ours = MLSTM7BConfig(num_heads=HEADS).build(WIDTH)
    parts = (theirs.q, theirs.k, theirs.v, theirs.ogate_preact, theirs.igate_preact, theirs.fgate_preact)
    with torch.no_grad():
        ours.into.weight.copy_(torch.cat([part.weight for part in parts]))
        ours.memory.bias.copy_(torch.cat((theirs.igate_preact.bias, theirs.fgate_preact.bias)))
        ours.memory.scale.copy_(theirs.multihead_norm.weight)
        ours.out.weight.copy_(theirs.out_proj.weight)
    return theirs, ours.eval()


@pytest.mark.parametrize("scale", [0.03, 0.3])
def test_layer_agrees_with_hugging_face(scale: float) -> None:
    theirs, ours = pair(scale)
    x = torch.randn(3, LENGTH, WIDTH)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    (want, (C, n, m)), got = theirs(inputs[0]), ours(inputs[1], ours.initial_state(3))
    torch.testing.assert_close(got.y, want, rtol=1e-4, atol=2e-5)
    weight = torch.randn_like(want)
    for y in (want, got.y):
        (y * weight).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.out.weight.grad, theirs.out_proj.weight.grad, rtol=1e-3, atol=1e-4)
    # their largest exponent starts at 0, ours at none; the memory itself is the same
    ratio = (got.state["largest"] - m.squeeze(-1)).exp()[..., None, None]
    memory = got.state["memory"] * ratio
    torch.testing.assert_close(memory, torch.cat((C, n[..., None]), -1), rtol=1e-4, atol=1e-5)


def test_steps_agree_with_hugging_face() -> None:
    theirs, ours = pair(0.1)
    x, carried, state = torch.randn(2, 20, WIDTH), None, ours.initial_state(2)
    with torch.no_grad():
        for t in range(x.shape[1]):
            want, carried = theirs(x[:, t : t + 1], carried)
            got, state, _ = ours(x[:, t : t + 1], state)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
