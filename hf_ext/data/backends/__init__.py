"""Engines that sample rows in place of our own loop, behind one protocol, and the probe that each must pass."""
