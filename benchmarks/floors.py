"""How fast the machine could be: multiplications over its own matrix-product rate, bytes over its own copy rate.

The rate is measured at the sizes that occur in the model, so the floor is the time of the bare matrix products, each alone.
"""

from dataclasses import dataclass

import torch

from benchmarks.rounds import now

REPEATS = 7


@dataclass(frozen=True)
class Product:
    """`count` matrix products (batch x M x K) @ (batch x K x N); batch 1 is a plain one."""

    m: int
    k: int
    n: int
    batch: int = 1
    count: int = 1

    @property
    def flops(self) -> int:
        """A multiplication and an addition per term."""
        return 2 * self.batch * self.m * self.k * self.n * self.count

    def backward(self) -> list["Product"]:
        """The two products of its gradient."""
        return [
            Product(self.m, self.n, self.k, self.batch, self.count),
            Product(self.k, self.m, self.n, self.batch, self.count),
        ]


def transformer(
    rows: int, tokens: int, read: int, *, kept: int = 0, width: int = 128, layers: int = 3, heads: int = 1
) -> list[Product]:
    """The products of one forward pass in which the last layer answers only at `read` of each row's tokens.

    Args:
        kept: keys of earlier tokens and of these that are attended to; 0 = only these tokens, and no keys are kept.
    """
    every, some, seen = rows * tokens, rows * read, kept or tokens
    products = []
    for layer in range(layers):
        asked, length = (some, read) if layer == layers - 1 else (every, tokens)
        if heads == 1 and not kept:  # queries and keys share one matrix, values and the output another
            products += [Product(every, width, width), Product(asked, width, width)]
        else:
            products += [Product(every, width, 2 * width), Product(asked, width, width, count=2)]
        products += [
            Product(length, width // heads, seen, batch=rows * heads),
            Product(length, seen, width // heads, batch=rows * heads),
            Product(asked, width, 4 * width),
            Product(asked, 4 * width, width),
        ]
    return products


@dataclass(frozen=True)
class Floor:
    """`seconds` for `flops`, hence `rate` in FLOP/s."""

    seconds: float
    flops: int

    @property
    def rate(self) -> float:
        return self.flops / self.seconds


def of_products(products: list[Product], dtype: torch.dtype = torch.float32) -> Floor:
    """The best time of each different product, times its number."""
    counts: dict[tuple[int, int, int, int], int] = {}
    for product in products:
        key = (product.batch, product.m, product.k, product.n)
        counts[key] = counts.get(key, 0) + product.count
    seconds = sum(count * _best(*key, dtype) for key, count in counts.items())
    return Floor(seconds, sum(product.flops for product in products))


def training(rows: int, context: int, *, pruned: bool, dtype: torch.dtype = torch.float32) -> Floor:
    """One update of the paper's Decision Transformer: three tokens per step, forward and backward.

    Args:
        pruned: the last layer only at the tokens that are predicted from, one of three.
    """
    forward = transformer(rows, 3 * context, context if pruned else 3 * context)
    return of_products(forward + [product for one in forward for product in one.backward()], dtype)


def acting(rows: int, context: int) -> Floor:
    """One decision for each of `rows` environments that re-reads the last `context` steps."""
    return of_products(transformer(rows, 3 * context, 1))


def streaming(rows: int, context: int) -> Floor:
    """One decision for each of `rows` environments that reads one step, with keys and values of `context` steps kept."""
    return of_products(transformer(rows, 3, 1, kept=3 * context))


def _best(batch: int, m: int, k: int, n: int, dtype: torch.dtype) -> float:
    lead = (batch,) if batch > 1 else ()
    a, b = torch.randn(*lead, m, k).to(dtype), torch.randn(*lead, k, n).to(dtype)
    out = torch.empty(*lead, m, n, dtype=dtype)
    product = torch.bmm if batch > 1 else torch.mm
    inner = max(1, int(2e8 / (2 * batch * m * k * n)))
    times = []
    for _ in range(REPEATS):
        began = now()
        for _ in range(inner):
            product(a, b, out=out)
        times.append((now() - began) / inner)
    return min(times)


def copy_rate(megabytes: int = 256) -> float:
    """Bytes copied per second by one thread, from memory to memory."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8)
    target = torch.ones_like(source)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(REPEATS):
            began = now()
            target.copy_(source)
            times.append(now() - began)
    finally:
        torch.set_num_threads(threads)
    return source.numel() / min(times)
