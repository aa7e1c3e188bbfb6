"""A package of an extra that is not there: one sentence with the line that installs it, from every door."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from hf_ext.guards.exits import exit_status
from hf_ext.guards.extras import EXTRAS, MissingExtraError, missing_extra, require_extra

# What an environment without sentence-transformers, bm25s, PEFT and matplotlib says; each line is one claim.
PROGRAM = """
import importlib.util, sys
gone = ("sentence_transformers", "bm25s", "peft", "matplotlib")
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in gone else find_spec(name, *rest)
import hf_ext
from importlib import import_module
for place, name in (("", "RareConfig"), ("", "RareEncoder"), (".trainers.rare", "ContextDistillationTrainer"),
                    (".evaluation.retrieval", "RareInformationRetrievalEvaluator")):
    try:
        getattr(import_module("hf_ext" + place), name)
    except ImportError as error:
        print(f"{name}: {type(error).__name__}: {error}")
hf_ext.InfoPOTrainer, hf_ext.FlowSFTTrainer, hf_ext.ExemplarStore, hf_ext.prune
from hf_ext.cli import main
sys.stderr = sys.stdout
pool = ["--dataset", "pairs.jsonl", "--query", "a"]
for words in (["train", "rare", "--help"], ["train", "rare", "--schema"], ["data", "exemplars", *pool],
              ["eval", "preference", "--model", "m", "--dataset", "d", "--output", "o", "--plot"]):
    print(main(words))
"""


def test_every_door_names_the_line_that_installs_what_is_missing(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"query": "a b", "positive": "c"}\n{"query": "a d", "positive": "e"}\n')
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    install = 'sentence-transformers is not installed. Run: pip install "hf-ext[retrieval]"'
    assert done.stdout.splitlines()[:8] == [
        f"RareConfig: MissingExtraError: {install}",
        f"RareEncoder: MissingExtraError: {install}",
        f"ContextDistillationTrainer: MissingExtraError: {install}",
        f"RareInformationRetrievalEvaluator: MissingExtraError: {install}",
        f"hf-ext train rare: error: {install}",
        "2",
        f"hf-ext train rare: error: {install}",
        "2",
    ], done.stderr[-2000:]
    assert 'hf-ext data exemplars: error: bm25s is not installed. Run: pip install "hf-ext[retrieval]"' in done.stdout
    last = done.stdout.splitlines()[-2:]
    assert last == [
        'hf-ext eval preference: error: matplotlib is not installed. Run: pip install "hf-ext[plots]"',
        "2",
    ]


@pytest.mark.parametrize("module", EXTRAS)
def test_the_extra_named_installs_the_package(module):
    needed = (Requirement(line) for line in metadata.requires("hf-ext"))
    package = {"sklearn": "scikit-learn"}.get(module, module.replace("_", "-"))
    of_extra = [line.name for line in needed if line.marker and line.marker.evaluate({"extra": EXTRAS[module]})]
    assert package in of_extra
    assert f'{package} is not installed. Run: pip install "hf-ext[' in str(missing_extra(_missing(module)))


def test_a_package_that_is_there_or_is_none_of_an_extra_is_left_alone():
    require_extra("peft")
    assert missing_extra(_missing("torch")) is None
    assert missing_extra(ImportError("cannot import name 'x' from 'peft'", name="peft")) is None
    with pytest.raises(ModuleNotFoundError):  # a bug of ours keeps its traceback
        exit_status(lambda: _raise(_missing("hf_ext.nothing")), "x")


def test_a_package_that_a_host_asks_for_is_one_line(capsys):
    assert exit_status(lambda: _raise(ImportError("needs the wandb\n  package")), "x") == 2
    assert capsys.readouterr().err == "x: error: needs the wandb package\n"
    assert exit_status(lambda: _raise(MissingExtraError("peft is not installed")), "x") == 2


def _missing(module):
    return ModuleNotFoundError(f"No module named {module!r}", name=module)


def _raise(error):
    raise error
