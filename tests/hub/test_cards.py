"""Model cards: metadata that the Hub's own parser takes, text that fits the model, nothing of this machine in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_ext.evaluation.intervals import Estimate
from hf_ext.evaluation.report import ForgettingReport, RunResult
from hf_ext.hub.cards import base_model_metadata, write_dataset_card, write_model_card
from hf_ext.method import method_named, trained_methods
from tests.tiny import tiny_tokenizer

HUB_LICENCES = {"apache-2.0", "mit", "llama3.2", "unknown", "other"}  # keys of the Hub's list that occur here


def _report() -> ForgettingReport:
    def estimate(mean: float) -> Estimate:
        return Estimate(mean, 0.01, 50, 1200)

    runs = [
        RunResult("SFT", estimate(2.1), estimate(-0.4), estimate(0.3)),
        RunResult("FLOW", estimate(2.2), estimate(-0.3), estimate(0.125)),
    ]
    return ForgettingReport(RunResult("original", estimate(2.5)), runs)


def _card(folder: Path, **kwargs: Any) -> ModelCard:
    path = write_model_card(folder, **{"method": "flow", "model_name": "me/tuned", **kwargs})
    assert path == folder / "README.md"
    return ModelCard(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", [method.name for method in trained_methods() if not method.variant_of])
def test_every_method_has_a_card_the_hub_can_read(tmp_path: Path, method: str) -> None:
    card = _card(
        tmp_path, method=method, base_model="org/base", license="apache-2.0", settings={"tau": 0.5}, tags="demo"
    )
    data = card.data.to_dict()
    libraries = {"rare": "sentence-transformers", "moe_lora": "peft"}
    assert data["library_name"] == libraries.get(method, "transformers")
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "org/base"
    by_trl = method not in ("rare", "consensus", "pretraining", "moe_em", "weighted_classification")
    assert data["tags"] == ["hf-ext", method, *(["trl"] if by_trl else []), "demo"]
    assert "licence" not in data
    assert card.text.strip().startswith("# me/tuned")
    assert "| `tau` | 0.5 |" in card.text
    assert "## Limitations" in card.text
    assert "{{" not in card.text.replace("{{TRL", "")
    assert "{%" not in card.text
    assert "None" not in card.text


def test_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one of consensus, context_free, flow"):
        write_model_card(tmp_path, method="dpo")


@pytest.mark.parametrize(("method", "paper"), [("flow", "2502.02797"), ("context_free", "2505.13811")])
def test_card_links_the_methods_paper_and_cites_it(tmp_path: Path, method: str, paper: str) -> None:
    text = _card(tmp_path, method=method, paper={"title": method_named(method).paper.title, "id": paper}).text
    assert f"https://huggingface.co/papers/{paper}" in text
    assert "Sanghavi" in text
    other = _card(tmp_path, method=method, paper={"title": "Another", "id": "2401.00001"}).text
    assert "[Another](https://huggingface.co/papers/2401.00001)" in other
    assert "Sanghavi" not in other


def test_flow_card_says_that_hard_rows_are_given_up(tmp_path: Path) -> None:
    text = _card(tmp_path, method="flow").text
    assert "gives up the hard rows" in text
    assert "86.60 and 30.70" in text
    assert "gives up the hard rows" not in _card(tmp_path, method="context_free").text


def test_report_goes_into_the_text_and_the_model_index(tmp_path: Path) -> None:
    card = _card(tmp_path, report=_report(), run="FLOW", dataset_name="openai/gsm8k")
    values = {result.metric_type: result for result in card.data.eval_results}
    assert values["target_loss"].metric_value == pytest.approx(2.2)
    assert values["target_loss"].dataset_type == "openai/gsm8k"
    assert values["kl_original_to_new"].metric_value == pytest.approx(0.125)
    assert card.data.to_dict()["model-index"][0]["name"] == "me/tuned"
    assert card.data.datasets == "openai/gsm8k"
    assert "| SFT | 2.1000 ± 0.0100 |" in card.text
    assert "No forgetting report" not in card.text
    assert "No forgetting report" in _card(tmp_path).text


def test_report_with_several_runs_needs_to_know_which_one_this_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name one of them"):
        write_model_card(tmp_path, method="flow", report=_report())


def test_arm_is_taken_as_the_old_name_of_run(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="is now called run=") as warned:
        old = _card(tmp_path / "model", report=_report(), arm="FLOW").text
    assert warned[0].filename == __file__  # it points at the caller, who can change the word
    assert _card(tmp_path / "model", report=_report(), run="FLOW", overwrite=True).text == old


def test_chat_snippet_only_where_the_tokenizer_has_a_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "chat")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    assert '"role": "user"' in _card(tmp_path / "chat").text
    assert '"role"' not in _card(tmp_path / "plain").text
    assert 'pipeline("text-generation", model="me/tuned")' in _card(tmp_path / "plain").text
    assert "my own words" in _card(tmp_path / "chat", usage="my own words").text
    assert "pip install peft" not in _card(tmp_path / "chat").text
    (tmp_path / "chat" / "adapter_config.json").write_text("{}")
    assert "pip install peft" in _card(tmp_path / "chat").text


def test_licence_and_lineage_come_from_the_base_models_card(tmp_path: Path) -> None:
    base = tmp_path / "local_base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: llama3.2\nbase_model: org/grandparent\n---\n# Base\n")
    card = _card(tmp_path / "out", base_model=str(base))
    assert card.data.license == "llama3.2"
    assert card.data.base_model == "org/grandparent"
    assert _card(tmp_path / "out", base_model=base, license="mit").data.license == "mit"


@pytest.mark.parametrize(
    "base_card", [None, "no metadata", "---\n: : [\n---\n", "---\n- a list\n---\n", "---\nlicense: [1]\n---\n"]
)
def test_a_local_base_is_never_named_and_an_unknown_licence_says_so(tmp_path: Path, base_card: str | None) -> None:
    base = tmp_path / "secret_place"
    base.mkdir()
    if base_card is not None:
        (base / "README.md").write_text(base_card)
    card = _card(tmp_path / "out", base_model=str(base))
    assert card.data.license == "unknown"
    assert card.data.base_model is None
    assert "secret_place" not in str(card)
    assert str(tmp_path) not in str(card)


def test_hub_ids_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "run1").mkdir(parents=True)
    assert base_model_metadata("org/base") == ("org/base", None)
    assert base_model_metadata("gpt2") == ("gpt2", None)
    for path in ("outputs/run1", "./outputs", "/data/models/base", "a/b/c", tmp_path / "gone", "", None):
        assert base_model_metadata(path) == (None, None)


def test_name_link_and_lists_of_licences_and_languages_come_from_the_base_models_card(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: model-terms\nlicense_link: https://example.org/terms\n"
        "language: [en, no]\n---\n"
    )
    values = _card(tmp_path / "out", base_model=base).data.to_dict()
    assert (values["license"], values["license_name"]) == ("other", "model-terms")
    assert values["license_link"] == "https://example.org/terms"
    assert values["language"] == ["en", "no"]  # YAML 1.1 reads `no` as false
    asked = _card(tmp_path / "other", base_model=base, license="mit").data.to_dict()
    assert asked["license"] == "mit"
    assert not {"license_name", "license_link"} & set(asked)
    (base / "README.md").write_text("---\nlicense: [mit, apache-2.0]\nlanguage: de\n---\n")
    values = _card(tmp_path / "lists", base_model=base).data.to_dict()
    assert (values["license"], values["language"]) == (["mit", "apache-2.0"], "de")


def test_a_licence_file_beside_a_hub_models_card_is_linked_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    readme = tmp_path / "README.md"
    readme.write_text("---\nlicense: other\nlicense_name: terms\nlicense_link: LICENSE\n---\n")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(readme))
    values = _card(tmp_path / "out", base_model="org/base").data.to_dict()
    assert values["license_link"] == "https://huggingface.co/org/base/blob/main/LICENSE"


@pytest.mark.parametrize(
    ("link", "in_card"),
    [
        ("LICENSE", "https://huggingface.co/org/m/blob/main/LICENSE"),
        ("./LICENSE.md", "https://huggingface.co/org/m/blob/main/LICENSE.md"),
        ("/home/me/secret/LICENSE", None),
        ("../LICENSE", None),
        ("javascript:alert(1)", None),
        ("https://a.b/ x", None),
    ],
)
def test_a_licence_link_of_a_folders_card_is_an_address_that_others_can_open(
    tmp_path: Path, link: str, in_card: str | None
) -> None:
    text = f"---\nlicense: other\nlicense_name: terms\nlicense_link: '{link}'\nbase_model: org/m\n---\n"
    (tmp_path / "README.md").write_text(text)
    assert _card(tmp_path / "out", base_model=tmp_path).data.to_dict().get("license_link") == in_card


@pytest.mark.parametrize(
    "text",
    [
        "license: 'my own, weird'",
        "license: 'm\u202eit'",
        f"license: {'a' * 100_000}",
        "license: [mit, '<b>']",
        "license: unknown\nlanguage: ['<script>']",
        f"license: unknown\nlanguage: [{', '.join(['en'] * 5000)}]",
    ],
)
def test_no_licence_or_language_that_the_hub_would_refuse_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(f'---\n{text}\nlicense_name: "a\\nb"\n---\n', encoding="utf-8")
    values = _card(tmp_path / "out", base_model=tmp_path).data.to_dict()
    assert values["license"] == "unknown"
    assert not {"language", "license_name"} & set(values)


def test_no_task_is_claimed_that_nobody_named(tmp_path: Path) -> None:
    rows = write_dataset_card(tmp_path / "rows", dataset_name="me/rows", splits={"train": 3})
    assert "task_categories" not in ModelCard.load(rows).data.to_dict()
    samples = write_dataset_card(tmp_path / "samples", dataset_name="me/samples", kind="context_free")
    assert ModelCard.load(samples).data.to_dict()["task_categories"] == ["text-generation"]
    assert _card(tmp_path / "model", method="consensus").data.pipeline_tag is None
    assert _card(tmp_path / "model", method="consensus", task="text-classification").data.pipeline_tag is not None


def test_licence_is_found_in_the_hub_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    readme = tmp_path / "README.md"
    readme.write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(readme))
    assert base_model_metadata("org/base") == ("org/base", "mit")


def test_settings_and_names_cannot_break_table_or_metadata(tmp_path: Path) -> None:
    card = _card(
        tmp_path, model_name='me: "odd" #name', settings={"start": "a | b\nc"}, tags=["key: value", "# no comment"]
    )
    assert "| `start` | a \\| b c |" in card.text
    assert card.data.to_dict()["tags"][-2:] == ["key: value", "# no comment"]
    assert card.data.license in HUB_LICENCES


def test_the_default_name_is_the_folders(tmp_path: Path) -> None:
    assert write_model_card(tmp_path / "my-model", method="flow").read_text().count("# my-model\n") == 1
