"""Perplexity weighted by tokens."""

import math


def perplexity(total_loss: float, tokens: int) -> float:
    """Return `exp(total_loss / tokens)`, infinite where that overflows.

    A mean of batch means would weight tokens of short batches more, so sums come in.

    Args:
        total_loss: Cross-entropy summed over all predicted tokens, in nats.
        tokens: Number of predicted tokens, >= 1.

    Raises:
        ValueError: If no token was predicted.
    """
    if tokens < 1:
        raise ValueError(f"perplexity over {tokens} tokens is undefined; give 1 or more")
    try:
        return math.exp(total_loss / tokens)
    except OverflowError:
        return math.inf
