"""`RareEncoder`: one repository three ways, the parent's vectors where no exemplar is shown, gate and blend."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from hf_ext import EncoderSettings, ExemplarStore, QueryAugmenter, RareEncoder, RareFormatter
from hf_ext.data.exemplars import Exclude, Exemplar, Target
from hf_ext.retrieval.vectors import blend
from tests.trainers.retrieval import encoder, pairs

pytest.importorskip("bm25s")

PROMPT = "Instruct: find it\nQuery: "
SETTINGS = EncoderSettings(k=2, formatter=RareFormatter(max_example_query_tokens=20, max_example_document_tokens=16))
QUERIES = ["where is the calm kite number 3", "where is it", "zzz"]
POOL = pairs(24)


def store(**options) -> ExemplarStore:
    return ExemplarStore.from_dataset(POOL, **options)


def model(exemplars=None, settings=SETTINGS, prompt: str = PROMPT, **options) -> RareEncoder:
    base = encoder()
    base.prompts["query"] = prompt
    return RareEncoder.from_model(base, store() if exemplars is None else exemplars, settings, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model().save(str(folder))
    return folder


def test_vectors_without_examples_are_the_parents_bit_for_bit(saved):
    plain = SentenceTransformer(str(saved), device="cpu").encode_query(QUERIES)
    ours = RareEncoder(str(saved), device="cpu")
    np.testing.assert_array_equal(ours.encode_query(QUERIES, examples=False), plain)
    np.testing.assert_array_equal(ours.encode_query(QUERIES, examples=0), plain)
    with ours.no_examples():
        np.testing.assert_array_equal(ours.encode_query(QUERIES), plain)
    assert np.abs(ours.encode_query(QUERIES) - plain).max() > 0.01
    documents = ["a document"]
    np.testing.assert_array_equal(
        ours.encode_document(documents), SentenceTransformer(str(saved), device="cpu").encode_document(documents)
    )


def test_the_vector_is_the_stock_encoders_of_the_written_text():
    ours = model(settings=EncoderSettings(k=2, pool_examples=True))  # with room for all of an exemplar
    vectors, shown = ours.encode_query(QUERIES, return_examples=True)
    texts = []
    for query, hits in zip(QUERIES, shown, strict=True):
        blocks = [f"{hit.query}\nPositive Document: {hit.document}\n\nQuery: " for hit in reversed(hits)]
        texts.append("".join(blocks) + query)
    assert [len(hits) for hits in shown] == [2, 2, 0]
    np.testing.assert_allclose(vectors, encoder().encode(texts, prompt=PROMPT), atol=1e-6)


def test_save_and_load_keep_exemplars_settings_and_vectors(saved):
    names = sorted(path.relative_to(saved).as_posix() for path in (saved / "exemplars").iterdir())
    assert len(names) == 2
    assert names[0].endswith(".parquet")
    assert names[1] == "exemplars/rare_config.json"
    again = RareEncoder(str(saved), device="cpu")
    assert len(again.exemplars) == 24
    assert again.settings.k == 2
    assert again.settings.formatter.max_tokens == 256  # no longer than the model reads
    np.testing.assert_array_equal(again.encode_query(QUERIES), model().encode_query(QUERIES))
    modules = json.loads((saved / "modules.json").read_text())
    assert all(entry["type"].startswith("sentence_transformers.") for entry in modules)


WITHOUT_US = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_ext":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import numpy as np
from sentence_transformers import SentenceTransformer
assert "hf_ext" not in sys.modules
model = SentenceTransformer(sys.argv[1], device="cpu")
np.save(sys.argv[2], model.encode_query(sys.argv[3:]))
"""


def test_the_repository_opens_where_hf_ext_is_not_installed(saved, tmp_path):
    out = tmp_path / "vectors.npy"
    command = [sys.executable, "-I", "-c", WITHOUT_US, str(saved), str(out), *QUERIES]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    ours = RareEncoder(str(saved), device="cpu").encode_query(QUERIES, examples=False)
    np.testing.assert_array_equal(np.load(out), ours)


