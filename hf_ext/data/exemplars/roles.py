"""Which column of a data set plays which part, for pool and trainer alike: by name where names tell, else by place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["query", "document", "negative"]

QUERY_IDS = ("query_id", "query-id", "queryid", "qid", "id", "_id")
DOCUMENT_IDS = (
    "doc_id", "docid", "document_id", "positive_id", "pos_id", "pid", "passage_id", "corpus_id", "corpus-id", "did",
)  # fmt: skip
LABELS = ("label", "labels", "score", "scores")  # what sentence-transformers takes for labels, not for texts
QUERIES = ("query", "anchor", "question", "search_query", "premise", "claim", "q")
CERTAIN_DOCUMENTS = ("positive", "pos", "answer", "passage", "relevant")
# Only beside a query: alone they may be what is asked, as the context of a response or a document that is summed up.
DOCUMENTS = ("document", *CERTAIN_DOCUMENTS, "doc", "context", "response", "entailment", "hypothesis", "chosen", "d")
_QUERY_ENDS = re.compile(r".*[_\- ](?:query|question)")  # as in `user_query`
_DOCUMENT_ENDS = re.compile(r".*[_\- ](?:positive|pos|answer|passage|document|doc|response)")  # as in `correct_answer`
_TEXT = r"(?:[_\- ](?:text|string|body|sentence)s?)?"
_PASSAGE = r"(?:[_\- ](?:text|string|body|sentence|doc|document|passage|context)s?)?"
_ID = re.compile(
    r"(?:.*[_\-. ])?(?:u?u?id|guid|idx|index|ids)|__index_level_\d+__|[qpdc]id|(?:doc|query|corpus|passage)id"
)
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # of camel case
_NEGATIVE = re.compile(
    r"(?:(?:.*[_\- ]|hard)?neg(?:ative)?s?|irrelevant|(?:non|not)[_\- ]?relevant|rejected|distractors?)"
    r"(?:[_\- ]?(?:doc|document|passage|context|text|answer|response|sentence)s?)?[_\- ]?\d*"
    r"|contradiction"
)
_NUMBERED = re.compile(r"(sentence|sent|question|text|query|document|passage)[_\- ]?([0-9ab])")
_FACT = re.compile(
    r"(?:url|uri|link|source|lang|language|locale|split|subset|config|domain|category|tag|author|date|time|timestamp"
    r"|licen[cs]e|metadata|meta|dataset|dataset_name)s?"
)
_HEADING = re.compile(r"(?:(?:sub)?title|topic|type|task|task_name|instruction|prompt)s?")


@dataclass(frozen=True)
class ColumnRoles:
    """
    The part each column plays.

    Args:
        query, document (`str`, *optional*): texts; `None` where there is none to choose.
        negatives (`tuple[str, ...]`): further documents, which do not answer the query.
        other (`tuple[str, ...]`): texts that are none of these by their names.
        id, doc_id (`str`, *optional*): ids of query and document.
        ids, labels (`tuple[str, ...]`): columns of any id, and of labels, which are no texts.
    """

    query: str | None
    document: str | None
    negatives: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    id: str | None = None
    doc_id: str | None = None
    ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def order(self) -> list[str]:
        """What stays of the columns, in the order that losses need."""
        texts = [name for name in (self.query, self.document, *self.negatives) if name is not None]
        return [*texts, *dict.fromkeys(name for name in (self.id, self.doc_id) if name is not None), *self.labels]


def plain(name: str) -> str:
    """A name as names are compared: in lower case, `docText` as `doc_text`."""
    return _WORD_START.sub("_", name).lower()


def is_id(name: str) -> bool:
    """Whether a column holds ids by its name: `qid`, `positive_id`, `docId`, pandas' `__index_level_0__`."""
    return bool(_ID.fullmatch(plain(name)))


def is_negative(name: str) -> bool:
    """Whether a column holds documents to avoid by its name: `negative`, `neg_3`, `hard_negatives`."""
    return bool(_NEGATIVE.fullmatch(plain(name)))


def is_document(name: str) -> bool:
    """Whether a column holds a document, or several, by its name: `passage`, `answers`, `context_text`."""
    return any(re.fullmatch(f"{document_name}s?{_PASSAGE}", plain(name)) for document_name in DOCUMENTS)


