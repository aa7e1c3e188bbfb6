"""Every Python block and every `hf-ext` command of the documentation runs, in order, on a tiny model."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from hf_ext.cli import main
from hf_ext.method import method_named, trained_methods
from hf_ext.recipes.files import find_recipe, training_recipes

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
READMES = sorted((ROOT / "trainers").glob("*/README.md"))
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text):
    """The commands of a shell block, with continued lines joined."""
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def run_page(page):
    """Run a page's blocks in one namespace; a failure names the page and the block."""
    names = {"__name__": "__docs__"}
    for number, (language, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1):
        if language == "python":
            exec(compile(text, f"{page.name}, block {number}", "exec", dont_inherit=True), names)
            continue
        for program, *arguments in commands(text):
            assert program == "hf-ext", f"{page.name}, block {number}: {program} is not run by this test"
            assert main(arguments) == 0, f"{page.name}, block {number}: hf-ext {' '.join(arguments)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_from_top_to_bottom(page, work):
    run_page(page)


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.parent.name)
def test_a_method_s_readme_runs(page, work):
    if page.parent.name == "context_free":
        (sample,) = re.findall(r"`hf-ext (data context-free .*?)`", page.read_text())
        assert main(shlex.split(sample)) == 0
    run_page(page)


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("method", [method.name for method in trained_methods()])
def test_the_commands_in_a_recipe_s_docstring_are_parsed(method):
    """They name Hub models and data, so that here they are parsed only: no unknown option, no unknown config."""
    module = import_module(method_named(method).recipe)
    blocks = re.findall(r"```bash\n(.*?)```", module.__doc__, re.DOTALL)
    launched = ["--num_processes", "--accelerate_config"]
    seen = 0
    for words in (command for block in blocks for command in commands(block)):
        for name in [name for name in launched if name in words]:
            del words[words.index(name) : words.index(name) + 2]
        if "-m" in words:
            assert words[words.index("-m") + 1] == module.__name__
            arguments = words[words.index("-m") + 2 :]
        elif words[:2] == ["hf-ext", "train"]:
            assert words[2] == method
            arguments = words[3:]
        else:
            from hf_ext.cli import make_parser

            make_parser(words[1]).parse_args(words[1:])
            continue
        module.make_parser().parse_args_and_config([*arguments, "--use_cpu", "true"])
        seen += 1
    assert seen >= 2


@pytest.mark.parametrize(
    "name",
    [
        *("flow/gsm8k.yaml", "context_free/gsm8k.yaml", "weighted_sft/example.yaml", "infopo/gsm8k_pairs.yaml"),
        *("infopo/hh_harmless.yaml", "infopo/ultrafeedback_llama3_8b.yaml", "infopo/ultrafeedback_mistral_7b.yaml"),
        *("infopo/unpaired.yaml", "infopo/online_gsm8k.yaml"),
        *("rare/minilm_beir.yaml", "rare/smollm2_nq.yaml", "rare/e5_mistral.yaml"),
        *("consensus/bert_agnews.yaml", "consensus/minilm_banking77.yaml"),
        *("consensus/resnet18_cifar10.yaml", "consensus/vit_cifar100.yaml"),
        "weighted_classification/resnet18_cifar10.yaml",
        *(f"pretraining/{scale}.yaml" for scale in ("nano_1x", "nano_2x", "400m_1x", "1b_1x")),
        *(f"pretraining/{scale}.yaml" for scale in ("3b_1x", "7b_1x", "7b_2x")),
        "dclm/nano.yaml",
        *("moe_em/minilm_banking77.yaml", "moe_em/minilm_civil_comments.yaml"),
        "moe_lora/smollm2_dolly.yaml",
    ],
)
def test_a_recipe_s_header_names_itself(name):
    header = find_recipe(name).read_text().split("\n\n")[0]
    method = training_recipes()[name]
    assert f"hf-ext train {method.name} " in header
    assert f"-m {method.recipe} " in header
    assert header.count(f"--config {name}") >= 2
