"""Keys of a run of the tiny encoder that takes seconds and is measured on two batches."""

TINY_RUN = [
    "recipe=delta_encoder/tiny",
    "training.max_steps=6",
    "data.max_bytes=100000",
    "evaluation.batches=2",
    "evaluation.latency=false",
    "evaluation.bootstrap_samples=2",
    "export.budgets=[]",
]
