"""Advantages against a slow loop over single episodes, and what clipping takes away."""

import pytest
import torch

from foretoken.objectives.policy_gradient import approximate_kl, clipped_surrogate, clipped_value_loss, gae


def slow(reward, value, terminated, acted, discount, trace):
    """From the definition: the sum of later errors up to the end of the episode, each discounted by (gamma lambda)^k."""
    found = torch.zeros_like(reward)
    for b in range(len(reward)):
        for t in range(reward.shape[1]):
            weight, at = 1.0, t
            while at < reward.shape[1] and acted[b, at]:
                after = 0.0 if terminated[b, at] else float(value[b, at + 1])
                found[b, t] += weight * (reward[b, at] + discount * after - value[b, at])
                if terminated[b, at]:
                    break
                weight, at = weight * discount * trace, at + 1
    return found


@pytest.mark.parametrize(("discount", "trace"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_gae_equals_a_loop_over_episodes(discount, trace):
    torch.manual_seed(0)
    reward, value = torch.randn(2, 6, 23, dtype=torch.float64)
    final = torch.rand(6, 23) < 0.2
    acted = ~final & (torch.arange(23) < 22)
    terminated = torch.cat((final[:, 1:], final[:, :1]), 1) & acted & (torch.rand(6, 23) < 0.5)
    got = gae(reward, value, terminated, acted, discount=discount, trace=trace)
    assert torch.allclose(got, slow(reward, value, terminated, acted, discount, trace), rtol=0, atol=1e-12)
    assert not got[~acted].any()


def test_truncation_goes_on_from_the_final_value_and_termination_from_nothing():
    reward, value = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.5, 0.25, 10.0]])
    acted, ends = torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])
    truncated = gae(reward, value, torch.zeros_like(ends), acted, discount=0.5, trace=0.5)
    terminated = gae(reward, value, ends, acted, discount=0.5, trace=0.5)
    assert truncated[0].tolist() == [0.625 + 0.25 * 6.75, 2 + 5 - 0.25, 0]
    assert terminated[0].tolist() == [0.625 + 0.25 * 1.75, 2 - 0.25, 0]


def test_what_lies_beyond_the_end_does_not_reach_back():
    reward, value = torch.randn(1, 8), torch.randn(1, 8)
    acted = torch.tensor([[True, True, False, True, True, True, False, False]])
    other = torch.where(torch.arange(8) < 3, 0.0, 100.0)
    got = gae(reward + other, value + other, torch.zeros_like(acted), acted)
    assert torch.equal(got[:, :3], gae(reward, value, torch.zeros_like(acted), acted)[:, :3])


def test_the_surrogate_stops_pushing_beyond_the_clip():
    log_ratio = torch.tensor([1.0, -1.0, 0.05, 1.0, -1.0], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    loss = clipped_surrogate(log_ratio, advantage)
    loss.sum().backward()
    assert loss[:2].tolist() == pytest.approx([-1.2, 0.8])
    assert log_ratio.grad[:2].tolist() == [0, 0] and (log_ratio.grad[2:].sign() == -advantage[2:].sign()).all()


def test_values_are_held_near_what_they_were():
    value = torch.tensor([2.0, 1.1], requires_grad=True)
    loss = clipped_value_loss(value, torch.tensor([1.0, 1.0]), torch.tensor([5.0, 5.0]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.5 * 3.8**2, 0.5 * 3.9**2]) and value.grad.tolist() == pytest.approx(
        [0, -3.9]
    )


def test_the_estimate_of_kl_is_not_negative():
    near = torch.linspace(-3, 3, 10_001)
    for size in (1.0, 1e-1, 1e-3, 1e-5):  # also where the ratio is rounded to 1
        assert (approximate_kl(size * near) >= 0).all()
    assert approximate_kl(torch.zeros(1)) == 0
