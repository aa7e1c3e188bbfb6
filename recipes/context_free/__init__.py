"""Launch fine-tuning beside context-free rows."""
