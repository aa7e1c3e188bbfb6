"""
Weights by your own rules, on rows and on tokens: python examples/own_weights.py MODEL ROWS.jsonl OUTPUT_DIR
"""

import sys

from datasets import load_dataset

from hf_ext import WeightedSFTConfig, WeightedSFTTrainer


def short_answers_first(batch):
    """A rule on rows: a short completion counts for more."""
    return {"weight": [1 / (1 + len(text) / 100) for text in batch["completion"]]}


def double_the_end(batch, length):
    """A rule on tokens: the last ones, where the result stands, count twice what their row counts."""
    rows = zip(batch["input_ids"], batch["weight"], strict=True)
    return {
        "weight": [[weight * (2 if len(ids) - i <= length else 1) for i in range(len(ids))] for ids, weight in rows]
    }


class EndCountsDouble(WeightedSFTTrainer):
    def prepare_rows(self, dataset, args, packing, dataset_name):
        if dataset_name == "train":  # tokenised, and neither cut nor packed yet
            dataset = dataset.map(double_the_end, batched=True, fn_kwargs={"length": 5})
        return super().prepare_rows(dataset, args, packing, dataset_name)


if __name__ == "__main__":
    model, file, output_dir = sys.argv[1:]
    rows = load_dataset("json", data_files=file, split="train").map(short_answers_first, batched=True)
    args = WeightedSFTConfig(output_dir, report_to="none", bf16=False)
    trainer = EndCountsDouble(model, args, train_dataset=rows)
    trainer.train()
    trainer.save_model()
