"""Rows come the same from every kind of file, folder and mixture."""

from __future__ import annotations

import re

import pytest
from datasets import Dataset, DatasetDict

from hf_ext.data.loading import first_rows, load_rows, load_splits, rename_columns
from hf_ext.recipes.retrieval import texts_of

ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}.", "weight": i / 2, "id": f"r{i}"} for i in range(5)]


@pytest.fixture
def dataset():
    return Dataset.from_list(ROWS)


def write(dataset, path):
    """Write the rows in the format of the suffix."""
    if path.name.endswith(".gz"):
        dataset.to_json(path, compression="gzip")
    elif path.suffix in (".jsonl", ".json"):
        dataset.to_json(path, lines=path.suffix == ".jsonl")
    elif path.suffix == ".parquet":
        dataset.to_parquet(path)
    elif path.suffix == ".csv":
        dataset.to_csv(path)
    else:
        (DatasetDict({"train": dataset}) if path.name == "splits" else dataset).save_to_disk(path)


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet", "rows.csv", "saved", "splits"]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_format_gives_the_same_rows(dataset, tmp_path, name, streaming):
    write(dataset, tmp_path / name)
    assert list(load_rows(str(tmp_path / name), config="main", streaming=streaming)) == ROWS


def test_a_folder_of_data_files_is_a_dataset(dataset, tmp_path):
    dataset.to_parquet(tmp_path / "rows" / "train.parquet")
    assert list(load_splits(str(tmp_path / "rows"))["train"]) == ROWS


def test_several_splits_need_a_name(dataset, tmp_path):
    DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"several splits; name one of \['test', 'train'\]"):
        load_rows(str(tmp_path / "two"))
    assert len(load_rows(str(tmp_path / "two"), split="test")) == 5


