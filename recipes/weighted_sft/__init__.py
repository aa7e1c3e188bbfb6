"""Launch supervised fine-tuning with a `weight` column."""
