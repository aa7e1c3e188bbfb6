"""Launch FLOW."""
