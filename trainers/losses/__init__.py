"""Loss terms, one a file: pure tensors in, `LossSum` out."""
