"""Settings the benchmark suites share. Each suite adds its own in a subclass.

What a suite ran with is written into its result, so a setting stands here only if every suite
below it reads it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What every suite needs.

    Attributes:
        rounds: recorded rounds, >= 1.
        threads: torch threads; None leaves the setting alone.
        seed: seed of weights, tokens and draws.
    """

    rounds: int
    threads: int | None = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelSettings(BenchSettings):
    """The size of a randomly initialised nested encoder.

    Attributes:
        vocab_size: vocabulary.
        hidden_size: hidden channels.
        num_hidden_layers: layers.
        num_attention_heads: heads.
        intermediate_size: MLP channels.
    """

    vocab_size: int
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    intermediate_size: int = 576


@dataclass(frozen=True, kw_only=True)
class StepSettings(ModelSettings):
    """One training step of the masked LM, in one precision or two.

    Attributes:
        sequence_length: tokens per row.
        batch_size: rows.
        mlm_probability: share of the tokens to predict.
        bf16: also time bfloat16; None does where the processor has it.
    """

    rounds: int = 2
    vocab_size: int = 30_522
    sequence_length: int = 128
    batch_size: int = 8
    mlm_probability: float = 0.15
    bf16: bool | None = None
