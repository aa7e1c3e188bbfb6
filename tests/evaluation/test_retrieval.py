"""The evaluator of retrievers with exemplars: against hands, definitions, and the host's own evaluator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sentence_transformers.base.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator, NanoBEIREvaluator

pytest.importorskip("bm25s")

from hf_ext import EncoderSettings, ExemplarStore, RareEncoder, RareFormatter
from hf_ext.evaluation.retrieval import RareInformationRetrievalEvaluator, graded_ndcg
from tests.trainers.retrieval import encoder, pairs

QUIET = {"write_csv": False, "show_progress_bar": False}
SETTINGS = EncoderSettings(k=2, formatter=RareFormatter(max_example_query_tokens=20, max_example_document_tokens=20))


def test_graded_ndcg_is_that_of_a_hand_computation():
    grades = {"a": 3, "b": 1, "c": 2, "z": 0}
    ranking = ["b", "x", "a", "z", "c"]
    dcg = 1 / math.log2(2) + 3 / math.log2(4) + 2 / math.log2(6)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert graded_ndcg(ranking, grades, 10) == pytest.approx(dcg / ideal)
    assert graded_ndcg(ranking, grades, 3) == pytest.approx((1 + 3 / 2) / ideal)
    assert graded_ndcg(["a", "c", "b"], grades, 10) == pytest.approx(1)
    assert graded_ndcg([], grades, 10) == 0


class Given:
    """An encoder whose vectors are one-dimensional scores: documents by position, every query alike."""

    similarity_fn_name = "dot"

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores
        self.model_card_data = self

    def set_evaluation_metrics(self, *args) -> None:
        self.card = args

    def encode_query(self, texts, **kwargs):
        return torch.ones(len(texts), 1)

    def encode_document(self, texts, **kwargs):
        return torch.tensor([[self.scores[text]] for text in texts])

    @staticmethod
    def similarity(a, b):
        return a @ b.T


def test_a_document_with_the_querys_id_is_no_hit_and_grades_count():
    corpus = {"q1": "itself", "a": "first", "b": "second", "c": "third"}
    model = Given({"itself": 9.0, "first": 3.0, "second": 2.0, "third": 1.0})
    judged = {"q1": {"a": 1, "b": 3, "q1": 0}, "q2": {"c": 2}}
    evaluator = RareInformationRetrievalEvaluator({"q1": "x", "q2": "y"}, corpus, judged, map_at_k=[2], **QUIET)
    found = evaluator(model)
    ideal = 3 + 1 / math.log2(3)
    first = (1 + 3 / math.log2(3)) / ideal  # a, b, c
    second = 1 / math.log2(5)  # itself, a, b, c: the id is another query's
    assert found["dot_ndcg@10"] == pytest.approx((first + second) / 2)
    assert found["dot_mrr@10"] == pytest.approx((1 + 1 / 4) / 2)
    assert found["dot_recall@3"] == pytest.approx((1 + 0) / 2)
    assert evaluator.primary_metric == "dot_ndcg@10"
    assert "map@3" not in str(found)


def test_a_document_that_is_judged_relevant_is_a_hit_whatever_its_id():
    texts = {"0": "first", "1": "second", "2": "third"}
    model = Given({"first": 3.0, "second": 2.0, "third": 1.0})  # every query ranks 0, 1, 2
    found = RareInformationRetrievalEvaluator(texts, texts, {name: {name} for name in texts}, **QUIET)(model)
    assert found["dot_ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 3)
    # query 0 wants document 1: document 0 is no hit as in BEIR, or counts as in MTEB
    for ignored, rank in ((True, 1), (False, 2)):
        evaluator = RareInformationRetrievalEvaluator(
            texts, texts, {"0": {"1"}}, ignore_identical_ids=ignored, **QUIET
        )  # fmt: skip
        assert evaluator(model)["dot_ndcg@10"] == pytest.approx(1 / math.log2(rank + 1))


@pytest.mark.parametrize(
    "judged",
    [
        {0: {7: 1}, 1: {8: 2}},
        {"0": {"7"}, "1": ["8"]},
        {np.int64(0): np.array([7]), "1": 8},
        {0: "7", 1: {np.int32(8): True, 7: 0, 9: -1}},
    ],
)
def test_queries_documents_and_judgements_may_be_numbered_or_named(judged):
    model = Given({"first": 3.0, "second": 2.0, "third": 1.0})
    corpus = {7: "first", np.int64(8): "second", "9": "third"}
    evaluator = RareInformationRetrievalEvaluator({0: "a", "1": "b", 2: "not judged"}, corpus, judged, **QUIET)
    assert evaluator(model)["dot_ndcg@10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert evaluator.queries_ids == ["0", "1"]


@pytest.mark.parametrize(
    ("queries", "corpus", "judged", "error", "message"),
    [
        ({"1": "a", 1: "b"}, {"d": "x"}, {"1": {"d"}}, ValueError, "queries holds the id '1' twice"),
        ({"1": "a"}, {"d": "x"}, {"1": {"d": 1}, 1: {"d": 2}}, ValueError, "relevant_docs holds the id '1' twice"),
        ({None: "a"}, {"d": "x"}, {"1": {"d"}}, TypeError, "queries: an id is a string or an integer, found NoneType"),
        ({"1": "a"}, {7.0: "x"}, {"1": {7}}, TypeError, "corpus: an id is a string or an integer, found float '7.0'"),
        ({"1": "a"}, {"d": "x"}, {"1": {True}}, TypeError, r"relevant_docs\['1'\]: an id is a string"),
        ({"1": "a"}, {"d": "x"}, {"1": {"d": "high"}}, TypeError, "the grade of 'd' is no number"),
        ({"1": "a"}, {"d": "x"}, {"1": {"d": math.nan}}, ValueError, "the grade of 'd' is nan, and must be finite"),
        (["a"], {"d": "x"}, {"1": {"d"}}, TypeError, "queries maps ids to texts, got list"),
        ({"1": "a"}, {"d": None}, {"1": {"d"}}, TypeError, r"corpus\['d'\] is no text but NoneType: leave it out"),
        ({"1": "a"}, {"d": {"title": "x", "text": "y"}}, {"1": {"d"}}, TypeError, r"corpus\['d'\] .* join its title"),
        ({"q1": "a"}, {"d": "x"}, {"1": {"d"}}, ValueError, "None of the 1 judged queries, such as '1', is among"),
        ({"1": "a"}, {"d": "x"}, {"1": {"doc"}}, ValueError, "None of the 1 relevant documents, such as 'doc'"),
    ],
)
def test_ids_that_cannot_be_told_apart_or_found_are_refused(queries, corpus, judged, error, message):
    with pytest.raises(error, match=message):
        RareInformationRetrievalEvaluator(queries, corpus, judged, **QUIET)


def test_missing_texts_are_counted_in_one_warning_and_scored_as_the_host_scores_them(caplog):
    queries = {"1": "a", "2": "b", "3": "no judgement", "4": "nothing relevant"}
    corpus = {"x": "first", "y": "second"}
    model = Given({"first": 3.0, "second": 2.0})
    judged = {"1": {"x", "gone"}, "2": {"lost"}, "4": set(), "9": {"x"}}
    with caplog.at_level("WARNING"):
        evaluator = RareInformationRetrievalEvaluator(queries, corpus, judged, **QUIET)
    assert len(caplog.records) == 1
    assert "1 of 3 judged queries are not in queries: '9'" in caplog.text
    assert "2 of 3 relevant documents are not in corpus: 'gone', 'lost'" in caplog.text
    assert "1 of 2 queries, with no other, score 0" in caplog.text
    found, host = evaluator(model), InformationRetrievalEvaluator(queries, corpus, judged, **QUIET)(model)
    assert found == pytest.approx(host)
    assert found["dot_ndcg@10"] == pytest.approx(1 / (1 + 1 / math.log2(3)) / 2)


def test_row_numbers_of_a_pool_are_not_the_names_of_other_queries():
    rows = pairs(6)
    corpus = {f"d{i}": text for i, text in enumerate(rows["positive"][:])}
    columns = {"query": rows["query"][:], "document": rows["positive"][:]}
    asked = [text.replace("number", "nr") for text in columns["query"]]
    shares = {}
    for start in ("", "t"):
        names = [f"{start}{i}" for i in range(6)]
        judged = {name: {f"d{i}"} for i, name in enumerate(names)}
        evaluator = RareInformationRetrievalEvaluator(
            dict(zip(names, asked, strict=True)), corpus, judged, exemplars=ExemplarStore(columns), settings=SETTINGS,
            **QUIET,
        )  # fmt: skip
        shares[start] = evaluator(encoder())["cosine_leaked_share"]
        named = ExemplarStore(columns | {"id": list(range(6))})
        evaluator.exemplars = named
        shares[f"{start}, ids given"] = evaluator(encoder())["cosine_leaked_share"]
    assert shares == {"": 1, "t": 1, ", ids given": 0, "t, ids given": 1}


def task(n: int = 12):
    """Queries of which the first half is answered by a document of the pool."""
    rows = pairs(24)
    queries = {f"t{i}": rows["query"][i].replace("number", "nr") for i in range(n)}
    corpus = {f"d{i}": text for i, text in enumerate(rows["positive"][:])}
    relevant = {f"t{i}": {f"d{i}"} for i in range(n)}
    kept = [i for i in range(24) if i < n // 2 or i >= n]
    columns = {"query": [rows["query"][i] for i in kept], "document": [rows["positive"][i] for i in kept]}
    return queries, corpus, relevant, ExemplarStore(columns | {"id": [f"q{i}" for i in kept]})


def test_without_exemplars_the_metrics_are_the_hosts():
    queries, corpus, relevant, _ = task()
    host = InformationRetrievalEvaluator(queries, corpus, relevant, **QUIET)(encoder())
    ours = RareInformationRetrievalEvaluator(queries, corpus, relevant, **QUIET)(encoder())
    assert ours == pytest.approx(host)


def test_the_halves_add_up_and_each_number_is_what_it_says():
    queries, corpus, relevant, store = task()
    evaluator = RareInformationRetrievalEvaluator(
        queries, corpus, relevant, exemplars=store, settings=SETTINGS, name="toy", **QUIET
    )
    base = encoder()
    found = evaluator(base)
    encoder_ = RareEncoder.from_model(base, store, SETTINGS)
    vectors, shown = encoder_.encode_query(list(queries.values()), return_examples=True)
    documents = encoder_.encode_document(list(corpus.values()))
    names = list(corpus)
    by_text = {text: name for name, text in corpus.items()}
    ndcg, copied, leaked, wrong = [], [], [], []
    for own, vector, hits in zip(relevant.values(), vectors, shown, strict=True):
        ranking = [names[i] for i in np.argsort(-(documents @ vector), kind="stable")]
        gold = next(iter(own))
        rank = ranking.index(gold)
        ndcg.append(1 / math.log2(rank + 2) if rank < 10 else 0.0)
        whole = [store.column("document")[hit.row] for hit in hits]
        seen = [by_text[text] for text in whole]
        copied.append(1 / math.log2(seen.index(gold) + 2) if gold in seen else 0.0)
        leaked.append(gold in seen)
        wrong.append(ranking[0] in seen and ranking[0] != gold)
    leaked = np.array(leaked)
    assert 0 < leaked.sum() < len(leaked)
    assert found["toy_cosine_ndcg@10"] == pytest.approx(np.mean(ndcg))
    assert found["toy_cosine_copy_ndcg@10"] == pytest.approx(np.mean(copied))
    assert found["toy_cosine_leaked_share"] == leaked.mean()
    assert found["toy_cosine_leaked_ndcg@10"] == pytest.approx(np.array(ndcg)[leaked].mean())
    assert found["toy_cosine_clean_ndcg@10"] == pytest.approx(np.array(ndcg)[~leaked].mean())
    both = leaked.mean() * found["toy_cosine_leaked_ndcg@10"] + (~leaked).mean() * found["toy_cosine_clean_ndcg@10"]
    assert both == pytest.approx(found["toy_cosine_ndcg@10"])
    assert found["toy_cosine_copied_wrong_share"] == np.mean(wrong)
    assert found["toy_cosine_augmented_share"] == 1
    assert found["toy_cosine_ms_per_query"] > 0
    assert found["toy_cosine_plain_ms_per_query"] > 0
    host = InformationRetrievalEvaluator(queries, corpus, relevant, **QUIET)(encoder())
    for metric in ("ndcg@10", "mrr@10", "recall@10"):
        assert found[f"toy_cosine_plain_{metric}"] == pytest.approx(host[f"cosine_{metric}"])


def test_an_exemplar_with_the_querys_own_id_or_text_is_not_shown():
    rows = pairs(24)
    store = ExemplarStore.from_dataset(rows)
    queries = {"q3": "where is it number 3", "x": rows["query"][5]}
    corpus = {f"d{i}": text for i, text in enumerate(rows["positive"][:])}
    evaluator = RareInformationRetrievalEvaluator(
        queries, corpus, {"q3": {"d3"}, "x": {"d5"}}, exemplars=store, settings=SETTINGS, **QUIET
    )
    found = evaluator(encoder())
    assert [hit.id for hit in evaluator.shown_exemplars[0] if hit.id == "q3"] == []
    assert [hit.id for hit in evaluator.shown_exemplars[1] if hit.id == "q5"] == []
    assert found["cosine_leaked_share"] == 0
    assert "cosine_leaked_ndcg@10" not in found


def test_the_models_own_pool_serves_and_the_card_holds_the_numbers(tmp_path):
    queries, corpus, relevant, store = task()
    model = RareEncoder.from_model(encoder(), store, SETTINGS)
    evaluator = RareInformationRetrievalEvaluator(queries, corpus, relevant, name="toy", **QUIET)
    again = RareInformationRetrievalEvaluator(queries, corpus, relevant, name="second", **QUIET)
    found = SequentialEvaluator([evaluator, again], main_score_function=lambda scores: scores[0])(model)
    assert found["toy_cosine_ndcg@10"] == found["second_cosine_ndcg@10"] == found["sequential_score"]
    model.model_card_data.tags.append("generated_from_trainer")  # else the card of a saved model is kept
    model.save(str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    for metric in ("cosine_clean_ndcg@10", "cosine_copy_ndcg@10", "cosine_leaked_share", "cosine_plain_ms_per_query"):
        assert metric in card


def test_it_serves_as_nanobeirs_class(monkeypatch):
    queries, corpus, relevant, store = task()
    subsets = {
        "queries": [{"_id": name, "text": text} for name, text in queries.items()],
        "corpus": [{"_id": name, "text": text} for name, text in corpus.items()],
        "qrels": [{"query-id": name, "corpus-id": doc} for name, own in relevant.items() for doc in own],
    }
    monkeypatch.setattr(
        NanoBEIREvaluator, "_load_dataset_subset_split", lambda self, subset, **kwargs: subsets[subset]
    )

    class Nano(NanoBEIREvaluator):
        information_retrieval_class = RareInformationRetrievalEvaluator

    found = Nano(["scifact", "nq"], write_csv=False)(RareEncoder.from_model(encoder(), store, SETTINGS))
    assert found["NanoSciFact_cosine_clean_ndcg@10"] == found["NanoNQ_cosine_clean_ndcg@10"]
    assert found["NanoBEIR_mean_cosine_copy_ndcg@10"] == found["NanoNQ_cosine_copy_ndcg@10"]


def test_nothing_relevant_is_said():
    with pytest.raises(ValueError, match="nothing to measure"):
        RareInformationRetrievalEvaluator({"q": "x"}, {"d": "y"}, {"q": {"d": 0}})


def test_mteb_reads_each_task_with_its_own_pool():
    pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    from hf_ext.evaluation.mteb_wrapper import RareMtebEncoder

    queries, _, _, store = task()
    ours = RareEncoder.from_model(encoder(), None, SETTINGS)
    wrapped = RareMtebEncoder(ours, {"Toy": store})
    texts = list(queries.values())

    class Task:
        name = "Toy"
        type = "Retrieval"

    loader = DataLoader(Dataset.from_dict({"text": texts}), batch_size=4)
    where = {"task_metadata": Task, "hf_split": "test", "hf_subset": "", "prompt_type": PromptType.query}
    vectors = wrapped.encode(loader, **where)
    expected = RareEncoder.from_model(encoder(), store, SETTINGS).encode_query(texts)
    np.testing.assert_allclose(np.asarray(vectors), expected, atol=1e-6)
    assert wrapped.pool_sizes == {"Toy": len(store)}
    assert wrapped.first_queries["Toy"].endswith(texts[0])
    assert "Positive Document: " in wrapped.first_queries["Toy"]
    assert ours.exemplars is None
    Task.name = "Another"
    bare = wrapped.encode(loader, **where)
    np.testing.assert_allclose(np.asarray(bare), ours.encode_query(texts), atol=1e-6)
    with pytest.raises(TypeError, match="wraps a RareEncoder"):
        RareMtebEncoder(encoder())


def test_the_mteb_wrapper_names_its_extra_where_mteb_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    monkeypatch.setitem(sys.modules, "mteb.models.abs_encoder", None)
    monkeypatch.delitem(sys.modules, "hf_ext.evaluation.mteb_wrapper", raising=False)
    with pytest.raises(ImportError, match=r"mteb is not installed.*hf-ext\[mteb\]"):
        import hf_ext.evaluation.mteb_wrapper  # noqa: F401
