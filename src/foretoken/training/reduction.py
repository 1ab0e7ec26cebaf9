"""Means over micro-batches and processes, by weight: the same however a batch is cut."""

import torch
from torch import nn

from foretoken.core.batch import Loss
from foretoken.training.optim import Optimiser


def mean(losses: list[Loss], world: int = 1) -> Loss:
    """Totals and metrics averaged by weight over losses and processes; notes and weights summed."""
    device = losses[0].total.device
    exact = torch.float64 if device.type != "mps" else torch.float32
    names, forms = list(losses[0].metrics), losses[0].notes
    sums = torch.zeros((), dtype=exact, device=device)
    for loss in losses:
        weight = torch.as_tensor(loss.weight, dtype=exact, device=device)
        values = (1, loss.total, *(loss.metrics[name] for name in names))
        means = torch.stack([torch.as_tensor(value, device=device).detach().to(exact) for value in values])
        sums = sums + torch.cat([means * weight, *(loss.notes[key].detach().to(exact).reshape(-1) for key in forms)])
    if world > 1:
        torch.distributed.all_reduce(sums)
    weight, total, *metrics = sums[: 2 + len(names)].unbind()
    scale = 1 / torch.where(weight > 0, weight, 1)
    parts = sums[2 + len(names) :].split([form.numel() for form in forms.values()])
    notes = {
        key: part.reshape(form.shape).to(form.dtype) for (key, form), part in zip(forms.items(), parts, strict=True)
    }
    return Loss(total * scale, {name: value * scale for name, value in zip(names, metrics, strict=True)}, notes, weight)


def reduce(losses: list[Loss], optimiser: Optimiser, world: int) -> Loss:
    """The mean loss; gradients of `total * weight` summed over processes and divided by the summed weight."""
    loss = mean(losses, world)
    if world > 1:
        sum_over_processes(optimiser.parameters)
    weight = float(loss.weight)
    torch._foreach_mul_(optimiser.gradients(), 1 / weight if weight > 0 else 1.0)
    return loss


def sum_over_processes(parameters: list[nn.Parameter]) -> None:
    """All gradients in one buffer, summed by one call. A parameter keeps no gradient only where no process has one."""
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    having = torch.tensor([p.grad is not None for p in parameters], device=pieces[0].device)
    buffer = torch.cat([piece.reshape(-1) for piece in pieces] + [having.to(pieces[0].dtype)])
    torch.distributed.all_reduce(buffer)
    *sums, counts = buffer.split([piece.numel() for piece in pieces] + [len(pieces)])
    for parameter, total, count in zip(parameters, sums, counts.tolist(), strict=True):
        parameter.grad = total.reshape(parameter.shape) if count else None
