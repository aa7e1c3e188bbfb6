"""Fine-tuning beside context-free rows, sampled from the original model."""
