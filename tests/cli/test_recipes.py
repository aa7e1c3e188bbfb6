"""`hf-ext recipes`: what is listed can be shown."""

from __future__ import annotations

import pytest
import yaml

from hf_ext.cli import main
from hf_ext.recipes.files import recipe_names


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
