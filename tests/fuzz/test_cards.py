"""Any card, settings and report in a saved folder: `hf-ext card render` ends with 0, or with one line and 2."""

from __future__ import annotations

import ast
import itertools
import json
import os
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_ext.cli import main
from hf_ext.evaluation.intervals import Estimate
from hf_ext.evaluation.report import ForgettingReport, RunResult
from hf_ext.hub.cards import base_model_metadata, write_dataset_card, write_model_card
from hf_ext.method import trained_methods
from tests.fuzz.engine import EXAMPLES, fuzz, status_of, trees
from tests.guards.test_markdown import TEXTS

KEYS = ["license", "license_name", "license_link", "language", "base_model", "tags", "datasets", "model-index"]
KEYS += ["model_name", "library_name"]
FIELDS = ["tau", "kl_weight", "normalize", "learning_rate", "model_license", "hub_model_id", "lr_scheduler_type"]


def card_text(values: dict) -> bytes:
    try:
        block = yaml.safe_dump({"tags": ["hf-ext", "flow"], **values})
    except yaml.YAMLError:
        block = ""
    return f"---\n{block}---\n\n# name\n\n| `tau` | 1 |\n".encode("utf-8", "surrogatepass")


CARDS = st.binary(max_size=60) | st.dictionaries(st.sampled_from(KEYS), trees(), max_size=3).map(card_text)
SETTINGS = st.dictionaries(st.sampled_from(FIELDS), trees(), max_size=3).map(json.dumps) | st.text(max_size=20)
REPORTS = st.none() | st.dictionaries(
    st.sampled_from(["original", "runs", "arms", "settings"]), trees(), max_size=3
).map(json.dumps)


@EXAMPLES
def test_any_files_beside_a_model(tmp_path, examples):
    (tmp_path / "config.json").write_text("{}")

    def check(files: tuple[bytes, str, str | None]) -> None:
        card, arguments, report = files
        (tmp_path / "README.md").write_bytes(card)
        (tmp_path / "training_args.json").write_bytes(arguments.encode("utf-8", "surrogatepass"))
        (tmp_path / "forgetting.json").unlink(missing_ok=True)
        if report is not None:
            (tmp_path / "forgetting.json").write_text(report)
        base_model_metadata(tmp_path)
        assert status_of(lambda: main(["card", "render", str(tmp_path), "--force"])) in (0, 2)

    fuzz(examples, st.tuples(CARDS, SETTINGS, REPORTS), check)


@EXAMPLES
def test_any_card_of_a_base_model_is_read_without_an_error(tmp_path, examples):
    """A stranger's card must not stop a save."""

    def check(card: bytes) -> None:
        (tmp_path / "README.md").write_bytes(card)
        name, licence = base_model_metadata(tmp_path)
        assert name is None or isinstance(name, str)
        assert licence is None or (licence and all(isinstance(key, str) for key in licence))
        path = write_model_card(tmp_path / "out", method="flow", base_model=tmp_path, overwrite=True)
        assert ModelCard.load(path).data.license == (licence or "unknown")

    fuzz(examples, CARDS, check)


# --- files that are no cards -----------------------------------------------------------------------------------------


def long_without_end(readme: Path) -> None:
    readme.write_text("---\nlicense: mit\n" + "a: b\n" * 20_000)


def fifty_megabytes(readme: Path) -> None:
    with readme.open("wb") as file:
        file.truncate(50_000_000)


def unreadable(readme: Path) -> None:
    readme.write_text("---\nlicense: mit\n---\n")
    readme.chmod(0)


