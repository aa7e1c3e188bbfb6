"""The whole evaluation: its numbers from its rows, resumed after kills, shared by processes, compared, refused."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_ext.evaluation.core import CoreIncomplete, CoreReport, evaluate_core
from hf_ext.evaluation.core.prompts import text_prompts
from hf_ext.evaluation.core.scoring import AnswerScorer
from hf_ext.evaluation.core.task_files import load_tasks
from hf_ext.evaluation.core.tasks import CORE_TASKS, EXTENDED_TASKS, TASKS
from hf_ext.evaluation.core.tokens import PromptTokens
from hf_ext.guards.disk import DiskFullError, NotWritableError
from hf_ext.guards.locks import InUseError
from hf_ext.guards.row_errors import RowError
from hf_ext.guards.runs import claimed_folder
from tests.evaluation.core.small_tasks import plain_losses, plainly_greedy, small_rows, write_tasks
from tests.forks import forked
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LABELS = ("copa", "arc_easy", "commonsense_qa", "winograd", "lambada_openai", "bigbench_operators")
MODEL = tiny_model(TOKENIZER, seed=0, initializer_range=0.3).eval()
SOME = ["copa", "winograd"]
OTHER = tiny_model(TOKENIZER, seed=1, initializer_range=0.3).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = {label: small_rows(label, 11, seed=i) for i, label in enumerate(LABELS)}
    return write_tasks(tmp_path_factory.mktemp("core"), rows)


def measured(data, model=MODEL, **changes):
    return evaluate_core(model, TOKENIZER, data, **{"show_progress": False, "batch_tokens": 900} | changes)


@pytest.fixture(scope="module")
def report(data: Path) -> CoreReport:
    return measured(data)


def some(rows):
    return [row for row in rows if row["task"] in SOME]


def assert_same_rows(rows, others):
    """Losses up to rounding, which depends on where weights and batches lie in memory; all else to the letter."""
    assert [row | {"losses": None} for row in rows] == [row | {"losses": None} for row in others]
    losses = [[loss for row in of_run for loss in row["losses"]] for of_run in (rows, others)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_accuracies_are_those_of_a_plain_loop(data, report):
    for label in LABELS:
        (task_rows,) = load_tasks(data, label)
        correct, summed = [], []
        prompts = PromptTokens(TOKENIZER, task_rows.task, "foundry", 512)(list(text_prompts(task_rows)))
        for prompt in prompts:
            ids, starts = prompt.sequences, prompt.starts
            if prompt.row.gold is None:
                correct.append(plainly_greedy(MODEL, ids[0], starts[0]))
                continue
            losses = plain_losses(MODEL, ids, starts)
            means = [loss / (len(s) - start) for loss, s, start in zip(losses, ids, starts, strict=True)]
            # equal texts have equal losses up to rounding, and the first one counts
            means = [means[ids.index(sequence)] for sequence in ids]
            losses = [losses[ids.index(sequence)] for sequence in ids]
            correct.append(means.index(min(means)) == prompt.row.gold)
            summed.append(losses.index(min(losses)) == prompt.row.gold)
        result = report.task(label)
        assert result.accuracy == pytest.approx(sum(correct) / 11)
        assert result.summed_accuracy == (pytest.approx(sum(summed) / 11) if summed else None)
        assert result.standard_error == pytest.approx((result.accuracy * (1 - result.accuracy) / 11) ** 0.5)


@pytest.mark.real
def test_40_real_rows_of_each_type_equal_a_plain_loop(real_data, smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = tiny_model(len(tokenizer), initializer_range=0.3, max_position_embeddings=2048).eval()
    labels = ["copa", "winograd", "lambada_openai"]
    real = evaluate_core(model, tokenizer, real_data / "core_eval", tasks=labels, max_rows=40, show_progress=False)
    rows = iter(real.rows)
    for task_rows in load_tasks(real_data / "core_eval", labels):
        texts = list(text_prompts(task_rows, max_rows=40))
        for prompt in PromptTokens(tokenizer, task_rows.task, "foundry", 2048)(texts):
            row = next(rows)
            losses = plain_losses(model, prompt.sequences, prompt.starts)
            assert (row["id"], row["losses"]) == (prompt.row.id, pytest.approx(losses, abs=1e-4))
            if prompt.row.gold is None:
                assert row["correct"] == plainly_greedy(model, prompt.sequences[0], prompt.starts[0])
            else:
                means = [loss / count for loss, count in zip(losses, row["tokens"], strict=True)]
                assert row["pick"] == means.index(min(means))
    assert next(rows, None) is None


def test_the_score_is_named_for_the_tasks_in_it(report):
    assert report.score().name == "core6_v2"
    assert list(report.scores()) == ["core6_v2", "core6_v1"]
    assert len(report.missing) == 16
    text = report.to_markdown()
    assert "core6_v2" in text
    assert "core6_v1" in text
    assert "This is not CORE" in text
    assert "11 of 100" in text
    assert "published" not in text.split("This is not")[0]


@pytest.mark.parametrize("batch_tokens", [1, 5000])
def test_picks_are_the_same_at_any_batch_size(data, report, batch_tokens):
    again = measured(data, batch_tokens=batch_tokens)
    assert [(r["pick"], r["correct"]) for r in again.rows] == [(r["pick"], r["correct"]) for r in report.rows]
    assert again == report


def killed_after(calls, data, folder, **changes):
    """Run in a fork that gets a SIGKILL at that scoring."""

    def work():
        original = AnswerScorer.__call__
        left = [calls]

        def dying(self, rows):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return original(self, rows)

        AnswerScorer.__call__ = dying
        measured(data, output_dir=folder, **changes)

    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


def test_ten_kills_later_the_report_is_that_of_an_undisturbed_run(data, tmp_path):
    undisturbed = measured(data, batch_tokens=300)
    for kill in range(10):
        assert killed_after(1 + kill % 3, data, tmp_path, batch_tokens=300) == -signal.SIGKILL
    resumed = measured(data, batch_tokens=300, output_dir=tmp_path)
    assert resumed == undisturbed
    assert_same_rows(resumed.rows, undisturbed.rows)
    lines = [line for path in tmp_path.glob("records/*/rows-*.jsonl") for line in path.read_text().splitlines()]
    rows = [(row["task"], row["row"]) for row in map(json.loads, lines)]
    assert len(rows) == len(set(rows)) == 11 * len(LABELS)  # none was scored twice


def test_a_half_written_line_is_scored_again(data, tmp_path):
    first = measured(data, output_dir=tmp_path)
    path = tmp_path / "records" / "copa" / "rows-00000.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    again = measured(data, output_dir=tmp_path)
    assert again == first
    assert_same_rows(again.rows, first.rows)
    assert path.read_bytes().count(b"\n") == content.count(b"\n")


@pytest.mark.parametrize(
    "change",
    [
        {"row": "3"},
        {"losses": [1.0]},
        {"losses": ["1", "2"]},
        {"losses": None},
        {"tokens": [float("nan"), 3]},
        {"correct": "no"},
        {"truncated": [True]},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_named(data, tmp_path, change):
    measured(data, tasks="copa", output_dir=tmp_path)
    path = tmp_path / "records" / "copa" / "rows-00000.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, json.dumps(json.loads(first) | change) + "\n", *others]))
    with pytest.raises(ValueError, match=r"rows-00000.jsonl, line 2, is no row's result .* Remove the file"):
        measured(data, tasks="copa", output_dir=tmp_path)


def test_a_full_disk_is_one_sentence_and_what_was_scored_stays(data, tmp_path, report):
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        with pytest.raises(DiskFullError, match=r"No room to write the rows' results .* it goes on at the next row"):
            measured(data, output_dir=tmp_path, batch_tokens=100)

    assert os.waitpid(forked(work), 0)[1] == 0
    lines = [line for path in tmp_path.glob("records/*/rows-*.jsonl") for line in path.read_text().splitlines()]
    assert 0 < len(lines) == len([json.loads(line) for line in lines]) < 11
    assert measured(data, output_dir=tmp_path) == report


def test_a_folder_that_another_run_holds_or_that_is_none_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritableError, match="Cannot write"):
        measured(data, tasks="copa", output_dir=tmp_path / "file")
    with claimed_folder(tmp_path / "out"), ThreadPoolExecutor() as threads:
        job = threads.submit(lambda: measured(data, tasks="copa", output_dir=tmp_path / "out"))
        with pytest.raises(InUseError, match="is being written by process"):
            job.result()


def test_it_goes_on_with_other_batches_more_rows_and_more_tasks(data, tmp_path, report):
    measured(data, tasks=["copa", "arc_easy"], max_rows=3, output_dir=tmp_path, batch_tokens=100)
    counted = []
    original = AnswerScorer.__call__
    try:
        AnswerScorer.__call__ = lambda self, rows: counted.extend(rows) or original(self, rows)
        again = measured(data, output_dir=tmp_path)
    finally:
        AnswerScorer.__call__ = original
    assert again == report
    assert len(counted) == 11 * len(LABELS) - 6


def test_results_of_another_model_or_protocol_are_not_gone_on_with(data, tmp_path):
    measured(data, tasks="copa", output_dir=tmp_path)
    for changes, name in (({"model": OTHER}, "model"), ({"protocol": "nanochat"}, "protocol")):
        with pytest.raises(ValueError, match=f"begun with other settings: {name} was"):
            measured(data, tasks="copa", output_dir=tmp_path, **changes)
    write_tasks(tmp_path / "changed", {"copa": small_rows("copa", 11, seed=9)})
    with pytest.raises(ValueError, match="begun with other settings: task_file was"):
        measured(tmp_path / "changed", tasks="copa", output_dir=tmp_path)


def broken_row():
    raise FloatingPointError("task 'copa', row 3: the loss of option 0 is nan.")


def test_two_processes_share_the_rows_and_have_the_whole_report(data, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    three = ["copa", "arc_easy", "winograd"]

    def work(rank):
        PartialState._reset_state()
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        sharded = tiny_model(TOKENIZER)
        sharded.lm_head.weight.ds_id = 0  # as DeepSpeed marks weights that it holds in parts
        with pytest.raises(ValueError, match="is sharded over the processes"):
            measured(data, sharded)
        with pytest.MonkeyPatch.context() as patch:  # what goes wrong on the second one ends both, with its sentence
            if rank == 1:
                patch.setattr(AnswerScorer, "__call__", lambda self, rows: broken_row())
            with pytest.raises(FloatingPointError, match="task 'copa', row 3"):
                measured(data, batch_tokens=300, tasks=three)
        whole = measured(data, batch_tokens=300, output_dir=tmp_path / "out", against=OTHER, tasks=three)
        (tmp_path / f"{rank}.json").write_text(json.dumps([whole.to_dict(), whole.rows]))

    children = [forked(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    alone = measured(data, batch_tokens=300, against=OTHER, tasks=three)
    for rank in range(2):
        values, rows = json.loads((tmp_path / f"{rank}.json").read_text())
        assert CoreReport.from_dict(values) == alone
        assert_same_rows(rows, alone.rows)
    shares = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "out" / "records").glob("*/rows-*"))]
    assert len(shares) > len(three)  # a task of a single batch is one process's
    assert sum(shares) == 11 * len(three)
    assert (
        measured(data, output_dir=tmp_path / "out", against=OTHER, tasks=three) == alone
    )  # one process goes on where two were


def test_against_another_model_differences_are_paired(data, report):
    both = measured(data, against=OTHER, tasks=SOME)
    alone = measured(data, tasks=SOME)
    other = measured(data, OTHER, tasks=SOME)
    for label in SOME:
        assert both.task(label).accuracy == report.task(label).accuracy
        gap = report.task(label).centered() - other.task(label).centered()
        assert both.task(label).difference.mean == pytest.approx(gap)
    gap = alone.score("v1").value - other.score("v1").value
    assert both.differences["v1"].mean == pytest.approx(gap)
    assert both.differences["v2"].half_width > 0
    itself = measured(data, against=MODEL, tasks=SOME)
    assert (itself.differences["v2"].mean, itself.differences["v2"].half_width) == (0, 0)
    assert "paired by row" in itself.to_markdown()


def test_a_model_with_an_adapter_is_measured_with_it(data, report, tmp_path):
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=64)
    tuned = get_peft_model(tiny_model(TOKENIZER, seed=0, initializer_range=0.3), adapter)
    neutral = measured(data, tuned, output_dir=tmp_path, tasks=SOME)
    assert [r["pick"] for r in neutral.rows] == [r["pick"] for r in some(report.rows)]
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    moved = measured(data, tuned, tasks=SOME)
    assert moved.rows[0]["losses"] != pytest.approx(neutral.rows[0]["losses"], abs=1e-2)
    with pytest.raises(ValueError, match="model was"):  # other weights: the records are another model's
        measured(data, tuned, output_dir=tmp_path, tasks=SOME)


def test_a_folder_of_a_saved_model_is_measured_as_the_model(data, report, tmp_path):
    MODEL.save_pretrained(tmp_path / "model")
    saved = measured(data, str(tmp_path / "model"), against=tmp_path / "model", tasks=SOME)
    assert_same_rows(saved.rows, some(report.rows))
    assert (saved.settings["model"], saved.settings["against"]) == ("model", "model")


def test_the_report_is_saved_read_back_and_drawn(report, tmp_path):
    report.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"core.json", "core.md", "core_rows.jsonl", "core.svg", "core.png"}
    assert CoreReport.load(tmp_path) == report
    rows = [json.loads(line) for line in (tmp_path / "core_rows.jsonl").read_text().splitlines()]
    assert rows == report.rows
    texts = {text for row in rows for text in row.values() if isinstance(text, str)}
    assert all(text.split("-")[0] in LABELS for text in texts)  # ids and labels, no text of the rows
    metrics = {result.metric_type: result.metric_value for result in report.eval_results()}
    assert metrics["core6_v2"] == pytest.approx(report.score().value, abs=1e-6)
    assert metrics["copa_accuracy"] == pytest.approx(report.task("copa").accuracy, abs=1e-6)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("settings",), {}),
        (("settings",), None),
        (("settings", "max_length"), "long"),
        (("tasks", 0, "label"), "riddles"),
        (("tasks", 0, "label"), ["copa"]),
        (("tasks", 0, "accuracy"), None),
        (("tasks", 0, "accuracy"), 7),
        (("tasks", 0, "speed"), 3.0),
        (("differences",), []),
    ],
)
def test_a_report_of_another_make_is_named(report, tmp_path, place, value):
    values = report.to_dict()
    inner = values = json.loads(json.dumps(values))
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    (tmp_path / "core.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"core\.json is not a report that hf-ext wrote"):
        CoreReport.load(tmp_path)


def test_published_figures_stand_only_beside_a_whole_score_of_their_protocol(report):
    template = report.tasks[0].__dict__
    whole = [
        type(report.tasks[0])(**template | {
            "label": label, "type": TASKS[label].type, "rows": TASKS[label].num_rows,
            "rows_of_task": TASKS[label].num_rows, "shots": TASKS[label].shots, "shots_wanted": TASKS[label].shots,
        })
        for label in CORE_TASKS
    ]  # fmt: skip
    settings = report.settings
    foundry = CoreReport(whole, settings)
    assert foundry.score("v1").name == "core_v1"
    assert "DCLM-Baseline 7B" in foundry.to_markdown()
    assert "GPT-2" not in foundry.to_markdown()
    nanochat = CoreReport(whole, settings | {"protocol": "nanochat"})
    assert "GPT-2 XL" in nanochat.to_markdown()
    assert "DCLM-Baseline" not in nanochat.to_markdown()
    everything = [type(whole[0])(**whole[0].__dict__ | {"label": label}) for label in EXTENDED_TASKS]
    assert list(CoreReport(everything, settings).scores()) == ["core_v2", "core_v1", "extended_v2", "extended_v1"]
    assert "| extended_v2 |" in CoreReport(everything, settings).to_markdown().replace("\\", "")
    short = CoreReport([*whole[:-1], type(whole[0])(**whole[-1].__dict__ | {"rows": 3})], settings)
    assert short.score().name == "core22_v2"
    assert "DCLM-Baseline" not in short.to_markdown()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": 4}, "field 'gold': expected a position from 0 to 1, found 4"),
        ({"gold": -1}, "field 'gold': expected a position from 0 to 1, found -1"),
        ({"gold": None}, "field 'gold': expected the right option's position, an integer, found None"),
        ({"gold": True}, "an integer, found bool True"),
        ({"gold": "0"}, "an integer, found str '0'"),
        ({"query": None}, "field 'query': expected a string, found None"),
        ({"choices": []}, "field 'choices': expected a list of strings, found an empty list"),
        ({"choices": ["a", 3]}, "field 'choices': expected a list of strings, found list"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, change, message):
    rows = small_rows("copa", 3)
    rows[1] |= {"choices": ["hats", "boats"], "gold": 0} | change
    write_tasks(tmp_path, {"copa": rows})
    with pytest.raises(RowError) as caught:
        measured(tmp_path)
    assert "task 'copa', row 1, " in str(caught.value)
    assert message in str(caught.value)
    assert caught.value.row_index == 1


def test_folders_and_labels_that_cannot_be_used_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        measured(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no task file"):
        measured(tmp_path)
    with pytest.raises(CoreIncomplete, match=r"6 of CORE's 22 tasks: hellaswag_zeroshot, .* missing"):
        measured(data, tasks="core")
    with pytest.raises(ValueError, match="'copa_2' is no task"):
        measured(data, tasks=["copa", "copa_2"])
    with pytest.raises(ValueError, match="has no file for 'boolq'"):
        measured(data, tasks="boolq")
    write_tasks(tmp_path / "odd", {"copa": small_rows("copa", 3)}, type="essay")
    with pytest.raises(ValueError, match="'copa' has the type 'essay'; 'copa' is of type 'multiple_choice'"):
        measured(tmp_path / "odd")
    write_tasks(tmp_path / "out", {"copa": small_rows("copa", 3)}, file="../copa.jsonl")
    with pytest.raises(ValueError, match="no path inside its folder"):
        measured(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    write_tasks(tmp_path / "empty", {"copa": []})
    with pytest.raises(ValueError, match="has no row"):
        measured(tmp_path / "empty")
    for changes in ({"protocol": "helm"}, {"max_rows": 0}, {"batch_tokens": -1}, {"max_length": 0}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            measured(data, **changes)


def test_models_that_are_no_causal_ones_are_refused(data, tmp_path):
    config = T5Config(vocab_size=400, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="has an encoder and a decoder"):
        measured(data, T5ForConditionalGeneration(config))
    small = BartConfig(vocab_size=400, d_model=16, encoder_layers=1, decoder_layers=1)
    BartForConditionalGeneration(small).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has an encoder and a decoder"):  # as its decoder transformers loads it
        measured(data, str(tmp_path))
    with pytest.raises(ValueError, match="no language-model head"):
        measured(data, tiny_model(TOKENIZER).model)


def test_a_tokenizer_that_cannot_be_the_models_is_refused(data):
    with pytest.raises(RowError, match="the model has no embedding for the token"):
        measured(data, tiny_model(200))


def test_a_tokenizer_without_padding_token_gives_the_same(data, report):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    again = evaluate_core(MODEL, tokenizer, data, tasks=SOME, show_progress=False)
    assert again.tasks == [report.task(label) for label in SOME]


def test_a_loss_that_is_no_number_names_task_and_row(data):
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"task 'arc_easy', row \d+ \(arc_easy-\d+\): the loss of option 0 is nan"
    ):
        measured(data, model)
    written = write_tasks(data.parent / "written", {"svamp_cot": small_rows("svamp_cot", 2)})
    with pytest.raises(FloatingPointError, match=r"row 0 \(svamp_cot-000\): the logits of its answer are NaN"):
        measured(written, model, tasks="all")


def test_an_option_without_tokens_is_never_chosen_and_counted(tmp_path):
    rows = [
        {"query": "Ada", "choices": ["sells", "sells hats", "sells boats"], "gold": 0},
        {"query": "Ben", "choices": ["paints", "paints"], "gold": 0},
        {"query": "Dana", "choices": ["buys hats", "finds hats"], "gold": 1},
    ]
    write_tasks(tmp_path, {"copa": rows})
    whole = measured(tmp_path, protocol="nanochat")
    by_row = {row["row"]: row for row in whole.rows}
    assert by_row[0]["pick"] in (1, 2)
    assert by_row[0]["tokens"][0] == 0
    assert by_row[1]["pick"] is None
    assert not by_row[1]["correct"]
    assert whole.task("copa").empty_options == 3
    assert "3 options had no token to score" in whole.to_markdown()


def test_long_prompts_are_cut_and_counted_and_the_model_s_positions_bound_them(data):
    model = tiny_model(TOKENIZER, max_position_embeddings=150)
    short = measured(data, model, max_length=2048)
    assert short.settings["max_length"] == 150
    assert short.task("arc_easy").truncated > 0.9
    assert short.task("copa").truncated == 0


def test_fewer_rows_than_examples_are_flagged(data, report):
    few = measured(write_tasks(data.parent / "few", {"arc_easy": small_rows("arc_easy", 4)}))
    assert (few.task("arc_easy").shots, few.task("arc_easy").shots_wanted) == (3, 10)
    assert "3 of 10" in few.to_markdown()


def test_a_model_is_as_before_afterwards(data):
    model = tiny_model(TOKENIZER).train()
    measured(data, model, tasks="copa")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_progress_is_quiet_where_asked(data, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        measured(data, tasks="copa")
    assert capfd.readouterr().err == ""
    assert not caplog.records
