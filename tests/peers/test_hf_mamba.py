"""With copied weights, our Mamba layers compute what Hugging Face's do, at once, padded and token by token."""

import pytest
import torch

from foretoken.nn.mixer import Mixer, MixerConfig, Tokens
from foretoken.nn.mixers.mamba import MambaConfig
from foretoken.nn.mixers.mamba2 import Mamba2Config
from foretoken.testing.agreement import perturb
from foretoken.testing.trial import stream

transformers = pytest.importorskip("transformers", reason="needs the extra 'peers'")

WIDTH, LENGTH = 24, 50

CASES: list[tuple[MixerConfig, dict]] = [
    (MambaConfig(), {"state_size": 16}),
    (MambaConfig(state_size=4, rank=3, kernel=3, bias=True), {"state_size": 4, "time_step_rank": 3, "conv_kernel": 3, "use_bias": True}),
    (Mamba2Config(chunk=16), {"state_size": 64, "num_heads": 4, "head_dim": 12, "n_groups": 1, "chunk_size": 16}),
    (
        Mamba2Config(num_heads=8, num_groups=2, state_size=8, bias=True),
        {"state_size": 8, "num_heads": 8, "head_dim": 6, "n_groups": 2, "chunk_size": 32, "use_bias": True},
    ),
]  # fmt: skip


def pair(config: MixerConfig, settings: dict) -> tuple[Mixer, torch.nn.Module]:
    """Ours and theirs, with the same perturbed weights."""
    torch.manual_seed(0)
    name = "Mamba" if isinstance(config, MambaConfig) else "Mamba2"
    settings = {"hidden_size": WIDTH, "num_hidden_layers": 1, "vocab_size": 2, **settings}
    settings |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings))
    theirs = model.layers[0].mixer
    perturb(theirs, 0, 0.1)  # outputs stay of size one, where 1e-5 is ten roundings
    names = {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias", "norm.weight": "norm"}
    copied = {names.get(key, key): value for key, value in theirs.state_dict().items()}
    copied["conv.weight"] = copied["conv.weight"].squeeze(1)
    copied["A_log"] = copied["A_log"].movedim(0, -1)  # Mamba-1 has (E, N) there
    ours = config.build(WIDTH)
    ours.load_state_dict(copied)
    return ours, theirs


@pytest.mark.parametrize(("config", "settings"), CASES, ids=str)
def test_the_layer_is_theirs(config: MixerConfig, settings: dict) -> None:
    ours, theirs = pair(config, settings)
    weight = torch.randn(3, LENGTH, WIDTH)
    x, same = (torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab")
    got, want = ours(x).y, theirs(same)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-4, atol=1e-4)
    theirs_by_name = dict(theirs.named_parameters())
    for ours_name, theirs_name in (("D", "D"), ("in_proj.weight", "in_proj.weight"), ("conv.weight", "conv1d.weight")):
        mine, yours = ours.get_parameter(ours_name).grad, theirs_by_name[theirs_name].grad
        torch.testing.assert_close(mine, yours.view_as(mine), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("config", "settings"), CASES, ids=str)
def test_streams_and_padded_rows_are_theirs(config: MixerConfig, settings: dict) -> None:
    ours, theirs = pair(config, settings)
    x = torch.randn(3, LENGTH, WIDTH)
    valid = torch.arange(LENGTH) >= torch.tensor([0, 3, 17])[:, None]
    with torch.no_grad():
        want, padded = theirs(x), theirs(x, attention_mask=valid.long())
        for cuts in (list(range(1, LENGTH)), [2, 5, 30]):
            torch.testing.assert_close(stream(ours, x, Tokens(), cuts).y, want, rtol=0, atol=1e-5)
        if not settings.get("use_bias"):  # their padding is heard through the bias
            torch.testing.assert_close(ours(x, tokens=Tokens(valid=valid)).y[valid], padded[valid], rtol=0, atol=1e-5)
