"""Proximal policy optimisation: generalised advantages, the clipped surrogate, the clipped value loss.

    delta_t = r_t + gamma (1 - terminated_t) V(s_(t+1)) - V(s_t)
    A_t     = delta_t + gamma lambda (1 - terminated_t) A_(t+1)              arXiv 1506.02438
    L_t     = -min(rho_t A_t, clip(rho_t, 1 - c, 1 + c) A_t)                 arXiv 1707.06347, rho = pi / pi_old

One rule of ends serves all: the final observation is a step of its own without an action, so its advantage is 0 and its value
is what a truncated episode is continued by, while a terminated one takes nothing from it.
"""

import torch
from torch import Tensor


def gae(
    reward: Tensor, value: Tensor, terminated: Tensor, acted: Tensor, *, discount: float = 0.99, trace: float = 0.95
) -> Tensor:
    """Generalised advantages (B, T), without gradient.

    Args:
        reward: (B, T) what the action of each step earned.
        value: (B, T) the estimate V of each step, final ones and the one after the last action included.
        terminated: (B, T) bool: nothing comes after the action. A truncated episode is not terminated.
        acted: (B, T) bool: an action was taken and the next step is in the batch. Elsewhere the advantage is 0.
        discount: gamma, in [0, 1].
        trace: lambda; 0 is the error of one step, 1 the whole return minus V.
    """
    onward = discount * (~terminated & acted).to(value.dtype)
    following = torch.cat((value[:, 1:], torch.zeros_like(value[:, :1])), dim=1)
    error = torch.where(acted, reward + onward * following - value, 0.0).detach()
    advantage, later = torch.zeros_like(error), torch.zeros_like(error[:, 0])
    for step in reversed(range(error.shape[1])):
        later = advantage[:, step] = error[:, step] + trace * onward[:, step] * later
    return advantage


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float = 0.2) -> Tensor:
    """The loss at each place: no gain from moving the probability of an action further than `clip` from what it was.

    Args:
        log_ratio: log pi(a) - log pi_old(a).
        advantage: of the same shape.
        clip: c, largest useful |ratio - 1|.
    """
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float = 0.2) -> Tensor:
    """Half the larger squared error of V and of V kept within `clip` of what it was, at each place."""
    near = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target).square(), (near - target).square())


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """An estimate of KL(pi_old, pi) at each place that is never negative: ratio - 1 - log ratio."""
    return log_ratio.expm1() - log_ratio
