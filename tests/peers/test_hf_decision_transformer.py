"""With copied weights, our Decision Transformer predicts what Hugging Face's does."""

import pytest
import torch

from foretoken.core.batch import Batch
from foretoken.core.spec import Box, Spec
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.nn.embed.time import EpisodeTimeConfig
from foretoken.nn.stack import gpt
from foretoken.testing.agreement import perturb

transformers = pytest.importorskip("transformers", reason="needs the extra 'peers'")

STATE, ACTION, WIDTH, LAYERS, STEPS = 5, 3, 24, 2, 30


def theirs(heads: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.DecisionTransformerConfig(
        state_dim=STATE, act_dim=ACTION, hidden_size=WIDTH, max_ep_len=STEPS, n_layer=LAYERS, n_head=heads, n_inner=4 * WIDTH,
        activation_function="relu", action_tanh=True, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.DecisionTransformerModel(config).eval()
    perturb(model, 0)
    with torch.no_grad():
        model.encoder.wpe.weight.zero_()  # the paper has no positions of tokens; this model adds its first one to all
    return model


def ours(model: torch.nn.Module, heads: int) -> torch.nn.Module:
    config = ConditionedCloningConfig(
        context=8,
        backbone=gpt(WIDTH, LAYERS, heads, dropout=0.1, activation="relu"),
        condition=ReturnToGoConfig(scale=1.0),
        time=EpisodeTimeConfig(max_steps=STEPS),
    )
    method = config.build(Spec(observation=Box(shape=(STATE,)), action=Box(shape=(ACTION,), low=(-1.0,), high=(1.0,))))
    source = {name: tensor for name, tensor in model.state_dict().items() if name != "encoder.wpe.weight"}
    names = {
        "embed_timestep": "embed_time.table",
        "embed_return": "embed_condition.0",
        "embed_state": "embed_observation.parts.0.linear",
        "embed_action": "embed_action.embed.linear",
        "embed_ln": "norm",
        "predict_action.0": "head.linear",
        "encoder.ln_f": "backbone.norm",
    }
    for i in range(LAYERS):
        parts = {
            "ln_1": "around_mixer.norm", "attn.c_attn": "mixer.qkv", "attn.c_proj": "mixer.out",
            "ln_2": "around_feed_forward.norm", "mlp.c_fc": "feed_forward.up", "mlp.c_proj": "feed_forward.down",
        }  # fmt: skip
        names |= {f"encoder.h.{i}.{old}": f"backbone.blocks.{i}.{new}" for old, new in parts.items()}
    copied = {}
    for old, new in names.items():
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" in source:
                tensor = source[f"{old}.{kind}"]
                copied[f"{new}.{kind}"] = (
                    tensor.T if kind == "weight" and ".c_" in old else tensor
                )  # Conv1D keeps (in, out)
    missing, unexpected = method.load_state_dict(copied, strict=False)
    assert not unexpected
    assert all(name.split(".")[-1] in ("mean", "std", "middle", "radius", "scale", "fitted") for name in missing)
    return method.eval()


@pytest.mark.parametrize("heads", [1, 2])
def test_predictions_are_equal(heads: int) -> None:
    model = theirs(heads)
    method = ours(model, heads)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    rows, length = 5, 8
    padding = torch.tensor([0, 3, 7, 1, 5])
    valid = torch.arange(length) >= padding[:, None]
    timestep = torch.where(valid, torch.arange(length) - padding[:, None] + torch.tensor([0, 0, 4, 20, 11])[:, None], 0)
    observation, action = draw(rows, length, STATE), draw(rows, length, ACTION).clamp(-1, 1)
    asked = draw(rows, length)
    batch = Batch(
        observation=observation, action=action, return_to_go=asked, timestep=timestep, valid=valid, scored=valid
    )
    with torch.no_grad():
        want = model(
            states=observation, actions=torch.where(valid[..., None], action, -10.0), rewards=torch.zeros(rows, length, 1),
            returns_to_go=asked[..., None], timesteps=timestep, attention_mask=valid.long(), return_dict=True,
        ).action_preds  # fmt: skip
        got = method(batch).mode()
    assert float(want.std()) > 0.1
    torch.testing.assert_close(got[valid], want[valid], rtol=0, atol=1e-5)
