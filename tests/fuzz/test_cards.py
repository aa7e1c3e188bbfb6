"""Any card, settings and report in a saved folder: `hf-ext card render` ends with 0, or with one line and 2."""

from __future__ import annotations

import json

import yaml
from hypothesis import strategies as st

from hf_ext.cli import main
from hf_ext.hub.cards import base_model_metadata
from tests.fuzz.engine import EXAMPLES, fuzz, status_of, trees

KEYS = ["license", "base_model", "tags", "datasets", "model-index", "model_name", "library_name"]
FIELDS = ["tau", "kl_weight", "normalize", "learning_rate", "model_license", "hub_model_id", "lr_scheduler_type"]


def card_text(values: dict) -> bytes:
    try:
        block = yaml.safe_dump({"tags": ["hf-ext", "flow"], **values})
    except yaml.YAMLError:
        block = ""
    return f"---\n{block}---\n\n# name\n\n| `tau` | 1 |\n".encode("utf-8", "surrogatepass")


CARDS = st.binary(max_size=60) | st.dictionaries(st.sampled_from(KEYS), trees(), max_size=3).map(card_text)
SETTINGS = st.dictionaries(st.sampled_from(FIELDS), trees(), max_size=3).map(json.dumps) | st.text(max_size=20)
REPORTS = st.none() | st.dictionaries(st.sampled_from(["original", "arms", "settings"]), trees(), max_size=3).map(
    json.dumps
)


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
        assert licence is None or isinstance(licence, str)

    fuzz(examples, CARDS, check)
