"""The rounds live in [`hf_ext.rounds.online`]; this name of their module is kept for one version."""

from hf_ext.rounds.online import OnlineLoop

__all__ = ["OnlineLoop"]
