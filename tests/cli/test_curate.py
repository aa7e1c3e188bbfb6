"""`hf-ext data curate`: what it writes, what a dry run leaves alone, and what a mistake says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from hf_ext.cli import main
from hf_ext.data.curation import (
    BloomDeduplication,
    CurationReport,
    DropLedger,
    GopherQuality,
    LineRules,
    curate,
    dclm_baseline,
)
from hf_ext.data.loading import load_rows
from hf_ext.recipes.curation.settings import file_schema, read_steps, step_types, steps_schema
from hf_ext.recipes.files import find_recipe
from tests.pages import pages, write_warc

STEPS = "steps:\n- GopherQuality: {min_words: 60}\n- LineRules\n"


@pytest.fixture
def texts(tmp_path, monkeypatch) -> list[dict]:
    """The current directory, with `texts.jsonl` (id, url, text) and `c.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_ext.guards.reports.find_spec", lambda name: None)  # no plots: a second each
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"id": f"p{i}", "host": url.split("/")[2], "text": text} for i, (url, text) in enumerate(pages().items())]
    Path("texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("c.yaml").write_text(STEPS)
    return rows


def run(*words: str) -> int:
    return main(["data", "curate", *words])


def written(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_rows_ledger_and_report_are_those_of_curate(texts, capsys):
    assert run("--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "out", "--id-column", "id") == 0
    out = capsys.readouterr().out
    expected = curate(Dataset.from_list(texts), [GopherQuality(min_words=60), LineRules()], show_progress=False)
    rows = load_dataset("out", split="train")
    assert rows["text"][:] == expected["text"][:]
    report = CurationReport.load("out/report")
    assert report.counts.rows_read == len(texts) == report.counts.rows_kept + len(DropLedger.read("out"))
    assert {record.id for record in DropLedger.read("out")} == {row["id"] for row in texts} - set(rows["id"])
    assert f"documents kept: {len(rows)} " in out
    assert {path.suffix for path in Path("out/report").iterdir()} == {".json", ".md", ".html"}


def test_the_same_command_again_does_nothing_and_other_steps_do_the_rest(texts, capsys):
    command = ["--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "out"]
    assert run(*command) == 0
    before = {name: content for name, content in written("out").items() if "report" not in name}
    assert run(*command) == 0
    assert {name: content for name, content in written("out").items() if "report" not in name} == before
    Path("c.yaml").write_text("steps: [{GopherQuality: {min_words: 10000}}]")
    assert run(*command) == 0
    assert CurationReport.load("out/report").counts.rows_kept == 0
    assert "note: gopher_quality drops 37 of the 37 documents that come to it" in capsys.readouterr().out
    with pytest.raises(ValueError, match="dataset 'out' cannot be loaded: there is no row in it"):
        load_rows("out")


def test_a_dry_run_writes_the_report_and_nothing_else(texts, tmp_path, capsys):
    inputs = {path.name for path in tmp_path.iterdir()}
    assert run("--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "out", "--dry-run", "--sample", "30") == 0
    assert {path.name for path in tmp_path.iterdir()} == inputs | {"out-dry-run"}
    assert {path.stem for path in Path("out-dry-run").iterdir()} == {"curation"}
    report = CurationReport.load("out-dry-run")
    assert report.sample.rows == report.counts.rows_read == 30
    assert report.sample.rows_of_set == len(texts)
    dropped = {example.id for example in report.examples}
    assert dropped
    by_id = {f"texts.jsonl:{i}": row["text"] for i, row in enumerate(texts)}
    assert all(by_id[example.id].startswith(example.excerpt[:50]) for example in report.examples)
    assert run("--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "out", "--dry-run") == 2
    assert "--overwrite" in capsys.readouterr().err
    again = ["--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "out", "--dry-run", "--overwrite"]
    assert run(*again, "--sample", "99") == 0
    assert CurationReport.load("out-dry-run").counts.rows_read == len(texts)
    assert run(*again[:-2]) == 0  # the curation itself, which finds nothing in its place
    # a sample of all documents has the drops of the curation
    funnels = [[step.rows_out for step in CurationReport.load(f).counts.steps] for f in ("out-dry-run", "out/report")]
    assert funnels[0] == funnels[1]


def test_fields_of_steps_on_the_command_line_override_the_file(texts, capsys):
    command = ["--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "out", "--option"]
    assert run(*command, "GopherQuality.min_words=3", "--option", "LineRules.max_removed_words=1e-1") == 0
    plan = json.loads(Path("out/manifest.json").read_text())["plan"]["steps"]
    assert [plan[0]["fields"]["min_words"], plan[1]["fields"]["max_removed_words"]] == [3, 0.1]
    for setting, message in (
        ("GopherQuality.min_wrds=3", "unknown key 'min_wrds'; did you mean 'min_words'"),
        ("GopherQuality.min_words=few", "step 1, GopherQuality: min_words: expected a number"),
        ("GopherQualty.min_words=3", "the chain has GopherQuality, LineRules"),
        ("min_words=3", "expected STEP.FIELD=VALUE with a step of the chain"),
    ):
        assert run(*command, setting) == 2
        assert message in capsys.readouterr().err
    Path("c.yaml").write_text("steps: [LineRules, LineRules]")
    assert run(*command, "LineRules.max_chars=9") == 2
    assert "the chain has it twice" in capsys.readouterr().err


def test_why_a_document_is_missing_is_printed(texts, capsys):
    assert run("--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "out", "--id-column", "id") == 0
    capsys.readouterr()
    assert run("--output", "out", "--explain", "p34") == 0
    assert capsys.readouterr().out == (
        "p34 (texts.jsonl, row 34) goes by gopher_quality:word_count, 5 where the bound is 60\n"
    )
    assert run("--output", "out", "--explain", "p0") == 2
    err = capsys.readouterr().err
    assert "no document 'p0' is in the drop ledger of out" in err
    assert "ids are such as 'p3" in err
    assert run("--output", "nowhere", "--explain", "p0") == 2


def test_pages_of_a_warc_file_go_through_the_recipe_of_the_package(texts, tmp_path):
    write_warc(tmp_path / "pages.warc.gz", pages())
    with open("pages.warc.gz", "ab") as file:
        file.write(gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 9\r\n\r\nno page\r\n"))
    words = ["--config", "curation/dclm_baseline.yaml", "--dataset", "pages.warc.gz", "--output", "out"]
    assert run(*words, "--id-column", "url") == 0
    report = CurationReport.load("out/report")
    assert report.counts.rows_read == len(pages()) + 1
    assert report.counts.rows_kept == 30
    reasons = {record.id: f"{record.step}:{record.rule}" for record in DropLedger.read("out")}
    assert reasons["https://shop.example/short"] == "gopher_quality:word_count"
    assert reasons["https://shop.example/list"].startswith("gopher_repetition:")
    assert reasons["https://mirror.example/2"].startswith("bloom:")
    assert "read:not_http" in reasons.values()
    rows = load_dataset("out", split="train")
    assert set(rows["url"]) == {f"https://news.example/{number}" for number in range(30)}


def test_a_dataset_that_was_saved_is_read_too(texts):
    Dataset.from_list(texts).save_to_disk("saved")
    assert run("--config", "c.yaml", "--dataset", "saved", "--output", "out", "--source-column", "host") == 0
    assert CurationReport.load("out/report").counts.sources["news.example"].rows_read == 30


MISTAKES = [
    ("steps: [GopherQality]", "step 1: there is no step 'GopherQality'; did you mean 'GopherQuality'"),
    ("steps: [mine.Polite]", "there is no step 'mine.Polite'; steps of your own go to curate() in Python"),
    ("steps: [{GopherQuality: {min_wrds: 3}}]", "GopherQuality: unknown key 'min_wrds'; did you mean 'min_words'"),
    ("steps: [{GopherQuality: {min_words: many}}]", "step 1, GopherQuality: min_words: expected a number"),
    ("steps: [{GopherQuality: {revision: '9'}}]", "unknown key 'revision'"),
    ("steps: [{GopherQuality: 5}]", "step 1, GopherQuality: expected a mapping of fields, found 5"),
    ("steps: [{GopherQuality: {}, LineRules: {}}]", "step 1: expected a name, or one name with its fields"),
    ("steps: GopherQuality", "steps must be a list with a step or more"),
    ("steps: []", "steps must be a list with a step or more"),
    ("step: [LineRules]", "no option 'step'; did you mean 'steps'"),
    ("steps: [{GopherQuality: {max_chars: 0}}]", "GopherQuality: max_chars must be a whole number, at least 1"),
    ("num_proc: 0\nsteps: [LineRules]", "num_proc must be a whole number, at least 1"),
    ("on_bad_row: keep\nsteps: [LineRules]", "on_bad_row"),
    ("id_column: text\nsteps: [LineRules]", "id_column='text' is a column of documents"),
    ("id_column: body\nsteps: [LineRules]", "id_column='body' is no column of shard 'texts.jsonl'"),
    ("steps: [LineRules, {UrlRules: {domains: nowhere.txt}}]", "step 2, UrlRules: nowhere.txt is missing"),
    ("steps: [{QualityFilter: {classifier: nowhere, threshold: 0.5}}]", "step 1, QualityFilter: nowhere"),
]


def test_what_another_curation_wrote_is_read_without_its_drop_ledger(texts):
    assert run("--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "out") == 0
    assert main(["data", "dedup", "--method", "exact", "--dataset", "out", "--output", "unique"]) == 0
    assert CurationReport.load("unique/report").counts.rows_read == len(load_dataset("out", split="train"))


@pytest.mark.parametrize(("text", "words"), MISTAKES)
def test_a_mistake_in_the_file_is_status_2_and_one_sentence(texts, capsys, text, words):
    Path("c.yaml").write_text(text)
    assert run("--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "out") == 2
    err = capsys.readouterr().err
    assert words in err.splitlines()[-1]
    assert not Path("out/data").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "texts.jsonl", "--output", "o"], "--config is missing"),
        (["--config", "c.yaml", "--output", "o"], "--dataset is missing"),
        (["--config", "c.yaml", "--dataset", "texts.jsonl"], "--output is missing"),
        (["--config", "c.yaml", "--dataset", "text.jsonl", "--output", "o"], "did you mean 'texts.jsonl'"),
        (["--config", "c.yaml", "--dataset", "./texts.jsonl.gz", "--output", "o"], "did you mean 'texts.jsonl'"),
        (["--config", "c.yaml", "--dataset", "no/such/folder", "--output", "o"], "there is no 'no' in '.'"),
        (["--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "texts.jsonl"], "is the --dataset"),
        (["--config", "c.yaml", "--dataset", ".", "--output", "o"], "lies in the --dataset"),
        (["--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "full"], "is not empty"),
    ],
)
def test_a_mistake_on_the_command_line_is_status_2(texts, capsys, words, message):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert Path("full/mine.txt").read_text() == "x"


def test_odd_file_names_are_curated(texts):
    folder = Path("pages [1] ünï\u202e")
    folder.mkdir()
    Path("texts.jsonl").rename(folder / "a b*.jsonl")
    assert run("--config", "c.yaml", "--dataset", str(folder), "--output", "out dir") == 0
    assert {record.shard for record in DropLedger.read("out dir")} == {"a b*.jsonl"}


def test_the_schema_takes_the_recipes_of_the_package_and_refuses_the_mistakes(capsys):
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    assert run("--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    recipe = yaml.safe_load(find_recipe("curation/dclm_baseline").read_text())
    assert validator.is_valid(recipe)
    assert read_steps(recipe["steps"], "") == [*dclm_baseline(extract=True, bloom=BloomDeduplication())]
    texts_recipe = yaml.safe_load(find_recipe("curation/dclm_baseline_texts").read_text())
    assert validator.is_valid(texts_recipe)
    assert read_steps(texts_recipe["steps"], "") == [*dclm_baseline(bloom=BloomDeduplication())]
    for text, _ in MISTAKES[:-7]:  # the others are not about what the file may hold
        assert not validator.is_valid(yaml.safe_load(text)), text


def test_every_step_of_the_library_can_be_listed_in_a_file():
    assert {"GopherQuality", "GopherRepetition", "LineRules"} <= set(step_types())
    schema = steps_schema()["items"]["anyOf"]
    assert set(schema[0]["enum"]) == set(schema[1]["properties"]) == set(step_types())
    for name, fields in schema[1]["properties"].items():
        assert not [field for field, kind in fields["properties"].items() if kind == {"type": ["null"]}], name
    assert file_schema({})["required"] == ["steps"]
