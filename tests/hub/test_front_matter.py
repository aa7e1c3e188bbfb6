"""A card that somebody wrote or changed is still theirs after one of ours was put in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hf_ext.guards.yaml_file import YamlError
from hf_ext.hub.cards import write_dataset_card, write_model_card
from hf_ext.hub.front_matter import merge_cards, split_card, without_host_card

BY_HAND = """\
---
# chosen with care
license: cc-by-4.0
language:
- de
- no  # Norwegian
arxiv: 2401.00010
pretty_name: 'My rows'
tags: [poems]
dataset_info: {features: []}
configs:
- config_name: old
  data_files: old.csv
---

# Mine

What I have to say.

## Sources

The attic.
"""


def dataset_card(folder: Path, **kwargs) -> tuple[dict, str, str]:
    path = write_dataset_card(
        folder, **{"dataset_name": "me/mine", "data_files": {"train": "data/train-*.parquet"}, **kwargs}
    )
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1]), text.split("---\n", 2)[2], text


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(BY_HAND, encoding="utf-8")
    return tmp_path


def test_a_hand_written_card_keeps_text_and_metadata_word_for_word(by_hand: Path) -> None:
    values, body, text = dataset_card(by_hand, splits={"train": 2})
    assert values["license"] == "cc-by-4.0"
    assert values["tags"] == ["poems", "hf-ext"]
    for line in ("- no  # Norwegian", "arxiv: 2401.00010", "pretty_name: 'My rows'"):
        assert f"\n{line}\n" in text  # read and written again they would be false, 2401.0001 and without quotes
    assert body.strip().startswith("# Mine\n\nWhat I have to say.\n\n## Sources\n\nThe attic.")
    assert "| `train` | 2 |" in body
    assert body.count("\n# ") == 1
    # what says which files there are is that of the new ones
    assert values["configs"][0]["data_files"][0]["path"] == "data/train-*.parquet"
    assert "dataset_info" not in values


def test_writing_twice_changes_nothing_more(by_hand: Path) -> None:
    first = dataset_card(by_hand, splits={"train": 2})[2]
    assert dataset_card(by_hand, splits={"train": 2})[2] == first
    again = dataset_card(by_hand, splits={"train": 7})[2]
    assert again == first.replace("| `train` | 2 |", "| `train` | 7 |")


def test_a_licence_that_is_asked_for_wins_over_the_hand_written_one(by_hand: Path) -> None:
    assert dataset_card(by_hand, license="mit")[0]["license"] == "mit"


def test_a_hand_written_model_card_is_kept_by_a_trainer_that_saves_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\nthumbnail: x.png\n---\n# Words\n\nof mine\n")
    text = write_model_card(tmp_path, method="flow", model_name="me/tuned", settings={"tau": 1}).read_text()
    assert text.startswith("---\nlicense: mit\nthumbnail: x.png\n")
    assert "# Words\n\nof mine\n" in text
    assert "| `tau` | 1 |" in text
    assert "# me/tuned" not in text
    again = write_model_card(tmp_path, method="flow", model_name="me/tuned", settings={"tau": 1})
    assert again.read_text() == text


def test_words_below_ours_stay_where_somebody_took_our_closing_line_away(by_hand: Path) -> None:
    _, body, text = dataset_card(by_hand, splits={"train": 2})
    begin, end = (line for line in body.splitlines() if line.startswith("<!-- hf-ext"))
    (by_hand / "README.md").write_text(text.replace(end, "## Thanks\n\nTo the attic."), encoding="utf-8")
    first = dataset_card(by_hand, splits={"train": 7})[2]
    assert "## Thanks\n\nTo the attic." in first
    assert "The attic.\n" in first
    assert first.count(begin) == first.count(end) == 1
    assert "| `train` | 7 |" in first.partition(begin)[2]
    assert dataset_card(by_hand, splits={"train": 7})[2] == first


def test_what_somebody_added_to_a_card_of_ours_stays(tmp_path: Path) -> None:
    path = write_model_card(tmp_path, method="flow", model_name="me/tuned", base_model="org/base", settings={"tau": 1})
    text = path.read_text()
    text = text.replace("license: unknown", "license: other\nlicense_name: terms\nlanguage: [de, en]")
    text = text.replace("## Versions", "## Intended use\n\nPoems.\n\n```sh\n## no heading\n```\n\n## Versions")
    path.write_text(text.replace("- flow\n", "- flow\n- poetry\n"))
    write_model_card(tmp_path, method="infopo", model_name="me/tuned", base_model="org/base", settings={"beta": 2})
    values, body, _ = split_card(path.read_text())
    assert (values["license"], values["license_name"], values["language"]) == ("other", "terms", ["de", "en"])
    assert values["tags"] == ["hf-ext", "infopo", "trl", "poetry"]
    assert "## Intended use\n\nPoems.\n\n```sh\n## no heading\n```" in body
    assert "| `beta` | 2 |" in body
    assert "tau" not in body


def test_numbers_and_files_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    path = write_model_card(tmp_path, method="flow", model_name="me/tuned", dataset_name="me/rows")
    path.write_text(path.read_text().replace("library_name", "model-index:\n- name: a\n  results: []\nlibrary_name"))
    write_model_card(tmp_path, method="flow", model_name="me/tuned")
    values = split_card(path.read_text()).metadata
    assert not {"model-index", "datasets"} & set(values)


@pytest.mark.parametrize(
    "generated",
    [
        "---\nlibrary_name: peft\n---\n\n# Model Card for Model ID\n\n<!-- Provide a quick summary -->\n",
        "---\ntags: [generated_from_trainer, sft]\nlicence: license\n---\n\n# Model Card for x\n",
        "---\ntags: [dense]\n---\n\n# X\n\nThis is a [sentence-transformers](https://www.SBERT.net) model trained.\n",
    ],
)
def test_a_card_that_another_trainer_generated_is_replaced(tmp_path: Path, generated: str) -> None:
    fresh = write_model_card(tmp_path / "fresh", method="flow", model_name="me/tuned").read_text()
    (tmp_path / "README.md").write_text(generated)
    text = write_model_card(tmp_path, method="flow", model_name="me/tuned").read_text()
    assert split_card(text)[:2] == split_card(fresh)[:2]


@pytest.mark.parametrize("content", [b"---\na: [\n---\nmine", b"\xff\xfe\0a", b"---\n- a\n---\nmine", "folder"])
def test_a_card_that_cannot_be_read_is_renamed_and_not_lost(tmp_path: Path, content: bytes | str, caplog) -> None:
    card = tmp_path / "README.md"
    if isinstance(content, str):
        card.mkdir()
    else:
        card.write_bytes(content)
    (tmp_path / "README.old.md").write_text("an earlier one")
    write_model_card(tmp_path, method="flow", model_name="me/tuned")
    assert "# me/tuned" in card.read_text()
    aside = tmp_path / "README.old-2.md"
    assert aside.is_dir() if isinstance(content, str) else aside.read_bytes() == content
    assert (tmp_path / "README.old.md").read_text() == "an earlier one"
    assert caplog.text.count("README.old-2.md") == 1
    with pytest.raises(YamlError):
        merge_cards("---\na: 1\n---\n\nnew\n", "---\na: [\n---\nmine")


def test_a_card_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    """In a copy of the Hub's cache README.md is a link to the file that all revisions share."""
    shared = tmp_path / "blob"
    shared.write_text("# The base model's own card\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").symlink_to(shared)
    write_model_card(tmp_path / "out", method="flow", model_name="me/tuned")
    assert shared.read_text() == "# The base model's own card\n"


def test_overwriting_asked_for_keeps_nothing(by_hand: Path) -> None:
    text = write_model_card(by_hand, method="flow", model_name="me/tuned", overwrite=True).read_text()
    assert "attic" not in text
    assert "cc-by" not in text


def test_an_anchor_that_went_with_its_entry_leaves_valid_yaml(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nconfigs: &a [x]\nmine: *a\n---\n# T\n")
    assert dataset_card(tmp_path)[0]["mine"] == ["x"]


def test_a_card_that_a_host_library_writes_while_saving_does_not_stay(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    with without_host_card(tmp_path):
        card.write_text("the host's")
    assert not card.exists()
    card.write_text("somebody's")

    def host_fails() -> None:
        with without_host_card(tmp_path):
            card.write_text("the host's")
            raise RuntimeError("the host's own")

    with pytest.raises(RuntimeError, match="the host's own"):
        host_fails()
    assert card.read_text() == "somebody's"
    with without_host_card(tmp_path / "not there"):
        pass
