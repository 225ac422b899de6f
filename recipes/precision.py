"""Whether this machine computes faster in bfloat16."""

from .environment import cpu_flags

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def has_fast_bf16(use_cpu: bool = False) -> bool:
    """Return True on a GPU with bfloat16 units, or a CPU with bfloat16 instructions."""
    import torch

    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported()
    return bool(BF16_FLAGS & set(cpu_flags()))
