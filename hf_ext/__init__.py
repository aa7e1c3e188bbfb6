"""Post-training for Hugging Face models that keeps what a model already knows."""
