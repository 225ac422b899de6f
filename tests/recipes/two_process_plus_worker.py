"""Started by torchrun in `test_two_process_plus.py`: a few steps on two gloo ranks."""

import sys
from pathlib import Path

from nestling.trainers.process_group import leave_process_group
from safetensors.torch import save_file
from tiny_plus import plus_trainer, tiny_plus
from transformers import AutoTokenizer


def main(folder: Path, tokenizer: Path, changes: list[str]) -> None:
    """Train 2 x 4 rows a step."""
    recipe = tiny_plus(folder, *changes, "training.batch_size=4")
    trainer = plus_trainer(recipe, AutoTokenizer.from_pretrained(tokenizer))
    assert trainer.args.world_size == 2
    trainer.train()
    if trainer.is_world_process_zero():
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        if trainer.threshold.threshold is not None:
            weights["threshold"] = trainer.threshold.threshold
        save_file(weights, folder / "weights.safetensors")
        trainer.state.save_to_json(str(folder / "state.json"))
    del trainer
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