@pytest.mark.slow  # makes an environment
def test_the_repository_opens_in_another_environment(saved, tmp_path):
    import sysconfig

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    own = Path(
        subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "hf_ext" not in entry.name and not entry.name.endswith(".pth"):
            (own / entry.name).symlink_to(entry)
    missing = subprocess.run([python, "-c", "import hf_ext"], cwd=tmp_path, capture_output=True, check=False)
    assert b"No module named 'hf_ext'" in missing.stderr
    out = tmp_path / "vectors.npy"
    code = WITHOUT_US.replace("sys.meta_path.insert(0, Refuse())", "")
    subprocess.run([python, "-c", code, str(saved), str(out), *QUERIES], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(
        np.load(out), RareEncoder(str(saved), device="cpu").encode_query(QUERIES, examples=0)
    )


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_examples_may_be_a_number_or_a_list_for_every_query():
    ours = model()
    _, shown = ours.encode_query(QUERIES[:2], examples=1, return_examples=True)
    assert [len(hits) for hits in shown] == [1, 1]
    given = [("past", "document"), Exemplar(0, 0.0, "older", "text")]
    _, shown = ours.encode_query(QUERIES, examples=given, return_examples=True)
    assert [[hit.query for hit in hits] for hits in shown] == [["past", "older"]] * 3
    vector, one = ours.encode_query(QUERIES[0], return_examples=True)
    assert vector.shape == (32,)
    assert len(one) == 2


def test_nothing_is_excluded_at_inference_but_what_the_caller_names():
    ours, own = model(), POOL[5]["query"]
    first = ours.encode_query(own, return_examples=True)[1][0]
    assert (first.id, first.query) == ("q5", own)
    without = ours.encode_query(own, return_examples=True, exclude_ids=["q5"])[1]
    assert "q5" not in [hit.id for hit in without]
    rules = Exclude(True, False, False, False)
    by_rule = ours.encode_query([own], return_examples=True, targets=[Target(id="q5")], exclude=rules)[1][0]
    assert [hit.id for hit in by_rule] == [hit.id for hit in without]


def test_a_zero_hit_query_is_read_bare():
    ours = model()
    np.testing.assert_allclose(ours.encode_query(["zzz"]), ours.encode_query(["zzz"], examples=False), atol=1e-7)


def test_the_target_is_never_cut_by_the_models_own_limit():
    ours = model(settings=EncoderSettings(k=5, formatter=RareFormatter(max_tokens=5000)))
    made = ours.augmenter().augment(["where is the amber kite"], prompt=PROMPT)[0]
    assert made.dropped > 0
    read = ours.tokenizer(PROMPT + made.body, truncation=True, max_length=ours.max_seq_length)["input_ids"]
    assert ours.tokenizer.decode(read).endswith("where is the amber kite")


def test_without_a_pool_the_default_is_plain_and_asking_for_examples_is_an_error():
    ours = RareEncoder.from_model(encoder())
    np.testing.assert_array_equal(ours.encode_query(QUERIES), encoder().encode_query(QUERIES))
    with pytest.raises(ValueError, match="no pool to take exemplars from"):
        ours.encode_query(QUERIES, examples=3)


def test_queries_that_are_no_text_are_refused_with_their_row():
    with pytest.raises(TypeError, match="query 1: exemplars stand before texts, found dict"):
        model().encode_query(["text", {"image": "x"}])
    with pytest.raises(TypeError, match="example 0: expected a pair of texts"):
        model().encode_query(["text"], examples=[3])


# --- gate and blend --------------------------------------------------------------------------------------------------


def test_the_gate_reads_a_query_bare_whose_nearest_exemplar_scores_below_the_floor():
    ours = model()
    scores = [hits[0].score for hits in ours.encode_query(QUERIES[:2], return_examples=True)[1]]
    assert scores[0] > scores[1]
    ours.settings = EncoderSettings(k=2, formatter=SETTINGS.formatter, floor=sum(scores) / 2)
    vectors, shown = ours.encode_query(QUERIES[:2], return_examples=True)
    assert [len(hits) for hits in shown] == [2, 0]
    np.testing.assert_allclose(vectors[1], ours.encode_query(QUERIES[1], examples=False), atol=1e-6)
    ours.settings = EncoderSettings(k=2, formatter=SETTINGS.formatter, min_score=sum(scores) / 2)
    assert all(
        hit.score >= sum(scores) / 2 for hits in ours.encode_query(QUERIES, return_examples=True)[1] for hit in hits
    )


@pytest.mark.parametrize("weight", [0.2, 0.7])
def test_the_blend_is_the_normalised_mean_of_both_vectors(weight):
    ours = model()
    shown, plain = ours.encode_query(QUERIES), ours.encode_query(QUERIES, examples=False)
    ours.settings = EncoderSettings(k=2, formatter=SETTINGS.formatter, example_weight=weight)
    mixed = ours.encode_query(QUERIES)
    expected = weight * shown + (1 - weight) * plain
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    np.testing.assert_allclose(mixed[2], plain[2], atol=1e-6)  # nothing shown, nothing blended
    tensors = ours.encode_query(QUERIES, convert_to_tensor=True)
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_allclose(tensors.numpy(), mixed, atol=1e-6)
    assert isinstance(ours.encode_query(QUERIES, convert_to_numpy=False), list)
    assert ours.encode_query(QUERIES, precision="ubinary").dtype == np.uint8
    with pytest.raises(ValueError, match="sentence embeddings"):
        ours.encode_query(QUERIES, output_value="token_embeddings")


def test_a_blend_of_vectors_of_any_length_has_the_mean_length():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    made = blend(a, b, 0.5)
    torch.testing.assert_close(made.norm(), torch.tensor(2.0))
    torch.testing.assert_close(made[0, 0], made[0, 1])
    torch.testing.assert_close(blend(a, b, 1.0), b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"example_weight": 0.0}, "examples=False"), ({"k": -1}, "0 or more"), ({"mmr": 2.0}, r"lies in \[0, 1\]")],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EncoderSettings(**settings)


