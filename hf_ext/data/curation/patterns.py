"""Regular expressions for long lists of words: a trie, which a search walks once instead of trying every word."""

from __future__ import annotations

import re
from collections.abc import Iterable


def trie_pattern(words: Iterable[str]) -> str:
    """
    A pattern that matches any of the words, the longest that fits first.

    Args:
        words (`Iterable[str]`):
            The words, literally; empty ones are passed over.
    """
    root: dict[str, dict] = {}
    for word in filter(None, words):
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _pattern_of(root)


def _pattern_of(root: dict[str, dict]) -> str:
    """Without recursion, so that a word may be as long as a line of a file."""
    # children come before their parents when the nodes are walked from the last on
    nodes = [root]
    for node in nodes:
        nodes.extend(child for character, child in node.items() if character)
    patterns: dict[int, str] = {}
    for node in reversed(nodes):
        branches = [re.escape(c) + patterns[id(child)] for c, child in sorted(node.items()) if c]
        if not branches:
            patterns[id(node)] = "" if node else "(?!)"
        elif len(branches) == 1 and "" not in node:
            patterns[id(node)] = branches[0]
        else:
            patterns[id(node)] = f"(?:{'|'.join(branches)}){'?' if '' in node else ''}"
    return patterns[id(root)]
