"""Recipe of a mixture of LoRA experts."""
