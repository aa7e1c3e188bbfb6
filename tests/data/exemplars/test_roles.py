"""Columns are told by their names wherever these tell, by their place elsewhere; a pair labelled 0 is no exemplar."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_ext.data.exemplars import ExemplarStore, add_in_context_examples
from hf_ext.data.exemplars.roles import read_roles
from hf_ext.guards.rows import RowError


@pytest.mark.parametrize(
    ("columns", "query", "document", "negatives", "other"),
    [
        ("answer question", "question", "answer", "", ""),
        ("Answer Question", "Question", "Answer", "", ""),
        ("title context question", "question", "context", "", "title"),
        ("title query positive", "query", "positive", "", "title"),
        ("query title text", "query", "text", "", "title"),
        ("question context answer", "question", "answer", "", "context"),
        ("query positive hard", "query", "positive", "", "hard"),
        ("neg_2 pos neg_1 query", "query", "pos", "neg_2 neg_1", ""),
        ("hard_negative positive anchor", "anchor", "positive", "hard_negative", ""),
        ("anchor entailment contradiction", "anchor", "entailment", "contradiction", ""),
        ("docText queryText negativeText", "queryText", "docText", "negativeText", ""),
        ("sentence3 sentence2 sentence1", "sentence1", "sentence2", "sentence3", ""),
        ("sentence_1 sentence_0", "sentence_0", "sentence_1", "", ""),
        ("text_b text_a", "text_a", "text_b", "", ""),
        ("question2 question1", "question1", "question2", "", ""),
        ("query document_1 document_2", "query", "document_1", "document_2", ""),
        ("answer text", "text", "answer", "", ""),
        ("url text other", "text", "other", "", "url"),
        ("answers questions", "questions", "answers", "", ""),
        ("negatives positives queries", "queries", "positives", "negatives", ""),
        ("irrelevant relevant query", "query", "relevant", "irrelevant", ""),
        ("query rejected chosen", "query", "chosen", "rejected", ""),
        ("question distractor1 correct_answer", "question", "correct_answer", "distractor1", ""),
        ("bm25_negative doc_text user_query", "user_query", "doc_text", "bm25_negative", ""),
        ("question long_answer short_answer", "question", "long_answer", "", "short_answer"),
        # names that do not tell, or not alone: by place, as the host reads them
        ("a b c", "a", "b", "c", ""),
        ("a b title", "a", "b", "", "title"),
        ("title abstract", "title", "abstract", "", ""),
        ("document summary", "document", "summary", "", ""),
        ("context response", "context", "response", "", ""),
        ("prompt response", "prompt", "response", "", ""),
        ("source target", "source", "target", "", ""),
        ("text similar_question", "text", "similar_question", "", ""),
        ("original_question rewritten_question", "original_question", "rewritten_question", "", ""),
    ],
)
def test_names_tell_before_places_do(columns, query, document, negatives, other):
    names = columns.split()
    roles = read_roles(names, names)
    assert (roles.query, roles.document) == (query, document)
    assert (roles.negatives, roles.other) == (tuple(negatives.split()), tuple(other.split()))
    told = read_roles(names, names, query=names[1], document=names[0])
    assert (told.query, told.document) == (names[1], names[0])


@pytest.mark.parametrize(
    "name",
    ["id", "_id", "qid", "pid", "positive_id", "docId", "corpus-id", "idx", "uuid", "row_index", "__index_level_0__"],
)
def test_columns_of_ids_are_no_texts(name):
    roles = read_roles([name, "a", "b"], [name, "a", "b"])
    assert (roles.query, roles.document, roles.ids) == ("a", "b", (name,))
    assert read_roles(["grid", "valid"], ["grid", "valid"]).ids == ()


def test_a_pool_takes_the_ids_and_the_negative_that_names_tell():
    rows = {"pid": [7, 8], "answer": ["x", "y"], "neg": ["n", "m"], "qid": [1, None], "question": ["a", "b"]}
    store = ExemplarStore.from_dataset(Dataset.from_dict(rows))
    assert (store.queries, store.column("document"), store.column("negative")) == (["a", "b"], ["x", "y"], ["n", "m"])
    assert (store.column("id"), store.column("doc_id")) == (["1", None], ["7", "8"])


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"query": ["a"], "pos": [["x", "y"]]}, ValueError, "'pos' is a list of texts: make a row of each"),
        ({"query": ["a"], "positive": ["x"], "neg": [["y", "z"]]}, None, ""),
        ({"id": [1.5], "query": ["a"], "positive": ["x"]}, TypeError, r"row 0, column 'id': .* float '1\.5'"),
        ({"id": [True], "query": ["a"], "positive": ["x"]}, TypeError, "column 'id': .* bool 'True'"),
        ({"_id": [{"oid": "x"}], "query": ["a"], "positive": ["x"]}, None, ""),
    ],
)
def test_lists_of_texts_and_ids_that_are_none_are_named_or_left(columns, error, message):
    rows = Dataset.from_dict(columns)
    if error is None:
        assert ExemplarStore.from_dataset(rows).column("document") == ["x"]
        return
    with pytest.raises(error, match=message):
        ExemplarStore.from_dataset(rows)


def test_a_list_of_negatives_that_is_named_is_refused():
    rows = Dataset.from_dict({"query": ["a"], "positive": ["x"], "neg": [["y", "z"]]})
    with pytest.raises(TypeError, match="'neg' holds lists of texts, and an exemplar has one negative"):
        ExemplarStore.from_dataset(rows, negative_column="neg")


def labelled(values, feature=None, column="label") -> Dataset:
    rows = {"sentence1": [f"a{i}" for i in range(len(values))], "sentence2": [f"b{i}" for i in range(len(values))]}
    made = Dataset.from_dict(rows | {column: values})
    return made if feature is None else made.cast(Features({**made.features, column: feature}))


NLI = ClassLabel(names=["entailment", "neutral", "contradiction"])
QNLI = ClassLabel(names=["entailment", "not_entailment"])


@pytest.mark.parametrize(
    "rows",
    [
        labelled([1, 1]),
        labelled([1, 3], column="relevance"),
        labelled([1.0, 1.0], column="score"),
        labelled([True, True]),
        labelled([0, 0], NLI),
        labelled([0, 0], QNLI),
        labelled([1, 1], ClassLabel(names=["not_duplicate", "duplicate"])),
        labelled([1, 1], ClassLabel(names=["not_equivalent", "equivalent"])),
        labelled([0, 1], ClassLabel(names=["sports", "politics", "science"])),
        labelled(["yes", "yes"]),
        labelled([0, 17]),  # classes, such as a topic's
        labelled([[0.0, 0.5], [0.1, 0.2]]),  # a teacher's vectors
        labelled([0, 1], column="length"),
    ],
)
def test_pairs_that_match_and_labels_of_something_else_make_a_pool(rows):
    assert len(ExemplarStore.from_dataset(rows)) == 2


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (labelled([1, 0]), "found 0"),
        (labelled([1, -1]), "found -1"),
        (labelled([1, None]), "found None"),
        (labelled([1.0, 0.8], column="score"), r"found 0\.8"),
        (labelled([1.0, 4.2], Value("float32")), "found 4"),
        (labelled([True, False]), "found False"),
        (labelled([0, 1], NLI), "needs 'entailment' or none, found 1 .'neutral'"),
        (labelled([0, 1], QNLI), "found 1 .'not_entailment'"),
        (labelled([1, 0], ClassLabel(names=["not_duplicate", "duplicate"])), "found 0 .'not_duplicate'"),
        (labelled([0, 1], ClassLabel(names=["low", "middle", "high"])), "needs a label that tells"),
        (labelled(["1", "0"]), "found '0'"),
        (labelled([1, 0], column="is_duplicate"), "column 'is_duplicate'"),
    ],
)
def test_a_pair_that_does_not_match_is_no_exemplar(rows, found):
    with pytest.raises(RowError, match=rf"row [01], .*{found}.*dataset\.filter"):
        ExemplarStore.from_dataset(rows)
    with pytest.raises(RowError, match="needs"):
        add_in_context_examples(rows)
    assert len(ExemplarStore.from_dataset(rows.select_columns(["sentence1", "sentence2"]))) == 2
