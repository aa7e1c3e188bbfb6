"""The forgetting report against brute force: plain loops over rows, positions and the vocabulary."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import log_softmax, rel_entr

from hf_ext.evaluation import forgetting
from hf_ext.evaluation.core.evaluate import evaluate_core
from hf_ext.evaluation.forgetting import forgetting_report
from hf_ext.evaluation.report import ForgettingReport
from tests.evaluation.core.small_tasks import small_rows, write_tasks
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_sentences, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def _prepared(n: int, seed: int = 0) -> Dataset:
    """Rows of uneven length whose first third is not supervised."""
    rows: dict[str, list] = {"input_ids": [], "labels": [], "hard": []}
    for i, text in enumerate(tiny_sentences(n, seed)):
        ids = TOKENIZER(text)["input_ids"]
        cut = len(ids) // 3
        rows["input_ids"].append(ids)
        rows["labels"].append([-100] * cut + ids[cut:])
        rows["hard"].append(i % 4 == 0)
    return Dataset.from_dict(rows)


def _logits(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().numpy()


def _loop_nll(model: torch.nn.Module, row: dict[str, Any]) -> tuple[float, int]:
    """One row alone, one position at a time."""
    log_probs = log_softmax(_logits(model, row["input_ids"]), axis=-1)
    scored = [t for t in range(1, len(row["labels"])) if row["labels"][t] != -100]
    return -sum(log_probs[t - 1, row["labels"][t]] for t in scored), len(scored)


def _loop_kl(original: torch.nn.Module, new: torch.nn.Module, row: dict[str, Any]) -> tuple[float, int]:
    p = np.exp(log_softmax(_logits(original, row["input_ids"]), axis=-1))
    q = np.exp(log_softmax(_logits(new, row["input_ids"]), axis=-1))
    scored = [t for t in range(1, len(row["labels"])) if row["labels"][t] != -100]
    return sum(rel_entr(p[t - 1], q[t - 1]).sum() for t in scored), len(scored)


def _ratio(pairs: list[tuple[float, int]]) -> float:
    return sum(value for value, _ in pairs) / sum(count for _, count in pairs)


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    return tiny_model(TOKENIZER, seed=0).eval()


@pytest.fixture(scope="module")
def new() -> torch.nn.Module:
    return tiny_model(TOKENIZER, seed=1, initializer_range=0.3).eval()  # sharper, so KL differs from its reverse


@pytest.fixture(scope="module")
def report(original: torch.nn.Module, new: torch.nn.Module) -> ForgettingReport:
    return forgetting_report(
        original,
        new,
        TOKENIZER,
        target=_prepared(13),
        context_free=_prepared(9, seed=5),
        general_text=tiny_sentences(7, seed=8),
        groups="hard",
        batch_size=4,
        show_progress=False,
    )


def test_losses_before_and_after_equal_a_loop(report: ForgettingReport, original: Any, new: Any) -> None:
    rows = list(_prepared(13))
    before, after = [_loop_nll(original, row) for row in rows], [_loop_nll(new, row) for row in rows]
    run = report.run()
    assert report.original.target_loss.mean == pytest.approx(_ratio(before), abs=1e-5)
    assert run.target_loss.mean == pytest.approx(_ratio(after), abs=1e-5)
    assert run.target_change.mean == pytest.approx(_ratio(after) - _ratio(before), abs=1e-5)
    assert (run.target_loss.num_rows, run.target_loss.num_tokens) == (13, sum(n for _, n in after))


def test_general_loss_equals_a_loop_over_all_tokens(report: ForgettingReport, new: Any) -> None:
    ids = [TOKENIZER(text)["input_ids"] for text in tiny_sentences(7, seed=8)]
    loop = _ratio([_loop_nll(new, {"input_ids": row, "labels": row}) for row in ids])
    assert report.run().general_loss.mean == pytest.approx(loop, abs=1e-5)


def test_kl_equals_scipys_over_every_prefix_and_has_the_right_direction(
    report: ForgettingReport, original: Any, new: Any
) -> None:
    rows = list(_prepared(9, seed=5))
    forward = _ratio([_loop_kl(original, new, row) for row in rows])
    reverse = _ratio([_loop_kl(new, original, row) for row in rows])
    assert report.run().kl_original_to_new.mean == pytest.approx(forward, abs=1e-5)
    assert abs(forward - reverse) > 1e-3


def test_groups_split_the_target_loss(report: ForgettingReport, new: Any) -> None:
    hard = [_loop_nll(new, row) for row in _prepared(13) if row["hard"]]
    assert report.run().group_loss["hard=True"].mean == pytest.approx(_ratio(hard), abs=1e-5)
    assert report.run().group_loss["hard=True"].num_rows == 4
    assert report.run().group_loss["hard=False"].num_rows == 9


def test_the_same_model_has_forgotten_nothing(original: Any) -> None:
    run = forgetting_report(
        original, original, TOKENIZER, target=_prepared(5), context_free=_prepared(5), show_progress=False
    ).run()
    assert run.kl_original_to_new.mean == 0.0
    assert run.kl_original_to_new.half_width == 0.0
    assert run.target_change.mean == 0.0


def test_interval_of_the_change_is_paired(report: ForgettingReport, original: Any, new: Any) -> None:
    rows = list(_prepared(13))
    change = [_loop_nll(new, row)[0] - _loop_nll(original, row)[0] for row in rows]
    tokens = np.array([_loop_nll(new, row)[1] for row in rows])
    residual = np.array(change) - sum(change) / tokens.sum() * tokens
    by_hand = 2.1788 * (13 / 12 * (residual**2).sum()) ** 0.5 / tokens.sum()  # Student's t, 12 degrees of freedom
    assert report.run().target_change.half_width == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 13])
def test_padding_and_chunking_change_nothing(
    monkeypatch: pytest.MonkeyPatch, report: ForgettingReport, original: Any, new: Any, batch_size: int
) -> None:
    monkeypatch.setattr(forgetting, "TEMPORARY_BYTES", 5 * 4 * len(TOKENIZER))  # chunks of five positions
    again = forgetting_report(
        original,
        new,
        TOKENIZER,
        target=_prepared(13),
        context_free=_prepared(9, seed=5),
        batch_size=batch_size,
        show_progress=False,
    ).run()
    assert again.target_loss.mean == pytest.approx(report.run().target_loss.mean, abs=1e-6)
    assert again.kl_original_to_new.mean == pytest.approx(report.run().kl_original_to_new.mean, abs=1e-6)


def test_logits_of_a_batch_stay_under_the_bound(monkeypatch: pytest.MonkeyPatch, original: Any, new: Any) -> None:
    bound = 3 * 40 * len(TOKENIZER) * 4
    monkeypatch.setattr(forgetting, "LOGIT_BYTES", bound)
    sizes: list[int] = []
    hook = new.register_forward_hook(lambda module, args, output: sizes.append(output.logits.numel() * 4))
    forgetting_report(
        original, new, TOKENIZER, target=_prepared(20), max_length=40, batch_size=64, show_progress=False
    )
    hook.remove()
    assert max(sizes) <= bound
    assert len(sizes) > 1


def test_raw_rows_are_prepared_as_a_trainer_would(original: Any, new: Any) -> None:
    rows = tiny_prompt_completion_dataset(6)
    prepared = []
    for row in rows:
        prompt = TOKENIZER(row["prompt"])["input_ids"]
        ids = TOKENIZER(row["prompt"] + row["completion"] + TOKENIZER.eos_token)["input_ids"]
        prepared.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
    raw = rows.add_column("kind", ["a", "b"] * 3)
    report = forgetting_report(original, new, TOKENIZER, target=raw, groups="kind", show_progress=False)
    loops = [_loop_nll(new, row) for row in prepared]
    assert report.run().target_loss.mean == pytest.approx(_ratio(loops), abs=1e-5)
    assert report.run().group_loss["kind=b"].mean == pytest.approx(_ratio(loops[1::2]), abs=1e-5)


def test_rows_without_a_supervised_token_are_left_out_loudly(
    original: Any, new: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = _prepared(5)
    empty = Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[5, -100, -100]], "hard": [True]})
    mixed = Dataset.from_list([*empty, *rows])
    report = forgetting_report(original, new, TOKENIZER, target=mixed, groups="hard", show_progress=False)
    assert report.run().target_loss.num_rows == 5
    assert report.run().group_loss["hard=True"].num_rows == 2
    assert "1 of 6 rows have no supervised token" in caplog.text
    with pytest.raises(ValueError, match="none of 1 rows has a supervised token"):
        forgetting_report(original, new, TOKENIZER, target=empty, show_progress=False)


def test_several_runs_given_as_folders_share_one_original(tmp_path: Path, original: Any, new: Any) -> None:
    for name, model in (("original", original), ("a", new), ("b", original)):
        model.save_pretrained(tmp_path / name)
    runs = {"SFT": str(tmp_path / "a"), "none": tmp_path / "b"}
    report = forgetting_report(
        tmp_path / "original", runs, TOKENIZER, target=_prepared(4), context_free=_prepared(4), show_progress=False
    )
    assert [run.name for run in report.runs] == ["SFT", "none"]
    assert report.run("none").kl_original_to_new.mean == 0.0
    assert report.run("SFT").kl_original_to_new.mean > 0.01


def test_adapters_off_is_the_original(original: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(tiny_model(TOKENIZER, seed=0), config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    data: dict[str, Any] = {"target": _prepared(6), "context_free": _prepared(6, seed=2), "show_progress": False}
    explicit = forgetting_report(original, tuned, TOKENIZER, **data)
    implicit = forgetting_report(None, tuned, TOKENIZER, **data)
    assert implicit.original.target_loss.mean == pytest.approx(explicit.original.target_loss.mean, abs=1e-6)
    assert implicit.run().kl_original_to_new.mean == pytest.approx(explicit.run().kl_original_to_new.mean, abs=1e-6)
    assert implicit.run().kl_original_to_new.mean > 1e-3
    with pytest.raises(ValueError, match="one PeftModel"):
        forgetting_report(None, original, TOKENIZER, **data)
    biased = peft.LoraConfig(r=2, target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="bias='all'"):
        forgetting_report(None, peft.get_peft_model(tiny_model(TOKENIZER), biased), TOKENIZER, **data)


def test_models_are_measured_in_eval_mode_and_given_back_as_they_were(original: Any) -> None:
    dropped = tiny_model(TOKENIZER, seed=0, attention_dropout=0.9)
    dropped.train()
    dropped.model.layers[0].eval()
    report = forgetting_report(original, dropped, TOKENIZER, context_free=_prepared(4), show_progress=False)
    assert report.run().kl_original_to_new.mean == 0.0
    assert dropped.training
    assert dropped.model.layers[1].mlp.training
    assert not dropped.model.layers[0].training
    assert all(parameter.grad is None for parameter in dropped.parameters())


def test_a_model_out_of_a_bf16_trainer_is_measured_in_its_own_precision(original: Any) -> None:
    from accelerate import Accelerator

    model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(tiny_model(TOKENIZER, seed=0))
    wrapped = model.forward
    report = forgetting_report(original, model, TOKENIZER, context_free=_prepared(4), show_progress=False)
    assert report.run().kl_original_to_new.mean == 0.0
    assert model.forward is wrapped
    autocast = forgetting_report(
        original, model, TOKENIZER, target=_prepared(4), autocast_dtype=torch.bfloat16, show_progress=False
    )
    assert autocast.run().target_change.mean == 0.0
    assert autocast.settings["autocast_dtype"] == "bfloat16"


def test_wrong_inputs_are_named(original: Any, new: Any) -> None:
    with pytest.raises(ValueError, match="Nothing to measure"):
        forgetting_report(original, new, TOKENIZER)
    with pytest.raises(ValueError, match="context_free has no column 'labels'"):
        forgetting_report(original, new, TOKENIZER, context_free=_prepared(3).remove_columns("labels"))
    with pytest.raises(ValueError, match="no column 'difficulty'"):
        forgetting_report(original, new, TOKENIZER, target=_prepared(3), groups="difficulty")
    wider = tiny_model(len(TOKENIZER) + 3)
    with pytest.raises(ValueError, match="one vocabulary"):
        forgetting_report(original, wider, TOKENIZER, context_free=_prepared(3), show_progress=False)


def test_a_non_finite_model_is_an_error_that_names_the_run_and_the_row(original: Any) -> None:
    broken = tiny_model(TOKENIZER, seed=0)
    rare = 7
    with torch.no_grad():
        broken.model.embed_tokens.weight[rare] = float("nan")
    rows = Dataset.from_dict({"input_ids": [[4, 5, 6], [4, rare, 6]], "labels": [[4, 5, 6], [4, rare, 6]]})
    with torch.no_grad():
        broken.lm_head.weight = torch.nn.Parameter(original.lm_head.weight.detach().clone())
    with pytest.raises(FloatingPointError, match="SFT: target loss: row 1 "):
        forgetting_report(original, {"SFT": broken}, TOKENIZER, target=rows, show_progress=False)


def test_a_store_sampled_from_other_weights_is_refused(tmp_path: Path, original: Any, new: Any) -> None:
    from hf_ext.data.context_free import generate_context_free

    store = generate_context_free(
        original, TOKENIZER, 60, output_dir=tmp_path / "store", max_new_tokens=8, show_progress=False
    )
    report = forgetting_report(original, new, TOKENIZER, context_free=store, show_progress=False)
    rows = list(store.to_dataset())
    assert report.run().kl_original_to_new.mean == pytest.approx(
        _ratio([_loop_kl(original, new, row) for row in rows]), abs=1e-5
    )
    by_path = forgetting_report(original, new, TOKENIZER, context_free=tmp_path / "store", show_progress=False)
    assert by_path == report
    with pytest.raises(ValueError, match="model"):
        forgetting_report(new, original, TOKENIZER, context_free=store, show_progress=False)


@pytest.fixture(scope="module")
def core_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = ("copa", "winograd")
    return write_tasks(tmp_path_factory.mktemp("core"), {label: small_rows(label, 6) for label in labels})


def test_core_is_that_of_each_model_alone_and_its_change_is_paired(core_data: Path, original: Any, new: Any) -> None:
    report = forgetting_report(original, {"new": new}, TOKENIZER, core=core_data, core_max_rows=5, show_progress=False)
    alone = {
        name: evaluate_core(model, TOKENIZER, core_data, max_rows=5, show_progress=False)
        for name, model in (("original", original), ("new", new))
    }
    assert report.original.core == alone["original"].scores()
    assert report.run().core == alone["new"].scores()
    both = evaluate_core(new, TOKENIZER, core_data, max_rows=5, against=original, show_progress=False)
    assert report.run().core_change == both.differences
    change = report.run().core["core2_v2"].value - report.original.core["core2_v2"].value
    assert report.run().core_change["v2"].mean == pytest.approx(change)
    assert ForgettingReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    table = report.to_markdown()
    assert all(words in table for words in ("core2_v2", "core2_v1", "change of CORE, v2", "2 of CORE's 22 tasks"))
    entries = {entry.metric_type: entry.metric_value for entry in report.eval_results()}
    assert entries["core_change_v2"] == round(change, 6)


def test_core_of_adapters_off_is_the_originals(core_data: Path, original: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(TOKENIZER, seed=0), config)
    report = forgetting_report(None, model, TOKENIZER, core=core_data, core_max_rows=5, show_progress=False)
    alone = evaluate_core(original, TOKENIZER, core_data, max_rows=5, show_progress=False)
    assert report.original.core == alone.scores()


def test_a_report_from_before_core_was_measured_is_read(report: ForgettingReport) -> None:
    values = json.loads(json.dumps(report.to_dict()))
    for result in (values["original"], *values["runs"]):
        del result["core"], result["core_change"]
    assert ForgettingReport.from_dict(values) == report


def test_report_survives_json(report: ForgettingReport) -> None:
    assert ForgettingReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_has_the_recorded_loss_on_gsm8k(smollm2: Path, real_data: Path) -> None:
    """1.3805 nats over 6,340 tokens was recorded by a script of its own before this report existed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    rows = []
    with gzip.open(real_data / "gsm8k" / "test.jsonl.gz", "rt") as lines:
        for row in map(json.loads, itertools.islice(lines, 50)):
            messages = [{"role": "user", "content": row["question"]}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
            answer = tokenizer(row["answer"] + "<|im_end|>")["input_ids"]
            rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    report = forgetting_report(model, model, tokenizer, target=Dataset.from_list(rows), show_progress=False)
    assert report.original.target_loss.mean == pytest.approx(1.3805, abs=1e-3)
    assert report.original.target_loss.num_tokens == 6340


def test_the_kl_of_each_seed_is_that_of_its_rows_and_stands_in_the_table(
    original: Any, new: Any, tmp_path: Path
) -> None:
    starts = ["chat" if i % 3 else "bos" for i in range(9)]
    rows = _prepared(9, seed=5).add_column("start", starts)
    report = forgetting_report(original, {"sft": new}, TOKENIZER, context_free=rows, show_progress=False)
    for start in ("bos", "chat"):
        pairs = [_loop_kl(original, new, row) for row in rows if row["start"] == start]
        estimate = report.run().kl_by_start[start]
        assert estimate.mean == pytest.approx(_ratio(pairs), rel=1e-4)
        assert estimate.num_rows == len(pairs)
        assert f"KL, rows from {start}" in report.to_markdown()
    report.save(tmp_path)
    loaded = ForgettingReport.load(tmp_path)
    assert loaded.run().kl_by_start == report.run().kl_by_start
    values = report.to_dict()
    del values["runs"][0]["kl_by_start"]  # of a report from before
    assert ForgettingReport.from_dict(values).run().kl_by_start == {}
