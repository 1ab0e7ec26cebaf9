"""Everything swaps: every mixer under every method that takes one, read by windows and as a stream."""

import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.nn.mixer import MixerConfig
from foretoken.nn.mixers import shelf
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.mamba2 import Mamba2Config
from foretoken.nn.recurrent_memory import RecurrentMemoryConfig
from foretoken.nn.stack import BlockConfig, StackConfig, with_mixer
from foretoken.systems.offline import decision_transformer
from foretoken.testing.methods import LAWS, Trial
from foretoken.testing.stores import SPECS


def cloning(*mixers: MixerConfig, reading: str = "window") -> ConditionedCloningConfig:
    pattern = tuple(BlockConfig(mixer=mixer) for mixer in mixers)
    return ConditionedCloningConfig(
        context=4, reading=reading, backbone=StackConfig(width=12, num_layers=2, pattern=pattern)
    )


@pytest.mark.parametrize("name", shelf())
class TestDecisionTransformer:
    """`act` equals the forward pass at every step of staggered episodes; it trains, saves, loads and repeats itself."""

    def test_reads_windows(self, name):
        trial = Trial(cloning(shelf()[name]()), SPECS["continuous"])
        LAWS["acting_is_forward"](trial)

    @pytest.mark.parametrize(
        "law", ["acting_is_forward", "rows_are_independent", "tracing_changes_nothing", "state_keeps_its_shape",
                "updates_lower_the_loss", "weights_are_the_policy"],
    )  # fmt: skip
    def test_reads_a_stream(self, name, law):
        LAWS[law](Trial(cloning(shelf()[name](), reading="stream"), SPECS["continuous"], acting="streaming"))

    def test_alternates_with_attention(self, name):
        config = cloning(shelf()[name](), AttentionConfig(window=7, slack=2, positions="rotary"), reading="stream")
        LAWS["acting_is_forward"](Trial(config, SPECS["discrete"], acting="streaming"))

    def test_runs_in_bfloat16(self, name):
        stack = cloning(shelf()[name]()).backbone.build()
        x = torch.randn(2, 9, 12, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, state, _ = stack(x, stack.initial_state(2))
            y = torch.cat((y, stack(x, state).y), 1)
        y.float().square().sum().backward()
        assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_with_mixer_swaps_every_block() -> None:
    whole = decision_transformer.smoke()
    swapped = with_mixer(whole, Mamba2Config())
    assert swapped.system.backbone.pattern[0] == whole.system.backbone.pattern[0].replace(mixer=Mamba2Config())
    assert swapped.training == whole.training
    with pytest.raises(ConfigError, match="no BlockConfig"):
        with_mixer(whole.training, Mamba2Config())


class TestRecurrentMemory:
    """Memory tokens around a stack take its place."""

    CONFIG = ConditionedCloningConfig(
        context=9, reading="stream",
        backbone=RecurrentMemoryConfig(backbone=StackConfig(width=12, num_layers=2), memory_tokens=2, segment=6),
    )  # fmt: skip

    @pytest.mark.parametrize("law", LAWS)
    def test_reads_a_stream(self, law):
        LAWS[law](Trial(self.CONFIG, SPECS["continuous"], acting="streaming"))

    def test_reads_windows(self):
        LAWS["acting_is_forward"](Trial(self.CONFIG.replace(reading="window"), SPECS["discrete"]))