def test_no_such_dataset_is_named(tmp_path):
    with pytest.raises(ValueError, match="dataset 'nobody/nothing' cannot be loaded"):
        load_rows("nobody/nothing")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("page.jsonl", "there is no such file; did you mean 'pages.jsonl'"),
        ("pages.warc.gz", "there is no such file; did you mean 'pages' or 'pages.jsonl'"),
        ("pages.jsnl.gz", "there is no such file; did you mean 'pages.jsonl' or 'pages'"),
        ("{}/pags/train", "there is no such folder, for there is no 'pags' in '{}'; did you mean 'pages'"),
        ("pags/2024/train.parquet", "there is no such file, for there is no 'pags' in '.'; did you mean 'pages'"),
        ("./pages/train", "there is no such folder"),
        ("pages/2024/train", "there is no such folder, for there is no '2024' in 'pages'"),
        ("pages.jsonl/a/b", "for there is no 'a' in 'pages.jsonl'"),
    ],
)
def test_a_path_at_which_nothing_lies_is_not_sought_on_the_hub(tmp_path, monkeypatch, name, words):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("sought on the Hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=re.escape(words.format(tmp_path))):
        load_splits(name.format(tmp_path))


def test_a_path_on_a_drive_that_is_not_there_is_refused_too(monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    with pytest.raises(ValueError, match="there is no such file"):
        load_splits("/pages/train.parquet")


@pytest.mark.parametrize("name", ["web", "someone/web", "someone/web.v2", "hf://datasets/someone/web", "buckets/a/b"])
def test_other_names_are_sought_on_the_hub(monkeypatch, name):
    monkeypatch.setattr("datasets.load_dataset", lambda place, **_: place)
    assert load_splits(name) == name


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_renamed_the_weight_stays_and_the_template_wraps_the_prompt(dataset, streaming):
    rows = dataset.to_iterable_dataset() if streaming else dataset
    rows = rename_columns(rows, "question", "answer", "Q: {prompt}\nA: ")
    assert list(rows)[3] == {"prompt": "Q: What is 3?\nA: ", "completion": "It is 3.", "weight": 1.5}


def test_braces_in_a_prompt_are_left_alone():
    rows = rename_columns(Dataset.from_list([{"q": r"\frac{1}{prompt}", "a": "x"}]), "q", "a", "{prompt}!")
    assert rows[0]["prompt"] == r"\frac{1}{prompt}!"


@pytest.mark.parametrize("name", ["rows[12].jsonl", "ro*.jsonl", "rows?.jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_s_name_is_no_pattern(dataset, tmp_path, name, streaming):
    (tmp_path / "rows1.jsonl").write_text('{"other": 1}\n')
    write(dataset, tmp_path / name)
    assert list(load_rows(str(tmp_path / name), streaming=streaming)) == ROWS


@pytest.mark.parametrize("name", ["rows.tsv", "ROWS.JSONL"])
def test_a_file_of_another_kind_is_not_sought_on_the_hub(tmp_path, name):
    (tmp_path / name).write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match=r"none of the kinds that are read: \.jsonl, \.json, \.parquet"):
        load_rows(str(tmp_path / name))


def test_columns_may_swap_names():
    rows = rename_columns(Dataset.from_list([{"prompt": "p", "completion": "c"}]), "completion", "prompt")
    assert rows[0] == {"prompt": "c", "completion": "p"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("question", None), "go together"),
        ((None, None, "x"), "go together"),
        (("question", "anser"), "no column 'anser'"),
        (("question", "answer", "Q:"), r"has no \{prompt\}"),
    ],
)
def test_half_a_mapping_is_refused(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        rename_columns(dataset, *arguments)


@pytest.mark.parametrize("streaming", [False, True])
def test_first_rows(dataset, streaming):
    rows = dataset.to_iterable_dataset() if streaming else dataset
    assert [row["id"] for row in first_rows(rows, 2)] == ["r0", "r1"]
    assert len(list(first_rows(rows, 50))) == 5
    assert first_rows(rows, None) is rows
    with pytest.raises(ValueError, match="at least 1"):
        first_rows(rows, 0)


def test_a_mixture_in_the_config_is_loaded(dataset, tmp_path):
    from hf_ext.recipes.launch import load_train_and_eval
    from hf_ext.recipes.weighted_sft.train import make_parser

    dataset.to_json(tmp_path / "one.jsonl")
    dataset.select([4]).to_json(tmp_path / "two.jsonl")
    config = tmp_path / "mix.yaml"
    files = [
        f"  - {{path: json, data_files: {tmp_path / name}, columns: [question, answer]}}"
        for name in ("one.jsonl", "two.jsonl")
    ]
    config.write_text("\n".join(["datasets:", *files, "prompt_column: question", "completion_column: answer"]))
    script, training, _, mixture = make_parser().parse_args_and_config(
        ["--config", str(config), "--use_cpu", "true", "--max_train_rows", "6"]
    )
    rows, held_out = load_train_and_eval(script, training, mixture)
    assert [row["prompt"] for row in rows] == [f"What is {i}?" for i in (0, 1, 2, 3, 4, 4)]
    assert held_out is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "there is no row in it"),
        (b'{"text": ', "JSON parse error"),
        (b"PK\x05\x06", "not a zip file"),  # `datasets` unpacks what looks like an archive, whatever its name
    ],
    ids=["empty", "cut", "archive"],
)
def test_a_file_that_holds_no_rows_says_what_it_is(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_splits(str(tmp_path / "rows.jsonl"))


def test_text_columns_say_which_text_is_which_whatever_their_names():
    rows = Dataset.from_dict(
        {"qid": [1], "answer": ["a"], "question": ["q"], "context": ["c"], "label": [1], "x": ["x"]}
    )
    named = texts_of(rows, ["question", "answer"])
    assert named.column_names == ["question", "answer", "qid", "label"]
    swapped = texts_of(rows, ["answer", "question", "context"])
    assert swapped[0] == {"query": "a", "positive": "q", "negative_1": "c", "qid": 1, "label": 1}
    stream = texts_of(rows.to_iterable_dataset(), ["answer", "question"])
    assert next(iter(stream)) == {"query": "a", "positive": "q", "qid": 1, "label": 1}
