"""Cloning by tokens: acting, entry by entry from a state that is carried, and the loss of whole windows are one network."""

import torch

from foretoken.data.windows import WindowSampler
from foretoken.methods.dynamics.tokens import TokenStreamConfig
from foretoken.methods.token_cloning import TokenCloningConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.nn.tokenizers.uniform import UniformConfig
from foretoken.testing.agreement import perturb
from foretoken.testing.stores import SPECS, random_store

BLOCK = BlockConfig(mixer=AttentionConfig(num_heads=2, positions="rotary"))
BACKBONE = StackConfig(width=8, num_layers=2, pattern=(BLOCK,))


@torch.no_grad()
def test_the_loss_is_the_surprise_at_the_tokens_that_acting_takes() -> None:
    torch.manual_seed(0)
    stream = TokenStreamConfig(backbone=BACKBONE, action=UniformConfig(bins=16))
    method = TokenCloningConfig(stream=stream, context=3).build(SPECS["continuous"])
    store = random_store(SPECS["continuous"])
    method.fit({"data": store}, "main")
    perturb(method, 0, scale=0.3)
    method.eval()
    batch = WindowSampler(store, method.window).draw(20, 0)
    whole = batch.valid.all(1)
    batch, logits = batch.map(lambda leaf: leaf[whole]), []
    with method.next_token.register_forward_hook(lambda part, given, y: logits.append(y)):
        action = method.decide(batch.observation, batch.action, batch.valid)
    log_p_BmV = torch.stack(logits, dim=1).log_softmax(-1)
    assert log_p_BmV.shape == (int(whole.sum()), 3, 16)
    told, scored = batch.action.clone(), torch.zeros_like(batch.scored)
    told[:, -1], scored[:, -1] = action, True
    loss = method.loss(batch.replace(action=told, scored=scored))
    torch.testing.assert_close(loss.total, -log_p_BmV.amax(-1).mean())
