"""Configuration files for `accelerate launch --config_file`."""
