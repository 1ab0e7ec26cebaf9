"""Feed-forward parts of a layer: each token by itself, through an MLP, a gated unit, or a few of many experts.

    MLP                 y = down(f(up x))
    GLU                 y = down(f(gate x) * up x)                Shazeer 2020, arXiv 2002.05202: SwiGLU with silu, GEGLU with gelu
    MixtureOfExperts    y = sum over the k likeliest experts e of w_e expert_e(x)
                        Shazeer et al. 2017, arXiv 1701.06538; with a fixed random router, Chen et al. 2023, arXiv 2303.01610

All share one contract, `FeedForward`: tokens are told apart by `Tokens`, and what training should add to its loss is
returned in `aux`, never kept in the module.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.nn.dropout import dropout
from foretoken.nn.mixer import Mixed, Tokens
from foretoken.nn.scan import in_full_precision

Activation = Literal["relu", "leaky_relu", "squared_relu", "gelu", "gelu_tanh", "silu", "sigmoid", "identity"]


def activate(x: Tensor, name: Activation) -> Tensor:
    match name:
        case "relu":
            return F.relu(x)
        case "leaky_relu":
            return F.leaky_relu(x)
        case "squared_relu":
            return F.relu(x).square()
        case "silu":
            return F.silu(x)
        case "sigmoid":
            return x.sigmoid()
        case "identity":
            return x
        case _:
            return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


class FeedForward(nn.Module, ABC):
    """Abstract; constructed as `Owner(config, width)`."""

    @abstractmethod
    def forward(self, x_BLD: Tensor, tokens: Tokens | None = None) -> Mixed:
        """Outputs (B, L, D), of no meaning at padded tokens, and `aux`: entries named `..._loss` are to be added to the loss.

        No token has an influence on another's output. `aux` is made in training mode only and leaves padding out.
        """


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig(Config):
    """Base of all feed-forward configs; `build(width)` makes the part."""


@dataclass(frozen=True, kw_only=True)
class MLPConfig(FeedForwardConfig):
    """
    Args:
        expansion: hidden width over width.
        activation: applied between the two linear layers.
        dropout: on the output.
        bias: whether the linear layers have biases.
    """

    expansion: float = 4.0
    activation: Activation = "relu"
    dropout: float = 0.0
    bias: bool = True


@configures(MLPConfig)
class MLP(FeedForward):
    """`down(activation(up(x)))`."""

    def __init__(self, config: MLPConfig, width: int) -> None:
        super().__init__()
        hidden = _hidden(width * config.expansion)
        self.up, self.down = nn.Linear(width, hidden, config.bias), nn.Linear(hidden, width, config.bias)
        self.activation, self.dropout = config.activation, config.dropout

    def forward(self, x_BLD: Tensor, tokens: Tokens | None = None) -> Mixed:
        y_BLD = self.down(activate(self.up(x_BLD), self.activation))
        return Mixed(dropout(y_BLD, self.dropout, self.training))


@dataclass(frozen=True, kw_only=True)
class GLUConfig(FeedForwardConfig):
    """
    Args:
        expansion: hidden width over width, before `two_thirds`.
        two_thirds: take 2/3 of it, so that the three matrices have the parameters of an MLP's two.
        multiple: the hidden width is rounded up to a multiple of this.
        activation: of the gate: "silu" is SwiGLU, "gelu" GEGLU, "relu" ReGLU, "sigmoid" the first GLU, "identity" the bilinear one.
        dropout: on the output.
        bias: whether the linear layers have biases.
    """

    expansion: float = 4.0
    two_thirds: bool = True
    multiple: int = 1
    activation: Activation = "silu"
    dropout: float = 0.0
    bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(multiple=1)


@configures(GLUConfig)
class GLU(FeedForward):
    """`down(activation(gate(x)) * up(x))`, gate and up in one matrix."""

    def __init__(self, config: GLUConfig, width: int) -> None:
        super().__init__()
        hidden = _hidden(width * config.expansion * (2 / 3 if config.two_thirds else 1))
        hidden = -(-hidden // config.multiple) * config.multiple
        self.gate_up, self.down = nn.Linear(width, 2 * hidden, config.bias), nn.Linear(hidden, width, config.bias)
        self.activation, self.dropout = config.activation, config.dropout

    def forward(self, x_BLD: Tensor, tokens: Tokens | None = None) -> Mixed:
        gate, up = self.gate_up(x_BLD).chunk(2, dim=-1)
        y_BLD = self.down(activate(gate, self.activation) * up)
        return Mixed(dropout(y_BLD, self.dropout, self.training))


def _hidden(width: float) -> int:
    hidden = int(width + 1e-6)  # 2/3 of 12 is 8, also in floating point
    if hidden < 1:
        raise ConfigError(f"expansion must leave a hidden width of at least 1, got {width:.3g}")
    return hidden


@dataclass(frozen=True, kw_only=True)
class MixtureOfExpertsConfig(FeedForwardConfig):
    """
    Args:
        expert: one expert; E of them with expansion 4 / E are as large as one MLP with expansion 4.
        num_experts: E.
        top_k: experts that a token goes to, k.
        first_top_k: experts at the start of training, where `grow` raises them to top_k; 0 = top_k throughout.
        router: "learned", or "random": a fixed linear map (SMoE-Dropout), which needs both loss weights at 0.
        weights: softmax over the k "chosen" experts, or over "all" of them, so that the weights of the chosen sum to less than 1.
        balance: weight of E sum_e f_e p_e (Fedus et al. 2021, arXiv 2101.03961), f the share of routed tokens and p the mean
            probability of expert e; it is 1 when the load is even.
        z: weight of the mean squared logsumexp of the router's logits (Zoph et al. 2022, arXiv 2202.08906).
    """

    expert: MLPConfig | GLUConfig = MLPConfig(expansion=1.0)
    num_experts: int = 8
    top_k: int = 2
    first_top_k: int = 0
    router: Literal["learned", "random"] = "learned"
    weights: Literal["chosen", "all"] = "chosen"
    balance: float = 0.01
    z: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                f"top_k must lie in [1, num_experts], got top_k={self.top_k} and num_experts={self.num_experts}"
            )
        if not 0 <= self.first_top_k <= self.top_k:
            raise ConfigError(
                f"first_top_k must lie in [0, top_k], got first_top_k={self.first_top_k} and top_k={self.top_k}"
            )
        if self.balance < 0 or self.z < 0:
            raise ConfigError(f"balance and z must be at least 0, got balance={self.balance} and z={self.z}")
        if self.router == "random" and (self.balance or self.z):
            raise ConfigError(
                f"a random router cannot be balanced: set balance=0 and z=0, got balance={self.balance} and z={self.z}"
            )
        if self.router == "learned" and self.weights == "chosen" and self.top_k == 1:
            raise ConfigError(
                'a learned router needs top_k of at least 2, or weights="all", for its softmax over one expert is always 1'
            )


@configures(MixtureOfExpertsConfig)
class MixtureOfExperts(FeedForward):
    """Every token goes to its k likeliest experts, whatever the others do: no capacity, no noise, nothing for padding.

    In training mode `aux` holds `balance_loss` and `z_loss`, already weighted, and `load` (E,), each expert's share.
    """

    data_dependent = True  # how many tokens go to an expert decides what is computed
    active: Tensor
    random_router: Tensor

    def __init__(self, config: MixtureOfExpertsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.experts = nn.ModuleList(config.expert.build(width) for _ in range(config.num_experts))
        self.router = nn.Linear(width, config.num_experts, bias=False)
        if config.router == "random":  # a buffer is saved, but neither trained nor decayed
            weight = self.router.weight.detach().clone()
            del self.router
            self.register_buffer("random_router", weight)
        self.register_buffer("active", torch.tensor(config.first_top_k or config.top_k))

    def use(self, top_k: int) -> None:
        """Sets the number of experts per token from now on; it is saved with the weights."""
        if not 1 <= top_k <= self.config.num_experts:
            raise ConfigError(f"top_k must lie in [1, {self.config.num_experts}], got {top_k}")
        self.active.fill_(top_k)

    def forward(self, x_BLD: Tensor, tokens: Tokens | None = None) -> Mixed:
        x_ND = x_BLD.flatten(0, -2)
        exists = None if tokens is None or tokens.valid is None else tokens.valid.flatten()
        weight = self.router.weight if self.config.router == "learned" else self.random_router
        logits_NE = _route(x_ND, weight)
        best, chosen_NK = logits_NE.topk(int(self.active), dim=-1)
        if self.config.weights == "chosen":
            share = best.softmax(-1)
        else:
            share = (best - logits_NE.logsumexp(-1, keepdim=True)).exp()
        if exists is not None:  # padding goes to an expert that is not there
            chosen_NK = torch.where(exists[:, None], chosen_NK, self.config.num_experts)
        y_NKD = self._dispatch(x_ND, chosen_NK)
        y_BLD = (y_NKD * share[..., None].to(y_NKD.dtype)).sum(1).view_as(x_BLD)
        return Mixed(y_BLD, aux=self._aux(logits_NE, chosen_NK, exists) if self.training else {})

    def _dispatch(self, x_ND: Tensor, chosen_NK: Tensor) -> Tensor:
        """What each token's experts answer, (N, K, D), zero for padding: tokens sorted by expert, each expert called once."""
        order = chosen_NK.flatten().argsort(stable=True)
        counts = chosen_NK.flatten().bincount(minlength=len(self.experts) + 1).tolist()
        parts = x_ND[order // chosen_NK.shape[1]].split(counts)
        done = [expert(part).y for expert, part in zip(self.experts, parts, strict=False) if len(part)]
        done.append(torch.zeros_like(parts[-1], dtype=done[0].dtype if done else None))
        return torch.cat(done)[order.argsort()].unflatten(0, chosen_NK.shape)

    def _aux(self, logits_NE: Tensor, chosen_NK: Tensor, exists: Tensor | None) -> dict[str, Tensor]:
        valid = torch.ones_like(logits_NE[:, 0]) if exists is None else exists.to(logits_NE.dtype)
        count, num_experts = valid.sum().clamp(min=1), self.config.num_experts
        load = F.one_hot(chosen_NK, num_experts + 1)[..., :num_experts].sum((0, 1)) / (count * chosen_NK.shape[1])
        aux = {"load": load}
        if self.config.balance:
            probability = (logits_NE.softmax(-1) * valid[:, None]).sum(0) / count
            aux["balance_loss"] = self.config.balance * num_experts * (load * probability).sum()
        if self.config.z:
            aux["z_loss"] = self.config.z * (logits_NE.logsumexp(-1).square() * valid).sum() / count
        return aux


@in_full_precision
def _route(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


def grow(module: nn.Module, progress: float) -> None:
    """Sets the experts per token of every mixture inside `module`, from first_top_k at progress 0 to top_k at 1, linearly.

    A training recipe with `first_top_k` calls it after every update; nothing else changes it.
    """
    for part in module.modules():
        if isinstance(part, MixtureOfExperts) and part.config.first_top_k:
            first, last = part.config.first_top_k, part.config.top_k
            part.use(first + round((last - first) * min(1.0, max(0.0, progress))))