def bomb(readme: Path) -> None:
    lines = ["&l0 [x,x,x,x,x,x,x,x,x,x]"] + [f"&l{i} [{','.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9)]
    readme.write_text("---\nlicense:\n" + "".join(f"  - {line}\n" for line in lines) + "---\n")


STRANGE = {
    "a folder": Path.mkdir,
    "a link to itself": lambda readme: readme.symlink_to(readme),
    "without permission": unreadable,
    "without end": long_without_end,
    "50 MB": fifty_megabytes,
    "a bomb": bomb,
    "deep": lambda readme: readme.write_text("---\na: " + "[" * 5000 + "]" * 5000 + "\n---\n"),
    "another encoding": lambda readme: readme.write_bytes("---\nlicense: mit\n---\n".encode("utf-16")),
    "an impossible date": lambda readme: readme.write_text("---\nlicense: mit\ndate: 2024-13-40\n---\n"),
    "a key given twice": lambda readme: readme.write_text("---\nlicense: mit\nlicense: apache-2.0\n---\n"),
    "keys that are no text": lambda readme: readme.write_text("---\nlicense: mit\n5: a\n---\n"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_what_stands_for_a_card_in_the_base_or_the_saved_folder_stops_no_save(tmp_path, strange, caplog):
    if strange == "without permission" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    for folder in ("base", "out"):
        (tmp_path / folder).mkdir()
        STRANGE[strange](tmp_path / folder / "README.md")
    path = write_model_card(tmp_path / "out", method="flow", base_model=tmp_path / "base", model_name="me/tuned")
    assert ModelCard.load(path).data.license == "unknown"
    if strange != "without end":  # it is a text without metadata, and stays above ours
        assert caplog.text.count("its card cannot be read") == 1
        assert caplog.text.count("README.old.md") == 1
        assert os.path.lexists(tmp_path / "out" / "README.old.md")


# --- text that would be markup ---------------------------------------------------------------------------------------

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def report_of(run: str, group: str) -> ForgettingReport:
    estimate = Estimate(2.0, 0.1, 10, 100)
    runs = [RunResult(name, estimate, group_loss={group: estimate}) for name in ("original", run)]
    return ForgettingReport(runs[0], runs[1:])


def blocks(text: str) -> list[str]:
    """The kinds of a card's blocks, in order; no HTML, no link but ours, and Python reads every snippet of it."""
    tokens = PARSER.parse(text)
    for token in itertools.chain(tokens, *(token.children or () for token in tokens)):
        assert token.type not in ("html_block", "html_inline"), token.content
        if token.type == "link_open":
            assert str(token.attrs["href"]).startswith("https://huggingface.co/")
        if token.type == "fence" and token.info == "python":
            ast.parse(token.content)
    return [f"{token.type} {token.tag}" for token in tokens]


def as_stored(text: str) -> str:
    """What UTF-8 can hold of a text."""
    return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text.replace("\0", ""))


@EXAMPLES
def test_no_text_of_a_model_a_setting_or_a_report_is_markup_in_its_card(tmp_path, examples):
    def body(method: str, text: str, title: str) -> str:
        card = ModelCard.load(
            write_model_card(
                tmp_path,
                method=method,
                model_name=text,
                settings={text: text},
                tags=[text],
                dataset_name=text,
                report=report_of(text, title),
                paper={"title": title, "id": title, "citation": title},
                overwrite=True,
            )
        )
        assert card.data.model_name == as_stored(text)
        assert as_stored(text) in card.data.tags
        return card.text

    def check(drawn: tuple[str, str, str]) -> None:
        method, *texts = drawn
        names = [text.strip() or "name" for text in texts]
        assert blocks(body(method, names[0] + "!", names[1])) == blocks(body(method, "name!", "title"))

    fuzz(examples // 8, st.tuples(st.sampled_from([method.name for method in trained_methods()]), TEXTS, TEXTS), check)


@EXAMPLES
def test_no_text_of_rows_or_labels_is_markup_in_their_card(tmp_path, examples):
    def body(text: str) -> str:
        (tmp_path / "README.md").unlink(missing_ok=True)
        names = {"settings": {text: text}, "splits": {text: 3}, "data_files": {text: text}, "tags": [text]}
        path = write_dataset_card(tmp_path, dataset_name=text, label_privacy=[(text, text)], **names)
        card = DatasetCard.load(path)
        assert card.data.configs[0]["data_files"] == [{"split": as_stored(text), "path": as_stored(text)}]
        return card.text

    def check(text: str) -> None:
        assert blocks(body(f"{text}!")) == blocks(body("name!"))

    fuzz(examples // 8, TEXTS, check)
