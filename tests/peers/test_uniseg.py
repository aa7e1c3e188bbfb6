"""Words by UAX#29 against uniseg's, on real documents in many languages and on random strings."""

from __future__ import annotations

import re

import numpy as np
import pytest

uniseg = pytest.importorskip("uniseg.wordbreak")

from hf_ext.data.curation.unicode_tables import WORD_BREAK_CLASSES, unicode_tables  # noqa: E402
from hf_ext.data.curation.words import segments_uax  # noqa: E402
from tests.data.curation.documents import html_texts, text_docs  # noqa: E402

# A boundary lies before a space that follows none, whatever is around: of documents that share most of their lines,
# the different pieces between such places say all, in a tenth of the time.
PIECES = re.compile(r"(?<=\S)(?= )|(?<=\n)")


def has_one_class(character: str) -> bool:
    """Whether both tables know a character alike: they may be of different years."""
    name = uniseg.word_break(character).name.replace("_", "").lower()
    names = [known.replace("_", "").lower() for known in WORD_BREAK_CLASSES]
    number = unicode_tables().word_break[ord(character)]
    return number == (names.index(name) if name in names else 0)


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_segments_of_all_documents_are_unisegs(real_data):
    pieces = set()
    for text in [row["text"] for row in text_docs(real_data)] + html_texts(real_data):
        pieces_of_text = PIECES.split(text)
        assert [segment for piece in pieces_of_text for segment in segments_uax(piece)] == segments_uax(text)
        pieces.update(pieces_of_text)
    strangers = {character for character in set().union(*pieces) if not has_one_class(character)}
    shared = [piece for piece in pieces if strangers.isdisjoint(piece)]
    assert len(shared) > 0.999 * len(pieces)
    for piece in shared:
        assert segments_uax(piece) == list(uniseg.words(piece)), ascii(piece)[:200]


def test_segments_of_random_strings_of_all_classes_are_unisegs():
    generator = np.random.default_rng(1)
    classes = unicode_tables().word_break
    members: list[list[str]] = []
    for number in range(len(WORD_BREAK_CLASSES)):
        characters = map(chr, generator.permutation(np.flatnonzero(classes == number))[:400])
        members.append(list(filter(has_one_class, characters)))
    assert all(members)
    members.append(["\u2139", "\u24c2", "\U0001f600", "\u00a9"])  # pictographs, some of them letters
    for _ in range(30_000):
        pools = generator.integers(len(members), size=generator.integers(1, 14))
        text = "".join(members[pool][generator.integers(len(members[pool]))] for pool in pools)
        assert segments_uax(text) == list(uniseg.words(text)), ascii(text)
