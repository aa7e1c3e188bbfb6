"""`hf-ext recipes`: what is listed can be shown."""

from __future__ import annotations

import json

import pytest
import yaml

from hf_ext.cli import main
from hf_ext.recipes.files import find_recipe, recipe_names


def test_the_list_names_every_file_with_a_line_about_it(capsys):
    assert main(["recipes", "list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"flow/gsm8k.yaml", "context_free/gsm8k.yaml", "accelerate_configs/zero3.yaml"} <= set(lines)
    assert set(lines) == set(recipe_names())
    assert all(len(line) > 10 for line in lines.values())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_shown_and_is_a_yaml_mapping(capsys, name):
    assert main(["recipes", "show", name]) == 0
    assert isinstance(yaml.safe_load(capsys.readouterr().out), dict)


def test_the_suffix_may_be_left_out_and_the_path_asked_for(capsys):
    assert main(["recipes", "show", "flow/gsm8k", "--path"]) == 0
    path = capsys.readouterr().out.strip()
    with open(path, encoding="utf-8") as file:
        assert yaml.safe_load(file)["tau"] == "median"


def test_an_unknown_name_gives_one_line_with_close_names(capsys):
    assert main(["recipes", "show", "flow/gsm9k"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "flow/gsm8k.yaml" in err


def test_a_name_does_not_leave_the_package(capsys):
    assert main(["recipes", "show", "../../etc/passwd"]) == 2


def test_the_list_as_json_has_the_same_names(capsys):
    assert main(["recipes", "list", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == recipe_names()


@pytest.mark.parametrize(
    ("destination", "file"), [(None, "gsm8k.yaml"), ("mine/", "mine/gsm8k.yaml"), ("mine/own.yaml", "mine/own.yaml")]
)
def test_a_copy_is_the_recipe_to_the_byte_and_the_printed_command_reads_it(
    tmp_path, monkeypatch, capsys, destination, file
):
    from hf_ext.recipes.flow.train import make_parser

    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "flow/gsm8k", *([destination] if destination else [])]) == 0
    assert (tmp_path / file).read_bytes() == find_recipe("flow/gsm8k.yaml").read_bytes()
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert command[:3] == ["hf-ext", "train", "flow"]
    (tmp_path / file).write_text("tau: 7.5")
    assert make_parser().parse_args_and_config(command[3:])[1].tau == "7.5"


def test_a_copy_in_a_folder_named_as_the_package_s_is_the_one_that_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "flow/gsm8k.yaml", "flow/"]) == 0
    path = capsys.readouterr().out.split()[-1]
    assert find_recipe(path).resolve() == (tmp_path / "flow" / "gsm8k.yaml").resolve()


def test_a_copy_overwrites_only_when_told(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine")
    assert main(["recipes", "copy", "flow/gsm8k", str(mine)]) == 2
    assert mine.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main(["recipes", "copy", "flow/gsm8k", str(mine), "--force"]) == 0
    assert "tau" in mine.read_text()


def test_an_accelerate_config_is_copied_with_its_own_command(tmp_path, capsys):
    assert main(["recipes", "copy", "accelerate_configs/fsdp2", str(tmp_path)]) == 0
    assert f"hf-ext train METHOD --accelerate_config {tmp_path / 'fsdp2.yaml'}" in capsys.readouterr().out
