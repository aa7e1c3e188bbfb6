"""What every trainer of hf-ext shares: checkpoints, pushes, cards, steps."""
