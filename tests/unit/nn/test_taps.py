"""Taps and the short convolution against a list of the tokens that exist, row by row."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foretoken.nn.mixer import Tokens
from foretoken.nn.taps import ShortConv, taps

B, L, D = 3, 21, 2
WIDTHS = pytest.mark.parametrize("width", [1, 2, 4])
MASKS = pytest.mark.parametrize("masks", ["none", "valid", "fresh", "both"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens_of(masks: str) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    valid, fresh = torch.rand(B, L, generator=generator) > 0.4, torch.rand(B, L, generator=generator) < 0.15
    valid[0, :5] = False  # padded on the left
    valid[1, 14:] = False  # and on the right
    valid[2, 7], fresh[2, 7] = False, True  # a memory that begins at a padded token
    return Tokens(valid if masks in ("valid", "both") else None, fresh if masks in ("fresh", "both") else None)


def literal(x: Tensor, before: Tensor, tokens: Tokens, width: int) -> tuple[Tensor, Tensor]:
    """What `taps` promises, with one list of existing inputs per row; padded tokens read zeros."""
    picked, kept = [], []
    for b in range(len(x)):
        past = list(before[b])
        for t in range(x.shape[1]):
            if tokens.fresh is not None and tokens.fresh[b, t]:
                past = [torch.zeros_like(x[b, t])] * (width - 1)
            if tokens.valid is not None and not tokens.valid[b, t]:
                picked.append(torch.zeros(width, x.shape[2], dtype=x.dtype))
                continue
            past.append(x[b, t])
            picked.append(torch.stack(past[-width:]))
        kept.append(torch.stack(past[len(past) - width + 1 :]) if width > 1 else before[b])
    return torch.stack(picked).unflatten(0, x.shape[:2]), torch.stack(kept)


def cut(tokens: Tokens, part: slice) -> Tokens:
    return Tokens(*(None if mask is None else mask[:, part] for mask in tokens[:2]))


@WIDTHS
@MASKS
@pytest.mark.parametrize("started", [False, True], ids=["from nothing", "from inputs"])
def test_taps_are_the_last_existing_inputs(width: int, masks: str, started: bool) -> None:
    tokens, weight, results = tokens_of(masks), drawn(B, L, width, D, seed=2), []
    for naive in (True, False):
        x = drawn(B, L, D).requires_grad_()
        before = (drawn(B, width - 1, D, seed=3) * started).requires_grad_()
        if naive:
            picked, kept = literal(x, before, tokens, width)
        else:
            picked, kept = taps(x, before if started else None, tokens, width)
            if tokens.valid is not None:  # of no meaning at padded tokens
                picked = torch.where(tokens.valid[..., None, None], picked, 0)
        wanted = (x, before) if started else (x,)
        loss = (picked * weight).sum() + (kept * drawn(*kept.shape, seed=4)).sum()
        results.append((picked, kept, *torch.autograd.grad(loss, wanted)))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


@WIDTHS
@MASKS
@pytest.mark.parametrize("sizes", [[1] * L, [2, 1, 9, 4, 5], [20, 1]], ids=["by one", "uneven", "a last one"])
def test_streaming_gives_the_same(width: int, masks: str, sizes: list[int]) -> None:
    torch.manual_seed(0)
    conv, tokens = ShortConv(D, width).double(), tokens_of(masks)
    x = drawn(B, L, D)
    exists = torch.ones(B, L, dtype=torch.bool) if tokens.valid is None else tokens.valid
    with torch.no_grad():
        want, last = conv(x, None, tokens)
        before, outputs, at = conv.initial_state(B), [], 0
        for size in sizes:
            y, before = conv(x[:, at : at + size], before, cut(tokens, slice(at, at + size)))
            outputs.append(y)
            at += size
    torch.testing.assert_close(torch.cat(outputs, 1)[exists], want[exists])
    torch.testing.assert_close(before, last)


@pytest.mark.parametrize("length", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_without_masks_it_is_a_causal_depthwise_convolution(length: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv, x = ShortConv(D, 4, bias=bias).double(), drawn(B, length, D)
    if conv.bias is not None:
        torch.nn.init.normal_(conv.bias)
    got, _ = conv(x, None, Tokens())
    want = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), conv.weight[:, None], conv.bias, groups=D).transpose(1, 2)
    torch.testing.assert_close(got, want)
    everything = Tokens(valid=torch.ones(B, length, dtype=torch.bool), fresh=torch.zeros(B, length, dtype=torch.bool))
    torch.testing.assert_close(conv(x, None, everything)[0], want)


@MASKS
def test_the_convolution_weighs_the_taps(masks: str) -> None:
    torch.manual_seed(0)
    conv, tokens, x = ShortConv(D, 3).double(), tokens_of(masks), drawn(B, L, D)
    y, _ = conv(x, None, tokens)
    picked, _ = literal(x, torch.zeros(B, 2, D, dtype=x.dtype), tokens, 3)
    want = torch.einsum("blwd,dw->bld", picked, conv.weight)
    exists = torch.ones(B, L, dtype=torch.bool) if tokens.valid is None else tokens.valid
    torch.testing.assert_close(y[exists], want[exists])


def test_it_starts_as_a_depthwise_convolution_of_pytorch_does() -> None:
    torch.manual_seed(0)
    conv = ShortConv(500, 4)
    assert conv.weight.abs().max() <= 0.5
    assert float(conv.weight.detach().std()) == pytest.approx(0.5 / 3**0.5, rel=0.05)
    assert conv.bias is not None and not conv.bias.any()
    assert ShortConv(3, 4, bias=False).bias is None
