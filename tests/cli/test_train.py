"""`hf-ext train`: the recipe's own help, and the launcher each case needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hf_ext.cli import main
from hf_ext.cli.train import launch_command
from hf_ext.method import trained_methods
from hf_ext.recipes.files import find_accelerate_config
from tests.recipes.work import SMALL

METHODS = [method.name for method in trained_methods()]
MODULE = "hf_ext.recipes.flow.train"


def test_help_of_the_verb_lists_the_methods_and_imports_nothing_heavy():
    code = "import sys\nfrom hf_ext.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'datasets', 'trl', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(METHODS) <= set(done.stdout.split())


def test_help_of_a_method_shows_everything(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "flow", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: hf-ext train flow")
    assert "--tau" in text
    assert "--lora_r" in text


def test_an_unknown_method_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "flwo"])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert all(method in err for method in METHODS)


def test_a_single_process_trains_here(work):
    more = ["--dataset_name", "train.jsonl", "--output_dir", "out", "--report_to", "none"]
    assert main(["train", "weighted_sft", *SMALL, *more]) == 0
    assert (work / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--accelerate_config", "fsdp3"], "fsdp2"),
        (["--config", "flow/gsm9k.yaml"], "flow/gsm8k"),
        (["--num_processes", "2", "--config", "flow/gsm9k.yaml"], "flow/gsm8k"),
    ],
)
def test_wrong_arguments_are_a_line_and_status_2(capsys, arguments, word):
    assert main(["train", "flow", *arguments]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("hf-ext train flow: error:")
    assert word in message


def test_no_process_is_a_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "flow", "--num_processes", "0"])
    assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_option_stops_before_anything_is_launched(monkeypatch, capsys):
    monkeypatch.setattr("hf_ext.cli.train.launch", lambda *args: pytest.fail("launched"))
    with pytest.raises(SystemExit) as stop:
        main(["train", "flow", "--num_processes", "2", "--config", "flow/gsm8k.yaml", "--taus", "1"])
    assert stop.value.code == 2
    assert "did you mean '--tau'" in capsys.readouterr().err


def test_on_the_cpu_several_processes_start_through_torchrun():
    command, promised = launch_command(MODULE, ["--tau", "median"], processes=2, devices=0)
    assert promised == 2
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[command.index("--nproc_per_node") + 1] == "2"
    assert command[-5:] == [MODULE, "--tau", "median", "--use_cpu", "true"]


@pytest.mark.parametrize(
    ("config", "processes", "devices", "promised", "file"),
    [
        (None, 8, 8, 8, "multi_gpu"),
        ("fsdp2", None, 4, 4, "fsdp2"),
        ("zero3", 2, 4, 2, "zero3"),
        ("single_gpu", None, 4, 1, "single_gpu"),
    ],
)
def test_with_accelerators_accelerate_launches(config, processes, devices, promised, file):
    command, told = launch_command(MODULE, ["--tau", "median"], config, processes, devices)
    assert told == promised
    assert command[2] == "accelerate.commands.launch"
    assert command[command.index("--config_file") + 1] == str(find_accelerate_config(file))
    assert command[command.index("--num_processes") + 1] == str(promised)
    assert command[-4:] == ["-m", MODULE, "--tau", "median"]


def test_accelerate_understands_the_command():
    from accelerate.commands.launch import launch_command_parser

    command, _ = launch_command(MODULE, ["--tau", "median"], "fsdp2", 4, 4)
    parsed = launch_command_parser().parse_args(command[3:])
    assert (parsed.module, parsed.training_script) == (True, MODULE)
    assert parsed.training_script_args == ["--tau", "median"]
    assert parsed.num_processes == 4


@pytest.mark.parametrize("text", ["distributed_type: FSDP\nuse_cpu: true", "distributed_type: FSDP", "use_cpu: false"])
def test_a_config_that_this_machine_cannot_honour_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match="needs accelerators"):
        launch_command(MODULE, [], str(tmp_path / "mine.yaml"), 2, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_processes: many", "num_processes must be 1 or more, found 'many'"),
        ("num_processes: [2]", "num_processes must be 1 or more"),
        ("num_processes: true", "num_processes must be 1 or more"),
        ("num_processes: 0", "num_processes must be 1 or more, found 0"),
        ("num_processes: 1\nnum_processes: 2", "line 2 .* given twice"),
        ("a: &a [*a]", "stands inside itself"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("- a", "must be a YAML mapping"),
        ("a: 2024-13-40", "cannot be read as timestamp"),
    ],
)
def test_an_accelerate_config_that_is_none_is_refused_in_a_sentence(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml.*{words}"):
        launch_command(MODULE, [], str(tmp_path / "mine.yaml"), None, 0)


def test_a_broken_config_is_said_before_the_recipe_is_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_ext.cli.train.import_module", lambda name: pytest.fail(f"imported {name}"))
    (tmp_path / "c.yaml").write_text("tau: 1\ntau: 2\n")
    for flag in (["--config", str(tmp_path / "c.yaml")], [f"--config={tmp_path / 'c.yaml'}"]):
        assert main(["train", "flow", *flag]) == 2
        assert "'tau' is given twice" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_text("env: {A: [1]}\n")
    assert main(["train", "flow", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "env: A: expected string or number or boolean" in capsys.readouterr().err


def test_a_config_for_the_cpu_starts_torchrun_even_where_there_are_accelerators(tmp_path):
    (tmp_path / "cpu.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 3\nuse_cpu: true\n")
    command, promised = launch_command(MODULE, [], str(tmp_path / "cpu.yaml"), None, 8)
    assert promised == 3
    assert "torch.distributed.run" in command


def test_the_launcher_gets_the_promise_and_its_status_is_ours(monkeypatch):
    seen = {}

    def fake_launch(command, environment, prog):
        seen.update(environment)
        return 7

    monkeypatch.setattr("hf_ext.cli.train.launch", fake_launch)
    assert main(["train", "flow", "--num_processes", "2"]) == 7
    assert seen == {"HF_EXT_NUM_PROCESSES": "2"}
