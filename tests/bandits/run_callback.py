"""Two processes train with `CheckpointSelectionCallback`: `torchrun ... -m tests.bandits.run_callback FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from hf_ext.bandits.checkpoint_callback import CheckpointSelectionCallback
from hf_ext.data.provenance import weights_hash
from tests.bandits.test_checkpoints import sft_trainer
from tests.tiny import tiny_prompt_completion_dataset


def main() -> None:
    """Train, and write what was chosen and loaded, a file a process."""
    folder = Path(sys.argv[1])
    trainer = sft_trainer(folder / "run", max_steps=3, save_steps=1, learning_rate=0.3, ddp_backend="gloo")
    callback = CheckpointSelectionCallback(trainer, tiny_prompt_completion_dataset(40, seed=5))
    trainer.add_callback(callback)
    trainer.train()
    facts = {
        "world": trainer.args.world_size,
        "name": callback.selection.name,
        "weights": weights_hash(trainer.accelerator.unwrap_model(trainer.model)),
    }
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
