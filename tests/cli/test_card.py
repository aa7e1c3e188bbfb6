"""`hf-ext card render`: the card again from the folder, with nothing lost silently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_ext.cli import main
from hf_ext.cli.card import method_of, read_card
from hf_ext.evaluation.core.report import CoreReport, TaskResult
from hf_ext.evaluation.intervals import Estimate
from hf_ext.evaluation.report import ForgettingReport, RunResult
from hf_ext.hub.cards import write_model_card
from tests.recipes.work import SMALL, make_work_folder

REPORT = ForgettingReport(
    original=RunResult("original", target_loss=Estimate(2.5, 0.1, 10, 100)),
    runs=[
        RunResult("flow", target_loss=Estimate(2.25, 0.1, 10, 100), kl_original_to_new=Estimate(0.125, 0.01, 10, 100))
    ],
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as `hf-ext train flow` leaves it, made once."""
    folder = make_work_folder(tmp_path_factory.mktemp("work"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        more = ["--dataset_name", "train.jsonl", "--output_dir", "my-model", "--report_to", "none", "--tau", "1.25"]
        assert main(["train", "flow", *SMALL, *more]) == 0
    return folder / "my-model"


@pytest.fixture
def model(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "my-model"))


def render(folder: Path, *options: str) -> int:
    return main(["card", "render", str(folder), *options])


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_rendering_a_card_that_the_trainer_wrote_changes_nothing(model):
    before = text_of(model)
    assert render(model) == 0
    assert text_of(model) == before


def test_a_lost_card_is_made_again_from_the_settings(model, capsys):
    before = read_card(model)
    (model / "README.md").unlink()
    assert render(model, "--license", "apache-2.0", "--base-model", "me/base", "--dataset", "me/rows") == 0
    card = ModelCard.load(model / "README.md")
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("apache-2.0", "me/base", "me/rows")
    assert "flow" in card.data.tags
    assert "| `tau` | 1.25 |" in card.text
    assert "| `learning_rate` | 0.001 |" in card.text
    assert "`processes`" in before[1]  # only the trainer knows it, so a lost card loses it
    assert "`processes`" not in card.text
    assert "not known" not in capsys.readouterr().out


def test_what_the_card_cannot_say_is_printed(model, capsys):
    assert render(model) == 0
    out = capsys.readouterr().out
    assert "not known: license; give it with --license" in out
    assert "not known: base model; give it with --base-model" in out


@pytest.mark.parametrize("place", ["forgetting.json", "report/forgetting.json", None])
def test_the_report_s_numbers_come_into_text_and_model_index(model, tmp_path, place):
    target = model / place if place else tmp_path / "elsewhere.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(REPORT.to_dict()))
    assert render(model, *([] if place else ["--report", str(target)])) == 0
    results = ModelCard.load(model / "README.md").data.eval_results
    assert {r.metric_type: r.metric_value for r in results} == {"target_loss": 2.25, "kl_original_to_new": 0.125}
    assert "| flow | 2.250" in text_of(model)


@pytest.mark.parametrize("place", ["core.json", "report/core.json", "core/core.json", None])
def test_core_has_a_section_of_its_own_and_is_not_lost_when_its_report_is_gone(model, tmp_path, capsys, place):
    task = TaskResult("copa", "multiple_choice", 0, 0, 60, 100, 0.75, 0.05, 0.0, 0.7, 0.7)
    report = CoreReport([task], {"protocol": "foundry", "max_length": 2048, "max_rows": 60, "against": None})
    target = model / place if place else tmp_path / "elsewhere.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report.to_dict()))
    named = [] if place else ["--core-report", str(target)]
    assert render(model, *named) == 0
    results = {r.metric_type: r.metric_value for r in ModelCard.load(model / "README.md").data.eval_results}
    assert results["core1_v2"] == results["core1_v1"] == 0.5  # (0.75 - 0.5) / (1 - 0.5)
    assert render(model, *named) == 0
    assert text_of(model).count("## DCLM CORE") == 1
    target.unlink()
    assert render(model) == 2
    assert "give --core-report" in capsys.readouterr().err
    assert render(model, "--force") == 0
    assert "CORE" not in text_of(model)
    assert "model-index" not in text_of(model)


def test_a_table_is_not_lost_when_its_report_is_gone(model, capsys):
    (model / "forgetting.json").write_text(json.dumps(REPORT.to_dict()))
    assert render(model) == 0
    with_table = text_of(model)
    (model / "forgetting.json").unlink()
    assert render(model) == 2
    assert "--report" in capsys.readouterr().err
    assert text_of(model) == with_table
    assert render(model, "--force") == 0
    assert "model-index" not in text_of(model)


def test_a_card_of_someone_else_is_not_overwritten(model, capsys):
    (model / "README.md").write_text("# My own words\n")
    assert render(model) == 2
    assert "--force" in capsys.readouterr().err
    assert text_of(model) == "# My own words\n"
    assert render(model, "--force") == 0


def test_options_win_over_what_the_card_says(model):
    assert render(model, "--license", "mit") == 0
    assert render(model, "--license", "apache-2.0", "--name", "me/better", "--method", "weighted_sft") == 0
    card = ModelCard.load(model / "README.md")
    assert card.data.license == "apache-2.0"
    assert "# me/better" in card.text
    assert "weighted supervised fine-tuning" in card.text
    assert render(model) == 0  # and what an option said stays
    assert ModelCard.load(model / "README.md").data.license == "apache-2.0"


def test_lists_names_and_what_somebody_added_survive_a_rendering(model):
    text = text_of(model)
    text = text.replace(
        "license: unknown",
        "license: [mit, other]\nlicense_name: terms\nlicense_link: LICENSE\nlanguage: [de, en]\n"
        "base_model: [me/a, me/b]\ndatasets: [me/x, me/y]\nthumbnail: x.png",
    )
    text = text.replace("| `seed` |", "| longest query, in \\|tokens\\| &lt;all&gt; | 12 \\| 13 |\n| `seed` |")
    (model / "README.md").write_text(text + "\n## Intended use\n\nPoems.\n", encoding="utf-8")
    for _ in range(2):
        assert render(model) == 0
        values = ModelCard.load(model / "README.md").data.to_dict()
        assert (values["license"], values["license_name"], values["license_link"]) == (
            ["mit", "other"],
            "terms",
            "LICENSE",
        )
        assert (values["language"], values["thumbnail"]) == (["de", "en"], "x.png")
        assert (values["base_model"], values["datasets"]) == (["me/a", "me/b"], ["me/x", "me/y"])
        assert "| longest query, in \\|tokens\\| &lt;all&gt; | 12 \\| 13 |" in text_of(model)
        assert text_of(model).rstrip().endswith("## Intended use\n\nPoems.")


@pytest.mark.parametrize("method", ["infopo", "infopo_unpaired", "rare", "consensus"])
def test_cards_of_the_other_methods_are_rendered_with_their_settings_and_use(tmp_path, method):
    usage = "```python\nuse_it()\n```"
    (tmp_path / "config.json").write_text("{}")
    write_model_card(
        tmp_path, method=method, model_name="me/m", base_model="me/base", settings={"beta": 0.1, "x y": 2}, usage=usage
    )
    before = text_of(tmp_path)
    assert render(tmp_path) == 0
    assert "| `beta` | 0.1 |\n| `x y` | 2 |" in text_of(tmp_path)
    if method in ("rare", "consensus"):  # no snippet of a generator stands in for what is not known
        assert text_of(tmp_path) == before


@pytest.mark.parametrize("name", ["training_args.json", "config.json", "adapter_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, '"a"', '{"a": ' + "9" * 5000 + "}", "\x00", "null"])
def test_json_that_is_none_is_one_line_or_passed_over(tmp_path, capsys, name, content):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / name).write_text(content)
    status = render(tmp_path, "--method", "flow")
    if name == "tokenizer_config.json":  # it only tells which snippet fits
        assert status == 0
        return
    assert status == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert name in err


@pytest.mark.parametrize("value", [5, [1], {"a": 1}, None, True, "", ["mit", 5]])
@pytest.mark.parametrize("key", ["model_license", "hub_model_id", "tau", "base_model_name_or_path", "_name_or_path"])
def test_a_value_of_another_type_in_json_is_no_licence_and_no_name(tmp_path, key, value):
    for name in ("config.json", "adapter_config.json", "training_args.json"):
        (tmp_path / name).write_text(json.dumps({key: value}))
    assert render(tmp_path, "--method", "flow") == 0
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license in ("unknown", ["mit"])
    assert card.text.strip().splitlines()[0].startswith("# ")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda m: shutil.rmtree(m), ["there is no folder"]),
        (lambda m: (m / "config.json").unlink(), ["holds no saved model"]),
        (lambda m: (m / "training_args.json").write_text("{"), ["training_args.json is no JSON"]),
        (lambda m: (m / "training_args.json").write_text("[]"), ["must be a JSON object"]),
        (lambda m: (m / "forgetting.json").write_text("{}"), ["no forgetting report"]),
        (lambda m: (m / "README.md").write_text("---\na: [\n---\n"), ["README.md", "no YAML"]),
        (lambda m: (m / "README.md").write_text("---\n- a\n---\n"), ["must be a mapping"]),
    ],
)
def test_what_cannot_be_read_is_one_line_and_status_2(model, capsys, break_it, words):
    break_it(model)
    assert render(model) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    ("tags", "arguments", "method"),
    [
        (["hf-ext", "context_free"], {"tau": "median"}, "context_free"),
        ([], {"tau": "median", "normalize": "weights"}, "flow"),
        ([], {"kl_weight": 1.0, "normalize": "weights"}, "context_free"),
        (["trl"], {"normalize": "weights"}, "weighted_sft"),
    ],
)
def test_the_method_is_told_by_tags_first_and_settings_second(tags, arguments, method):
    assert method_of(tags, arguments) == method


def test_a_folder_that_does_not_tell_its_method_asks_for_it():
    with pytest.raises(ValueError, match="--method"):
        method_of(["trl"], {"learning_rate": 1.0})


def test_arm_is_the_hidden_old_name_of_the_option_run(model, capsys):
    REPORT.save(model, plot=False)
    assert render(model, "--run", "flow") == 0
    by_run = text_of(model)
    assert render(model, "--arm", "flow") == 0
    assert text_of(model) == by_run
    assert "--arm is now called --run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["card", "render", "--help"])
    shown = capsys.readouterr().out
    assert "--run" in shown
    assert "--arm" not in shown
