"""The laws of tokenizers, on data that are hard to bin."""

import pytest
import torch
from torch import Tensor

from foretoken.core.spec import Box
from foretoken.nn.tokenizers.base import TokenizerConfig
from foretoken.nn.tokenizers.kmeans import KMeansConfig
from foretoken.nn.tokenizers.quantile import QuantileConfig
from foretoken.nn.tokenizers.uniform import UniformConfig
from foretoken.testing import check_tokenizer


def data(name: str) -> Tensor:
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    match name:
        case "heavy tails":
            return x.pow(5)
        case "ties":
            return x.round()
        case "sparse":
            return torch.where(x > 1.5, x, 0.0)
        case "constant":
            return torch.cat((x[:, :1], torch.tensor([[0.0, -1234.5]]).expand(300, 2)), dim=1)
        case "offset":
            return 1e-3 * x + 7
        case "one value":
            return x[:1]
        case "float64":
            return x.double()
        case _:
            return x


@pytest.mark.parametrize(
    "name", ["normal", "heavy tails", "ties", "sparse", "constant", "offset", "one value", "float64"]
)
@pytest.mark.parametrize(
    "config",
    [
        UniformConfig(),
        UniformConfig(bins=3),
        QuantileConfig(),
        QuantileConfig(bins=3),
        QuantileConfig(bins=1),
        KMeansConfig(),
        KMeansConfig(clusters=3),
        KMeansConfig(clusters=1),
    ],
)
def test_tokenizer(config: TokenizerConfig, name: str) -> None:
    values, box = data(name), Box(shape=(3,))
    fitted = config.build(box)
    fitted.fit(values)
    check_tokenizer(config.build(box), values, bound=fitted.bound)


def test_uniform_between_bounds() -> None:
    box = Box(shape=(3,), low=(-1.0, -2.0, 0.0), high=(1.0, 2.0, 5.0))
    values = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 4.0, 5.0])
    bound = torch.tensor([2.0, 4.0, 5.0]) / 512
    check_tokenizer(UniformConfig().build(box), values + torch.tensor([-1.0, -2.0, 0.0]), bound=bound)


def test_notices_a_bound_that_does_not_hold() -> None:
    values, tokenizer = data("normal"), UniformConfig(bins=16).build(Box(shape=(3,)))
    tokenizer.fit(values)
    with pytest.raises(AssertionError, match="within the bound"):
        check_tokenizer(UniformConfig(bins=16).build(Box(shape=(3,))), values, bound=0.9 * tokenizer.bound)
