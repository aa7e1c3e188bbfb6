"""
Weights by your own rules, on rows and on tokens: python examples/own_weights.py MODEL ROWS.jsonl OUTPUT_DIR
"""

import sys

from datasets import Dataset, load_dataset

from hf_ext import WeightedSFTConfig, WeightedSFTTrainer


def short_answers_first(batch: dict) -> dict:
    """A rule on rows: a short completion counts for more."""
    return {"weight": [1 / (1 + len(text) / 100) for text in batch["completion"]]}


def double_numbers(batch: dict, numbers: set[int]) -> dict:
    """A rule on tokens: those with a digit count twice what their row counts."""
    rows = zip(batch["input_ids"], batch["weight"], strict=True)
    return {"weight": [[weight * (2 if token in numbers else 1) for token in ids] for ids, weight in rows]}


class NumbersCountDouble(WeightedSFTTrainer):
    def prepare_rows(self, dataset: Dataset, args: WeightedSFTConfig, packing: bool, dataset_name: str) -> Dataset:
        if dataset_name == "train":
            vocabulary = self.processing_class.get_vocab()
            numbers = {i for token, i in vocabulary.items() if any(c.isdigit() for c in token)}
            dataset = dataset.map(double_numbers, batched=True, fn_kwargs={"numbers": numbers})
        return super().prepare_rows(dataset, args, packing, dataset_name)


if __name__ == "__main__":
    model, file, output_dir = sys.argv[1:]
    rows = load_dataset("json", data_files=file, split="train").map(short_answers_first, batched=True)
    args = WeightedSFTConfig(output_dir, report_to="none", bf16=False)
    trainer = NumbersCountDouble(model, args, train_dataset=rows)
    trainer.train()
    trainer.save_model()
