"""What any trainer here must do. A new method joins with one line in `registry.TRAINERS`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from hf_ext.guards.finite import NonFiniteError
from hf_ext.guards.rows import RowError
from tests.conformance.loading import PICKLES, refuse_pickles_and_code
from tests.conformance.registry import BY_NAME, CALLBACKS, TRAINERS, Method, plain_rows
from tests.tiny import tiny_model
from tests.trainers.oracle import document, token_losses
from tests.trainers.runs import TOKENIZER, Snapshot, assert_same_weights, train

every_trainer = pytest.mark.parametrize("method", TRAINERS, ids=lambda method: method.name)
launches = pytest.mark.timeout(900)  # waits for a job of several runs, which the first test to come starts


# --- neutral, it is its parent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", [m for m in TRAINERS if m.neutral is not None], ids=lambda method: method.name)
def test_neutral_it_equals_its_parent_bit_for_bit(method: Method, accumulation: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"gradient_accumulation_steps": accumulation}
    if accumulation == 2 and method.packs:
        settings["packing"] = True
    ours = method.build(tmp_path, method.plain(32), **settings, **(method.neutral or {}))
    theirs = method.build_parent(tmp_path / "parent", method.plain(32), **settings)
    assert train(ours) == train(theirs)
    assert_same_weights(ours.model, theirs.model)


@every_trainer
def test_not_neutral_it_differs_from_its_parent(method: Method, tmp_path: Path) -> None:
    theirs = method.build_parent(tmp_path / "parent", method.plain(32))
    assert train(method.build(tmp_path, 32)) != train(theirs)


# --- one step is one step, however it is cut up ----------------------------------------------------------------------

STEPS, EPOCH_STEPS = 24, 8  # 32 rows in batches of 4
OPTIMISERS: dict[str, tuple[dict[str, Any], float]] = {
    "sgd": ({"optim": "sgd", "learning_rate": 0.1}, 1e-6),
    "adamw": ({"optim": "adamw_torch", "learning_rate": 1e-3}, 1e-5),
}


def changes_of(optimiser: str, batch: int, accumulation: int) -> dict[str, Any]:
    return OPTIMISERS[optimiser][0] | {
        "max_steps": STEPS, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
    }  # fmt: skip


def optimisers_of(method: Method) -> list[str]:
    """SGD, which sees a gradient's scale, for all; AdamW, which divides it out, for one of each of TRL's trainers."""
    return list(OPTIMISERS) if method.parent[0] is not SFTTrainer or method is TRAINERS[0] else ["sgd"]


def two_process_jobs(folder: Path) -> list[dict[str, Any]]:
    jobs = [
        {
            "id": f"{method.name}/{optimiser}", "method": method.name, "folder": str(folder / method.name / optimiser),
            "rows": 32, "changes": changes_of(optimiser, 2, 1),
        }
        for method in (*TRAINERS, *CALLBACKS)
        for optimiser in optimisers_of(method)
    ]  # fmt: skip
    jobs += [
        {
            "id": f"{method.name}/nan", "method": method.name, "folder": str(folder / method.name / "nan"), "rows": 32,
            "changes": changes_of("sgd", 2, 1) | {"max_steps": 4}, "nan_at": 2,
        }
        for method in TRAINERS[:2]
    ]  # fmt: skip
    jobs += [
        {
            "id": f"median/{n}", "method": "flow", "folder": str(folder / f"median{n}"), "rows": n,
            "changes": {"max_steps": 1},
        }
        for n in MEDIAN_ROWS
    ]  # fmt: skip
    streamed = {"streaming": True, "changes": changes_of("sgd", 2, 1) | {"max_steps": EPOCH_STEPS}}
    return [*jobs, {"id": "flow/stream", "method": "flow", "folder": str(folder / "stream"), "rows": 32} | streamed]


MEDIAN_ROWS = (16, 15, 13)  # even; odd; odd, and shards of 7 and 6 rows


@launches
@pytest.mark.parametrize(
    ("method", "optimiser"),
    [(method, optimiser) for method in (*TRAINERS, *CALLBACKS) for optimiser in optimisers_of(method)],
    ids=lambda value: getattr(value, "name", value),
)
def test_batch_four_is_two_times_two_is_two_processes(
    method: Method, optimiser: str, two_processes: dict, tmp_path: Path
) -> None:
    whole = train(method.build(tmp_path / "whole", 32, **changes_of(optimiser, 4, 1)))
    accumulated = train(method.build(tmp_path / "accumulated", 32, **changes_of(optimiser, 2, 2)))
    shared = two_processes[f"{method.name}/{optimiser}"]
    assert shared["world"] == 2
    assert len(whole) == len(shared["losses"]) == STEPS
    first, last = (np.mean(whole[start : start + EPOCH_STEPS]) for start in (0, STEPS - EPOCH_STEPS))  # the same rows
    assert last < first - 0.1, "nothing was learned: equal losses would mean little"
    # Above 8 nats (target plus anchor) float32 itself has steps of 1e-6: there, two of them.
    tolerance = np.maximum(OPTIMISERS[optimiser][1], 2 * np.spacing(np.float32(whole)) * (np.array(whole) > 8))
    tolerance = np.maximum(tolerance, method.rounding)
    assert (np.abs(np.subtract(whole, accumulated)) <= tolerance).all()
    assert (np.abs(np.subtract(whole, shared["losses"])) <= tolerance).all()


@launches
@pytest.mark.parametrize("name", [method.name for method in TRAINERS[:2]])
def test_two_processes_stop_together_at_a_gradient_that_one_of_them_broke(name: str, two_processes: dict) -> None:
    """The gradient is NaN on the last process alone; the error below is that of the first."""
    broken = two_processes[f"{name}/nan"]
    assert broken["stopped"] == [True, True]
    assert "at step 2 on rank 0" in broken["error"]
    assert (broken["finite"], broken["step"]) == (True, 2)


@launches
def test_flow_on_a_stream_is_the_same_on_one_and_two_processes(two_processes: dict, tmp_path: Path) -> None:
    method = BY_NAME["flow"]
    rows = method.rows(32).to_iterable_dataset()
    whole = train(method.build(tmp_path, rows, **(changes_of("sgd", 4, 1) | {"max_steps": EPOCH_STEPS})))
    assert np.abs(np.subtract(whole, two_processes["flow/stream"]["losses"])).max() <= 1e-6


def median_by_loop(n: int) -> float:
    means = []
    for row in plain_rows(n):
        head = TOKENIZER(row["prompt"])["input_ids"]
        ids = TOKENIZER(row["prompt"] + row["completion"] + TOKENIZER.eos_token)["input_ids"][:64]
        start = next((i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), len(head))
        doc = document(ids, [-100] * start + ids[start:])
        means.append(np.mean([nll for nll, _ in token_losses(tiny_model(TOKENIZER), doc)]))
    return float(np.median(means))


@launches
@pytest.mark.parametrize("n", MEDIAN_ROWS)
def test_flows_median_is_that_of_all_rows_on_one_and_two_processes(
    n: int, two_processes: dict, tmp_path: Path
) -> None:
    expected = median_by_loop(n)
    one = BY_NAME["flow"].build(tmp_path, n, max_steps=1)
    train(one)
    assert one.flow_statistics["flow/tau"] == pytest.approx(expected, rel=1e-6)
    (two,) = [entry["flow/tau"] for entry in two_processes[f"median/{n}"]["logs"] if "flow/tau" in entry]
    assert two == pytest.approx(expected, rel=1e-6)


# --- bad values and bad rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "packing"),
    [(method, packing) for method in TRAINERS for packing in (False, True) if method.packs or not packing],
    ids=lambda value: getattr(value, "name", f"packing={value}"),
)
def test_a_nan_stops_before_the_optimiser_step_and_names_the_row(
    method: Method, packing: bool, tmp_path: Path
) -> None:
    settings = {"packing": packing, "shuffle_dataset": True} if method.packs else {}
    trainer = method.build(tmp_path, 24, max_steps=20, **settings)
    collate, before = trainer.data_collator, Snapshot()
    trainer.add_callback(before)
    marked = TOKENIZER("row 13", add_special_tokens=False)["input_ids"]

    def spoil(rows: list[dict]) -> dict[str, Any]:
        batch = collate(rows)
        ids = batch["input_ids"]
        for row in range(ids.shape[0]):
            for start in range(ids.shape[1] - len(marked)):
                if ids[row, start : start + len(marked)].tolist() == marked:
                    if batch["weight"].ndim == 1:  # one a row of the data set; a pair is two rows of the batch
                        batch["weight"][row % len(batch["weight"])] = math.nan
                    else:
                        batch["weight"][row, start + len(marked) :][:1] = math.nan
        return batch

    trainer.data_collator = spoil
    with pytest.raises(NonFiniteError, match="weight") as stopped:
        trainer.train()
    assert stopped.value.row_indices == [13]
    assert f"step {stopped.value.step}" in str(stopped.value)
    for name, value in trainer.model.named_parameters():
        assert torch.isfinite(value).all()
        assert torch.equal(value, before.weights[name])


@pytest.mark.parametrize(
    ("method", "kind"),
    [(method, kind) for method in TRAINERS for kind in method.malformed],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_malformed_row_raises_our_error(method: Method, kind: str, tmp_path: Path) -> None:
    from datasets import Dataset

    rows = method.plain(8).add_column("weight", [1.0] * 8).to_list()
    rows[5] |= method.malformed[kind]
    (column,) = method.malformed[kind]
    with pytest.raises(RowError, match=rf"row 5, column '{column}'") as found:
        method.build(tmp_path, Dataset.from_list(rows))
    assert found.value.row_index == 5
    assert found.value.column == column


# --- adapters, saving ------------------------------------------------------------------------------------------------


@every_trainer
def test_lora_trains_the_adapter_alone_and_reloads_with_stock_classes(method: Method, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = method.build(tmp_path, 32, max_steps=12, learning_rate=1.0, kwargs={"peft_config": lora})
    losses = train(trainer)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    trainer.save_model(str(tmp_path / "saved"))
    ids = torch.tensor([[5, 6, 7, 8]])
    loaded = PeftModel.from_pretrained(tiny_model(TOKENIZER), tmp_path / "saved")
    trainer.model.eval()
    assert torch.equal(loaded(ids).logits, trainer.model(ids).logits)
    assert (loaded(ids).logits - tiny_model(TOKENIZER)(ids).logits).abs().max() > 1e-3
    assert_same_weights(trainer.model.unload(), tiny_model(TOKENIZER))


@every_trainer
def test_the_saved_folder_is_stock_has_a_card_and_no_pickle(method: Method, tmp_path: Path) -> None:
    trainer = method.build(tmp_path, 16, max_steps=2, model_license="apache-2.0")
    train(trainer)
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert_same_weights(loaded, trainer.model)
    assert AutoTokenizer.from_pretrained(folder)("Ada counts")["input_ids"] == TOKENIZER("Ada counts")["input_ids"]
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if name.endswith(PICKLES)]
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert {"hf-ext", method.trainer.method} <= set(card.data.tags)
    assert str(tmp_path) not in card.content, "the card names a place on this machine"


@every_trainer
def test_training_saving_and_resuming_load_no_pickle_and_no_code_of_a_model(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    kwargs = {"kwargs": {"eval_dataset": method.plain(4)}}
    refuse_pickles_and_code(monkeypatch)
    whole = method.build(tmp_path, 16, **settings, **kwargs)
    losses = train(whole)
    whole.save_model(str(tmp_path / "saved"))
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        assert not (checkpoint / "training_args.bin").exists()
        assert (checkpoint / "README.md").is_file()
    resumed = method.build(tmp_path, 16, **settings, **kwargs)
    again = train(resumed, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert again == losses[2:]
