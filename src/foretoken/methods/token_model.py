"""Searching by writing: a problem is read as tokens, its whole solution is written before the first move, and then followed.

    learn   answer tokens from the prompt and from those of lower rank, by cross-entropy; ranks are drawn for each answer
    act     a_0: write the answer of o_0, token by token; a_t: what the answer says of step t

What is random in prompts (the order of edges) and ranks follow from a seed per row: in training from the default generator, in
evaluation from the row's address in its store, so that held-out losses compare; while acting from the episode's first seed.
Nolte et al. 2024, arXiv 2412.05117. L counts tokens of a prompt, N those of an answer, V the words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.exhibit import Exhibit
from foretoken.core.method import Context, Method, Policy
from foretoken.core.spec import Spec, Window
from foretoken.core.state import State
from foretoken.methods.scripts.base import Script, ScriptConfig
from foretoken.methods.scripts.maze import MazeScriptConfig
from foretoken.nn.token_networks import PositionQueriesConfig, TokenNetworkConfig
from foretoken.objectives.visibility import Visibility, ranks


@dataclass(frozen=True, kw_only=True)
class TokenModelConfig(Config):
    """
    Args:
        script: how problems and solutions are written.
        network: predicts tokens of an answer.
        visibility: what is seen of an answer while the rest is predicted; see `objectives.visibility`.
        rate: share of hidden tokens for visibility="fixed".
        rewrite: writes a recorded problem anew, with other random numbers, whenever it is drawn; otherwise always alike.
        order: "left-to-right" writes by position until the end; "confidence" puts the end where it is likeliest, then writes the
            surest token first.
    """

    script: ScriptConfig = MazeScriptConfig()
    network: TokenNetworkConfig = PositionQueriesConfig()
    visibility: Visibility = "uniform"
    rate: float = 0.15
    rewrite: bool = True
    order: Literal["left-to-right", "confidence"] = "left-to-right"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate <= 1:
            raise ConfigError(f"rate must lie in (0, 1], got {self.rate}")
        if not self.network.any_order and (self.visibility != "next-token" or self.order != "left-to-right"):
            raise ConfigError(
                f'{type(self.network).__name__} needs visibility="next-token" and order="left-to-right", got '
                f"visibility={self.visibility!r} and order={self.order!r}"
            )


@configures(TokenModelConfig)
class TokenModel(Method):
    """See the module. Learns from whole episodes that solve their problem."""

    def __init__(self, config: TokenModelConfig, spec: Spec) -> None:
        super().__init__()
        self.config = config
        self.script: Script = config.script.build(spec)
        self.network = config.network.build(self.script.vocabulary)
        self.window = Window(
            length=self.script.steps, columns=("observation",), anchor="episode", final=True, pad="right"
        )

    # -- learning

    def loss(self, *batches: Batch) -> Loss:
        (batch,) = batches
        at_B = batch.valid.int().argmax(1)
        rows = torch.arange(len(at_B), device=at_B.device)
        address_B = batch.at[rows, at_B]
        drawn_B = torch.randint(2**62, at_B.shape, device=at_B.device) if self.training else address_B
        first = batch.observation[rows, at_B]
        prompt_BLW, there_BL = self.script.prompt(first, drawn_B if self.config.rewrite else address_B)
        answer_BN, valid_BN = self.script.answer(batch)
        rank_BN = ranks(self.config.visibility, valid_BN, drawn_B, self.config.rate)
        logits_BNV = self.predict(prompt_BLW, there_BL, answer_BN, valid_BN, rank_BN)
        errors_BN = F.cross_entropy(logits_BNV.movedim(-1, 1), answer_BN, reduction="none")
        hidden_BN = rank_BN > 0
        total, count = masked_mean(errors_BN, hidden_BN)
        right = masked_mean((logits_BNV.argmax(-1) == answer_BN).to(errors_BN.dtype), hidden_BN)[0]
        return Loss(total, metrics={"right": right}, weight=count)

    def predict(
        self, prompt_BLW: Tensor, there_BL: Tensor, answer_BN: Tensor, valid_BN: Tensor, rank_BN: Tensor, count: int = 0
    ) -> Tensor:
        """(B, N, V) logits of an answer's tokens, each from the prompt and the tokens of lower rank; of the last `count`, or all."""
        tokens_BLW = torch.cat((prompt_BLW, self.script.enter(answer_BN)), dim=1)
        rank_BL = torch.cat((torch.zeros_like(there_BL, dtype=rank_BN.dtype), rank_BN), dim=1)
        return self.network(tokens_BLW, rank_BL, torch.cat((there_BL, valid_BN), dim=1), count or answer_BN.shape[1])

    # -- acting

    @torch.no_grad()
    def write(self, observation: Tensor, seed_B: Tensor) -> Tensor:
        """(B, N) int64: the answers to first observations (B, ...), N the longest there can be; ends fill what follows the first."""
        prompt = self.script.prompt(observation, seed_B)
        answer_BN = torch.full((len(seed_B), self.script.longest), self.script.end, device=seed_B.device)
        write = self._by_position if self.config.order == "left-to-right" else self._by_confidence
        return write(*prompt, answer_BN)

    def _by_position(self, prompt_BLW: Tensor, there_BL: Tensor, answer_BN: Tensor) -> Tensor:
        on = torch.arange(len(answer_BN), device=answer_BN.device)  # rows whose end is not yet written
        for place in range(answer_BN.shape[1] - 1):  # the last word can only be the end
            # Later positions are not even in the input: nothing can tell how long the answer will be.
            so_far = answer_BN[on, : place + 1]
            rank, valid = torch.zeros_like(so_far), torch.ones_like(so_far, dtype=torch.bool)
            rank[:, place] = 1
            word = self.predict(prompt_BLW[on], there_BL[on], so_far, valid, rank, count=1)[:, 0].argmax(-1)
            answer_BN[on, place] = word
            on = on[word != self.script.end]
            if not len(on):
                break
        return answer_BN

    def _by_confidence(self, prompt_BLW: Tensor, there_BL: Tensor, answer_BN: Tensor) -> Tensor:
        place_N = torch.arange(answer_BN.shape[1], device=answer_BN.device)
        valid_BN, end = torch.ones_like(answer_BN, dtype=torch.bool), self.script.end
        logits_BNV = self.predict(prompt_BLW, there_BL, answer_BN, valid_BN, torch.ones_like(answer_BN))
        last_B1 = end_first(logits_BNV.softmax(-1)[..., end]).argmax(1, keepdim=True)
        valid_BN, rank_BN = place_N <= last_B1, (place_N < last_B1).long()
        while bool(rank_BN.any()):
            logits_BNV = self.predict(prompt_BLW, there_BL, answer_BN, valid_BN, rank_BN).log_softmax(-1)
            logits_BNV[..., end] = -torch.inf
            sure_BN, word_BN = logits_BNV.max(-1)
            at_B1 = torch.where(rank_BN > 0, sure_BN, -torch.inf).argmax(1, keepdim=True)
            hidden_B1 = rank_BN.gather(1, at_B1) > 0
            word_B1 = torch.where(hidden_B1, word_BN.gather(1, at_B1), answer_BN.gather(1, at_B1))
            answer_BN, rank_BN = answer_BN.scatter(1, at_B1, word_B1), rank_BN.scatter(1, at_B1, 0)
        return answer_BN

    @property
    def policy(self) -> Policy:
        return Follower(self)

    def exhibits(self, episodes: Sequence[Batch]) -> Sequence[Exhibit]:
        """The problems with the ways that were written and walked."""
        answers = [self.write(episode.observation[:, 0], episode.seed[:, 0])[0] for episode in episodes]
        panels = self.script.pictures(episodes, answers)
        paid = sum(float(episode.reward.sum()) > 0 for episode in episodes)
        says = f"What was written before the first move, and what came of it: {paid} of {len(episodes)} arrived."
        return [Exhibit(title="Written and walked", says=says, panels=tuple(panels))] if panels else ()


def end_first(end_BN: Tensor) -> Tensor:
    """(B, N) how likely each place is that of the first end, as a logarithm, where `end_BN` are the probabilities of an end there."""
    no_end_BN = torch.log1p(-end_BN.clamp(max=1 - 1e-6))
    return end_BN.clamp(min=1e-20).log() + no_end_BN.cumsum(1) - no_end_BN


class Follower:
    """Writes a row's answer at its episode's first step, keeps it, and follows it step by step."""

    def __init__(self, method: TokenModel) -> None:
        self.method = method

    def begin(self, rows: int, context: Context) -> State:
        script, device = self.method.script, next(self.method.parameters()).device
        return {"answer": torch.full((rows, script.longest), script.end, device=device)}

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        answer_BN, due = state["answer"], (step.first & step.valid & ~step.final).nonzero().squeeze(1)
        if len(due):
            answer_BN = answer_BN.index_copy(0, due, self.method.write(step.observation[due], step.seed[due]))
        action = self.method.script.move(answer_BN, step.timestep, step.previous_action)
        return Decision(action, {"answer": answer_BN})
