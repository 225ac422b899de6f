"""Started by torchrun in `test_two_processes.py`: trains the tiny model on two gloo ranks."""

import sys
from pathlib import Path

import torch
from tiny_masked_lm_run import StopAt, TinyTrainer, tiny_trainer, weights_of

SHAPE = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 4,
    "max_steps": 6,
    "ddp_backend": "gloo",
}


def main(folder: Path) -> None:
    """Train 4 steps of 2 x 2 x 2 rows, then resume inside the second epoch up to step 6."""
    first = tiny_trainer(folder, TinyTrainer, arguments=SHAPE)
    assert first.args.world_size == 2
    first.add_callback(StopAt(4))
    first.train()
    second = tiny_trainer(folder, TinyTrainer, arguments=SHAPE)
    second.train(resume_from_checkpoint=True)
    if second.is_world_process_zero():
        torch.save(weights_of(second.model), folder / "weights.pt")
        second.state.save_to_json(str(folder / "final_state.json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