def read_roles(
    names: Sequence[str],
    texts: Sequence[str],
    *,
    query: str | None = None,
    document: str | None = None,
    id: str | None = None,
    doc_id: str | None = None,
) -> ColumnRoles:
    """
    The part of each column.

    Names tell first: `question` is a query and `answer` its document wherever they stand. What no name tells goes by
    place, as in sentence-transformers: the first free text is the query, the second its document, all others are
    negatives. Where both names tell, or one is told by name and one by the caller, a further text is a negative only
    if its name says so.

    Args:
        names (`Sequence[str]`):
            Of all columns, in order.
        texts (`Sequence[str]`):
            Of those that hold strings.
        query, document, id, doc_id (`str`, *optional*):
            Columns that the caller names.
    """
    caller_names = {query, document}
    ids = tuple(name for name in names if name not in caller_names and (name in (id, doc_id) or is_id(name)))
    labels = tuple(name for name in names if name in LABELS and name not in caller_names)
    free = [name for name in texts if name not in (*caller_names, *ids, *labels)]
    by_name = _roles_by_name(free, has_query=query is not None)
    queries, documents = ([name for name in by_name if by_name[name] == role] for role in ("query", "document"))
    certain = bool((query or queries) and (document or documents)) and not (query and document)
    query = query or next(iter(queries), None)
    document = document or next(iter(documents), None)
    rest = [name for name in free if name not in (query, document) and by_name.get(name) != "negative"]
    by_place = iter(_likely(rest, (query is None) + (document is None), has_query=query is not None))
    query = query or next(by_place, None)
    document = document or next(by_place, None)
    further_texts = [name for name in free if name not in (query, document)]
    negatives = tuple(
        name
        for name in further_texts
        if by_name.get(name) == "negative" or (not certain and name not in by_name and not _is_beside(name))
    )
    other = tuple(name for name in further_texts if name not in negatives)
    id = id or next((name for key in QUERY_IDS for name in ids if plain(name) == key and name != doc_id), None)
    doc_id = doc_id or next((name for key in DOCUMENT_IDS for name in ids if plain(name) == key and name != id), None)
    return ColumnRoles(query, document, negatives, other, id, doc_id, ids, labels)


def _roles_by_name(texts: Sequence[str], has_query: bool) -> dict[str, Role]:
    """Roles of the texts whose names tell, the likelier ones first."""
    roles: dict[str, Role] = {name: "negative" for name in texts if is_negative(name)}
    rest = [name for name in texts if name not in roles]
    for query_name in QUERIES:
        roles |= {name: "query" for name in rest if _reads(name, query_name + _TEXT)}
    has_query = has_query or "query" in roles.values()
    if not has_query:
        for first, second, *further in _numbered(rest):
            has_query = True
            roles[first] = "query"
            roles[second] = "document"
            roles.update((name, "negative") for name in further)
    ends = [] if has_query else [name for name in rest if _QUERY_ENDS.fullmatch(plain(name))]
    for document_name in DOCUMENTS if has_query or ends else CERTAIN_DOCUMENTS:
        roles |= {name: "document" for name in rest if name not in ends and _reads(name, document_name + _PASSAGE)}
    if (has_query or ends) and "document" not in roles.values():
        roles |= {name: "document" for name in rest if name not in roles and _DOCUMENT_ENDS.fullmatch(plain(name))}
    if "document" in roles.values():  # alone, `similar_question` may be the answer to a text
        roles |= dict.fromkeys(ends, "query")
    return roles


def _reads(name: str, pattern: str) -> bool:
    """Whether a name, or its singular, is what a pattern says."""
    name = plain(name)
    singular = re.sub(r"ies$", "y", name) if name.endswith("ies") else name.removesuffix("s")
    return any(re.fullmatch(pattern, form) for form in (name, singular))


def _numbered(names: Sequence[str]) -> Iterator[list[str]]:
    """Columns that only a number tells apart, in its order: `sentence1` and `sentence2`, `text_a` and `text_b`."""
    stems: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(plain(name)):
            stems.setdefault(match[1], []).append((match[2], name))
    for columns in stems.values():
        if len(columns) > 1:
            yield [name for _, name in sorted(columns)]


def _is_beside(name: str) -> bool:
    """Whether a column says something about the texts, as a title or a source."""
    return bool(_FACT.fullmatch(plain(name)) or _HEADING.fullmatch(plain(name)))


def _likely(texts: list[str], fewest: int, has_query: bool) -> list[str]:
    """Texts that may be query or document by place: no sources and, beside a query, no titles, if enough are left."""
    likely = [name for name in texts if not (_is_beside(name) if has_query else _FACT.fullmatch(plain(name)))]
    return likely if len(likely) >= fewest else texts


def is_list_of_texts(feature: object) -> bool:
    """Whether a column holds a list of strings in each row."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    return getattr(inner, "dtype", None) in ("string", "large_string")
