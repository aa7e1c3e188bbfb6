"""Checks that stop a run early and name the row: rows, finite values, world size."""
