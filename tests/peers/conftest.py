"""Tests beside the tools of others, for `make test-peers`; nothing here is looked at where those are not installed."""

from __future__ import annotations

import os

if os.environ.get("HF_EXT_PEERS") != "1":
    collect_ignore_glob = ["test_*.py"]

# Ray otherwise writes a token into the home folder, and reports that it was used.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_raylet_start_wait_time_s", "600")  # a busy machine takes longer than its half minute