# --- dense, cache, processes -----------------------------------------------------------------------------------------


def test_dense_choice_uses_the_models_own_plain_vectors():
    ours = RareEncoder.from_model(encoder(), settings=SETTINGS)
    ours.exemplars = store(retriever="dense", encode=ours.encode_plain)
    shown = ours.encode_query(QUERIES[:1], return_examples=True)[1][0]
    pool = encoder().encode_query(POOL["query"][:])
    order = np.argsort(-(pool @ encoder().encode_query(QUERIES[0])), kind="stable")
    assert [hit.row for hit in shown] == order[:2].tolist()


def test_stored_vectors_of_other_weights_are_left_aside(tmp_path, caplog):
    from hf_ext.data.exemplars import DenseRetriever

    ours = RareEncoder.from_model(encoder(), settings=SETTINGS)
    vectors = ours.encode_plain(POOL["query"][:])
    dense = DenseRetriever(ours.encode_plain, ours.fingerprint())
    ours.exemplars = ExemplarStore.from_dataset(POOL, retriever=dense, vectors=vectors)
    ours.save(str(tmp_path))
    assert len(list((tmp_path / "exemplars").glob("embeddings-*.safetensors"))) == 1
    again = RareEncoder(str(tmp_path), device="cpu")
    assert again.exemplars.vectors is not None
    np.testing.assert_array_equal(again.encode_query(QUERIES), ours.encode_query(QUERIES))
    again.exemplars = None
    again.exemplars_source = None
    with torch.no_grad():
        next(again.parameters()).add_(0.1)
    SentenceTransformer.save(again, str(tmp_path))
    with caplog.at_level(logging.WARNING):
        changed = RareEncoder(str(tmp_path), device="cpu")
    assert "of another encoder" in caplog.text
    assert changed.exemplars.vectors is None
    assert len(changed.encode_query(QUERIES[:1], return_examples=True)[1][0]) == 2


