"""Started by torchrun in `test_two_process_plus.py`: a few steps on two gloo ranks."""

import gc
import sys
from pathlib import Path

import torch
from tiny_plus import plus_trainer, tiny_plus
from transformers import AutoTokenizer

# Left out are the parts that depend on how a step is cut: see test_plus_training.py.
CHANGES = (
    "model.drop_path=0", "loss.budget_penalty_weight=0", "loss.packing_weight=0",
    "training.save_steps=100",
)  # fmt: skip


def main(folder: Path, tokenizer: Path) -> None:
    """Train 2 x 4 rows a step."""
    recipe = tiny_plus(folder, *CHANGES, "training.batch_size=4")
    trainer = plus_trainer(recipe, AutoTokenizer.from_pretrained(tokenizer))
    assert trainer.args.world_size == 2
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), folder / "weights.pt")
        trainer.state.save_to_json(str(folder / "state.json"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Cycles would keep gloo's threads beyond the interpreter, as in the worker of the trainers.
    del trainer
    gc.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
