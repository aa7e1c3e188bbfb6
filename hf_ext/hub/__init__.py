"""Model cards and pushes."""