def test_the_cache_gives_the_same_vectors_and_forgets_when_the_weights_may_change():
    ours = model(cache_size=100)
    first = ours.encode_query(QUERIES)
    assert ours.cache.hits == 0
    np.testing.assert_array_equal(ours.encode_query(QUERIES), first)
    assert ours.cache.hits == 3
    np.testing.assert_array_equal(ours.encode_query(QUERIES[::-1]), first[::-1])
    np.testing.assert_array_equal(ours.encode_query(QUERIES[1]), first[1])
    assert np.abs(ours.encode_query(QUERIES[:1], exclude_ids=["q3"]) - first[:1]).max() >= 0
    tensor = ours.encode_query(QUERIES, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    ours.train()
    assert not ours.cache.entries
    small = model(cache_size=1)
    small.encode_query(QUERIES)
    assert len(small.cache.entries) == 1


def test_several_processes_give_the_vectors_of_one():
    ours = model()
    pool = ours.start_multi_process_pool(["cpu"])
    try:
        assert ours.exemplars is not None
        np.testing.assert_allclose(ours.encode_query(QUERIES, pool=pool), ours.encode_query(QUERIES), atol=1e-6)
    finally:
        ours.stop_multi_process_pool(pool)


@pytest.mark.parametrize(
    "copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_a_copy_encodes_the_same(copied):
    ours = model(cache_size=5)
    before = ours.encode_query(QUERIES)
    np.testing.assert_array_equal(copied(ours).encode_query(QUERIES), before)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_text_alone_needs_no_torch_and_is_what_the_encoder_reads(saved):
    code = (
        "import sys\n"
        "from hf_ext.retrieval import QueryAugmenter\n"
        "augmenter = QueryAugmenter.from_pretrained(sys.argv[1])\n"
        "print(augmenter(sys.argv[2]))\n"
        "assert 'torch' not in sys.modules and 'sentence_transformers' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved), QUERIES[0]], capture_output=True, text=True, check=True
    )
    ours = RareEncoder(str(saved), device="cpu")
    assert done.stdout == PROMPT + ours.augmenter().augment([QUERIES[0]])[0].body + "\n"
    augmenter = QueryAugmenter.from_pretrained(saved)
    assert augmenter(QUERIES, examples=0) == [PROMPT + query for query in QUERIES]
    assert augmenter([QUERIES[0]], with_prompt=False)[0] == ours.augmenter().augment([QUERIES[0]])[0].body
    with pytest.raises(FileNotFoundError, match=r"no exemplars/rare_config.json"):
        QueryAugmenter.from_pretrained(saved.parent)


def test_settings_alone_are_saved_where_rows_are_not_wanted(tmp_path, caplog):
    ours = model()
    ours.save(str(tmp_path))
    ours.save_exemplars = False
    ours.save(str(tmp_path))
    assert [path.name for path in (tmp_path / "exemplars").iterdir()] == ["rare_config.json"]
    with caplog.at_level(logging.WARNING):
        again = RareEncoder(str(tmp_path), device="cpu")
    assert again.exemplars is None
    assert again.settings.k == 2
    assert "the exemplars are not in the repository" in caplog.text
    with pytest.raises(FileNotFoundError, match="holds the settings of exemplars, but no exemplars"):
        ExemplarStore.load(tmp_path / "exemplars")
    other = RareEncoder(str(tmp_path), device="cpu", exemplars=store())
    np.testing.assert_array_equal(other.encode_query(QUERIES), model().encode_query(QUERIES))


def test_a_stock_folder_opens_and_has_no_exemplars(tmp_path):
    encoder().save(str(tmp_path))
    ours = RareEncoder(str(tmp_path), device="cpu")
    assert ours.exemplars is None
    ours.save(str(tmp_path / "again"))
    assert not (tmp_path / "again" / "exemplars").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c | {"format_version": 2}, "format version 2"),
        (lambda c: c | {"rare": c["rare"] | {"colour": "red"}}, "'colour' unknown"),
        (lambda c: c | {"store": c["store"] | {"content_hash": "0"}}, "not those that were saved"),
        (lambda c: c | {"store": c["store"] | {"rows": 10**9}}, "more than max_rows"),
    ],
)
def test_a_damaged_repository_is_refused(saved, tmp_path, damage, message):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    path = folder / "exemplars" / "rare_config.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        RareEncoder(str(folder), device="cpu")
    SentenceTransformer(str(folder), device="cpu")  # which reads none of it


def test_a_module_of_foreign_code_is_refused_as_ever(saved, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    path = folder / "modules.json"
    path.write_text(path.read_text().replace('"sentence_transformers.', '"elsewhere.', 1))
    with pytest.raises(ValueError, match="trust_remote_code"):
        RareEncoder(str(folder), device="cpu")


def test_the_card_tells_of_the_exemplars_and_shows_none_of_them(saved, tmp_path):
    card = (saved / "README.md").read_text()
    assert 'RareEncoder("user/model")' in card
    assert "24, `exemplars/`" in card
    assert "- rare" in card
    assert not any(text in card for text in POOL["query"][:] + POOL["positive"][:])
    again = RareEncoder(str(saved), device="cpu")
    again.save(str(tmp_path))
    assert (tmp_path / "README.md").read_text().count("## Exemplars") == 1


def test_a_chat_template_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        RareEncoder.from_model(encoder(chat=True), store())
    assert "chat template" in caplog.text


def test_an_adapter_is_saved_and_reloaded_with_the_exemplars(tmp_path):
    # transformers 5.24 asks for peft 0.22 before any other release does: adapters then work through peft alone
    peft = pytest.importorskip("peft", minversion=transformers.integrations.peft.MIN_PEFT_VERSION)
    base = encoder()
    base.add_adapter(
        peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query"], init_lora_weights=False)
    )
    ours = RareEncoder.from_model(base, store(), SETTINGS)
    ours.save(str(tmp_path))
    assert (tmp_path / "adapter_config.json").is_file()
    again = RareEncoder(str(tmp_path), device="cpu")
    np.testing.assert_allclose(again.encode_query(QUERIES), ours.encode_query(QUERIES), atol=1e-6)
