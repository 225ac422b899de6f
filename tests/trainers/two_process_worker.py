"""Started by torchrun in `test_two_processes.py`: trains the tiny model on two gloo ranks."""

import gc
import sys
from pathlib import Path

import torch
import transformers
from nestling.trainers.process_group import leave_process_group
from tiny_masked_lm_run import StopAt, TinyTrainer, tiny_trainer, weights_of
from torch.nn.parallel import DistributedDataParallel

# transformers 4.57 loads the optimizer to "cpu:0" with several CPU processes, which torch refuses.
HAS_MULTI_PROCESS_CPU_RESUME = int(transformers.__version__.split(".")[0]) >= 5

SHAPE = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 4,
    "max_steps": 6,
    "ddp_backend": "gloo",
}


def main(folder: Path) -> None:
    """Train 6 steps of 2 x 2 x 2 rows; from transformers 5 on, stop and resume at step 4."""
    trainer = tiny_trainer(folder, TinyTrainer, arguments=SHAPE)
    assert trainer.args.world_size == 2
    assert seconds_until_a_process_gives_up() == trainer.args.ddp_timeout == 86400
    if HAS_MULTI_PROCESS_CPU_RESUME:
        trainer.add_callback(StopAt(4))
    trainer.train()
    if HAS_MULTI_PROCESS_CPU_RESUME:
        trainer = tiny_trainer(folder, TinyTrainer, arguments=SHAPE)
        trainer.train(resume_from_checkpoint=True)
    if trainer.is_world_process_zero():
        torch.save(weights_of(trainer.model), folder / "weights.pt")
        trainer.state.save_to_json(str(folder / "final_state.json"))
    del trainer
    leave_as_one()


def seconds_until_a_process_gives_up() -> float:
    """On processors transformers would leave torch's half an hour."""
    group = torch.distributed.distributed_c10d._get_default_group()
    seconds: float = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    return seconds


def leave_as_one() -> None:
    """Leave the group; nothing that holds it may outlive it, and no thread of it may stay."""
    destroy = torch.distributed.destroy_process_group

    def destroy_what_nothing_holds() -> None:
        # With its reducer as the last holder, one process in fifteen hung here on a busy machine.
        kept = [each for each in gc.get_objects() if type(each) is DistributedDataParallel]
        assert not kept, "the model still holds the process group"
        destroy()

    torch.distributed.destroy_process_group = destroy_what_nothing_holds
    leave_process_group()
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in names if "gloo" in name], names


if __name__ == "__main__":
    main(Path(sys.argv[1]))
