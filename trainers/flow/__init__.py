"""FLOW: weight rows by how easy the original model finds them."""
