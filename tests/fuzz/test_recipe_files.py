"""Any recipe file and any recipe name: success, or one line and status 2."""

from __future__ import annotations

import yaml
from hypothesis import strategies as st

from hf_ext.cli import main
from hf_ext.guards.exits import exit_status
from hf_ext.recipes.context_free.train import make_parser
from hf_ext.recipes.files import find_accelerate_config, find_recipe
from tests.fuzz.engine import EXAMPLES, SCALARS, fuzz, status_of, trees

KEYS = sorted(make_parser().schema()["properties"])


def parse(path) -> int:
    arguments = ["--config", str(path), "--use_cpu", "true", "--bf16", "false"]
    return status_of(lambda: exit_status(lambda: make_parser().parse_args_and_config(arguments) and None, "fuzz"))


def check_file(path, content: bytes) -> None:
    path.write_bytes(content)
    assert parse(path) in (0, 2)


@EXAMPLES
def test_any_bytes_in_the_place_of_a_recipe(tmp_path, examples):
    yaml_like = st.text("abt:-[]{}&*!|>'\"#%@ \n\t0159.~", max_size=60).map(str.encode)
    fuzz(examples, st.binary(max_size=60) | yaml_like, lambda content: check_file(tmp_path / "any.yaml", content))


@EXAMPLES
def test_any_value_under_any_key(tmp_path, examples):
    def check(values: dict) -> None:
        try:
            text = yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")
        except yaml.YAMLError:
            return
        check_file(tmp_path / "any.yaml", text)

    fuzz(examples, st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), trees(), max_size=4), check)


@EXAMPLES
def test_values_of_the_right_type_that_a_config_may_still_refuse(tmp_path, examples):
    """These pass the schema more often, and so reach the configs of the host libraries."""
    properties = make_parser().schema()["properties"]
    kinds = {
        "string": st.text(max_size=8),
        "integer": st.integers(-(10**20), 10**20),
        "number": st.floats(),
        "boolean": st.booleans(),
        "null": st.none(),
        "object": st.dictionaries(st.text(max_size=6), SCALARS, max_size=2),
        "array": st.lists(st.text(max_size=6), max_size=2),
    }

    def value_of(name: str):
        schema = properties[name]
        names = schema.get("type", "string")
        names = [names] if isinstance(names, str) else names
        chosen = st.sampled_from(schema["enum"]) if "enum" in schema else st.one_of([kinds[kind] for kind in names])
        return st.tuples(st.just(name), chosen)

    pairs = st.lists(st.sampled_from([key for key in KEYS if key != "env"]).flatmap(value_of), max_size=3)
    fuzz(
        examples,
        pairs.map(dict),
        lambda values: check_file(tmp_path / "any.yaml", yaml.safe_dump(values).encode("utf-8", "surrogatepass")),
    )


NAMES = st.text(max_size=20) | st.sampled_from(
    ["", ".", "..", "/", "~", "flow", "flow/", "../x", "a\0b", "\ud800", "x" * 5_000, "flow/gsm8k.yaml/", "C:\\", "*"]
)


@EXAMPLES
def test_any_name_of_a_recipe_or_an_accelerate_config(tmp_path, monkeypatch, examples):
    monkeypatch.chdir(tmp_path)

    def check(name: str) -> None:
        for find in (find_recipe, find_accelerate_config):
            assert exit_status(lambda find=find: find(name) and None, "fuzz") in (0, 2)
        assert status_of(lambda: main(["recipes", "show", "--", name])) in (0, 2)

    fuzz(examples, NAMES, check)
