"""What the weighted trainer takes, logs and refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_text_dataset, tiny_tokenizer
from tests.trainers.oracle import document, step_loss
from tests.trainers.runs import TOKENIZER, assert_same_weights, build, config_of, logged, train

EOS = TOKENIZER.eos_token


def weights_for(n: int) -> list[float]:
    return [0.2 + (i * 7 % 5) / 2 for i in range(n)]


def weighted_text(n: int = 16, seed: int = 0) -> Dataset:
    return tiny_text_dataset(n, seed).add_column("weight", weights_for(n))


def documents(n: int = 16, seed: int = 0, length: int = 64) -> list[Any]:
    texts = tiny_text_dataset(n, seed)["text"]
    return [
        document(TOKENIZER(text + EOS)["input_ids"][:length], None, weight)
        for text, weight in zip(texts, weights_for(n), strict=True)
    ]


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny_model(TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_without_args_the_config_is_ours_and_named_after_the_model(
    saved_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # TRL's default is bf16, which transformers refuses where there is no accelerator.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    trainer = WeightedSFTTrainer(saved_model, train_dataset=weighted_text(8))
    assert isinstance(trainer.args, WeightedSFTConfig)
    assert Path(trainer.args.output_dir).name == "tiny-llama-WeightedSFT"
    assert trainer.args.normalize == "weights"


@pytest.mark.parametrize("config_class", [SFTConfig, TrainingArguments])
def test_plain_arguments_are_converted_with_every_setting(config_class: Any, tmp_path: Path) -> None:
    fields = {
        "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "learning_rate": 0.125,
        "hub_token": "not-a-token", "max_steps": 2, "per_device_train_batch_size": 3,
        "lr_scheduler_type": "constant", "optim": "sgd",
    }  # fmt: skip
    if config_class is SFTConfig:
        fields |= {"eos_token": "<unk>", "max_length": 32, "packing": True}
    trainer = WeightedSFTTrainer(
        tiny_model(TOKENIZER), config_class(**fields), train_dataset=weighted_text(), processing_class=tiny_tokenizer()
    )
    assert isinstance(trainer.args, WeightedSFTConfig)
    for name in fields.keys() - {"output_dir"}:
        assert getattr(trainer.args, name) == fields[name] or name == "report_to", name
    assert trainer.args.bad_rows_path == f"{tmp_path}/bad_rows.jsonl"
    assert len(train(trainer)) == 2


def test_a_model_given_by_name_equals_the_model_given_as_an_object(saved_model: str, tmp_path: Path) -> None:
    settings = {"model_init_kwargs": {"dtype": "float32"}}
    named = WeightedSFTTrainer(
        saved_model, config_of(WeightedSFTConfig, tmp_path / "a", **settings), train_dataset=weighted_text()
    )
    passed = build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path / "b"), weighted_text())
    assert train(named) == train(passed)
    assert_same_weights(named.model, passed.model)


def test_peft_config_trains_the_adapter_with_the_weights_and_leaves_the_base(tmp_path: Path) -> None:
    args = config_of(WeightedSFTConfig, tmp_path, max_steps=3, per_device_train_batch_size=16, learning_rate=1.0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build(WeightedSFTTrainer, args, weighted_text(), peft_config=lora)
    losses = train(trainer)
    original = tiny_model(TOKENIZER)
    assert losses[0] == pytest.approx(step_loss(original, documents()), abs=2e-6)  # a fresh adapter changes nothing
    assert losses[2] < losses[0]
    base = trainer.model.unload()
    assert_same_weights(base, original)


def test_absent_weights_are_said_once_and_present_ones_are_not(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="hf_ext"):
        build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), tiny_text_dataset(8))
    assert sum("no 'weight' column" in record.getMessage() for record in caplog.records) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="hf_ext"):
        build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), weighted_text(8))
    assert not [record for record in caplog.records if "weight" in record.getMessage()]


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["weights", "tokens"])
@pytest.mark.parametrize("packing", [False, True])
def test_eval_loss_is_sfts_and_the_weighted_one_stands_beside_it(
    normalize: str, packing: bool, tmp_path: Path
) -> None:
    settings = {"packing": packing, "max_steps": 2}
    stock = build(
        SFTTrainer, config_of(SFTConfig, tmp_path / "a", **settings), weighted_text(),
        eval_dataset=tiny_text_dataset(10, seed=5),
    )  # fmt: skip
    ours = build(
        WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path / "b", normalize=normalize, **settings),
        weighted_text(), eval_dataset=weighted_text(10, seed=5),
    )  # fmt: skip
    theirs, found = stock.evaluate(), ours.evaluate()
    assert found["eval_loss"] == theirs["eval_loss"]
    expected = step_loss(ours.model, documents(10, seed=5), normalize)
    last = ours.state.log_history[-1]
    assert last["eval_loss_weighted"] == pytest.approx(expected, abs=2e-6)
    assert abs(last["eval_loss_weighted"] - last["eval_loss"]) > 1e-4


def test_eval_sets_in_a_dict_and_given_to_evaluate(tmp_path: Path) -> None:
    sets = DatasetDict({"easy": weighted_text(6, seed=1), "hard": weighted_text(6, seed=2)})
    args = config_of(WeightedSFTConfig, tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    trainer = build(WeightedSFTTrainer, args, weighted_text(), eval_dataset=dict(sets))
    train(trainer)
    for name in ("easy", "hard"):
        assert len(logged(trainer, f"eval_{name}_loss")) == 2
    fresh = trainer.evaluate(weighted_text(6, seed=1))
    assert fresh["eval_loss"] == pytest.approx(logged(trainer, "eval_easy_loss")[-1], abs=1e-6)


def test_evaluating_does_not_change_the_training(tmp_path: Path) -> None:
    runs = []
    for name, settings in (("a", {}), ("b", {"eval_strategy": "steps", "eval_steps": 1})):
        args = config_of(WeightedSFTConfig, tmp_path / name, **settings)
        trainer = build(WeightedSFTTrainer, args, weighted_text(), eval_dataset=weighted_text(6, seed=2))
        runs.append((train(trainer), trainer.model))
    assert runs[0][0] == runs[1][0]
    assert_same_weights(runs[0][1], runs[1][1])


class Catch(TrainerCallback):
    def __init__(self) -> None:
        self.logs: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs |= logs


def test_metrics_reach_the_callbacks_that_report_them(tmp_path: Path) -> None:
    catch = Catch()
    args = config_of(WeightedSFTConfig, tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1)
    trainer = build(WeightedSFTTrainer, args, weighted_text(), eval_dataset=weighted_text(4), callbacks=[catch])
    losses = train(trainer)
    assert catch.logs["loss"] == pytest.approx(losses[0])
    assert {"eval_loss", "eval_loss_weighted", "grad_norm", "mean_token_accuracy", "num_tokens"} <= set(catch.logs)


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_trains_as_the_dataset_read_in_order(packing: bool, tmp_path: Path) -> None:
    settings = {"packing": packing, "max_length": 48, "train_sampling_strategy": "sequential", "max_steps": 3}
    runs = []
    for name, rows in (("map", weighted_text(24)), ("stream", weighted_text(24).to_iterable_dataset())):
        trainer = build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path / name, **settings), rows)
        runs.append((train(trainer), trainer.model))
    assert runs[0][0] == runs[1][0]
    assert_same_weights(runs[0][1], runs[1][1])


def test_a_stream_keeps_its_weights(tmp_path: Path) -> None:
    args = config_of(WeightedSFTConfig, tmp_path, learning_rate=0.0, max_steps=4)
    trainer = build(WeightedSFTTrainer, args, weighted_text().to_iterable_dataset())
    losses, docs = train(trainer), documents()
    expected = [step_loss(trainer.model, docs[i : i + 4]) for i in range(0, 16, 4)]
    assert losses == pytest.approx(expected, abs=2e-6)


def test_a_stream_from_a_generator_whose_columns_are_unknown(tmp_path: Path) -> None:
    from datasets import IterableDataset

    def rows() -> Any:
        yield from weighted_text(16).to_list()

    args = config_of(WeightedSFTConfig, tmp_path, learning_rate=0.0, max_steps=2)
    trainer = build(WeightedSFTTrainer, args, IterableDataset.from_generator(rows))
    losses, docs = train(trainer), documents()
    assert losses == pytest.approx([step_loss(trainer.model, docs[i : i + 4]) for i in (0, 4)], abs=2e-6)


# --- refusals --------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "compute_loss_func": ({}, {"compute_loss_func": lambda *a, **k: 0}, "compute_loss_func"),
    "label_smoothing": ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor"),
    "dft": ({"loss_type": "dft"}, {}, "loss_type='dft'"),
    "wrapped": ({"packing": True, "packing_strategy": "wrapped"}, {}, "packing_strategy='wrapped'"),
    "eval_wrapped": ({"eval_packing": True, "packing_strategy": "wrapped"}, {}, "packing_strategy='wrapped'"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_do_is_refused_by_name(case: str, tmp_path: Path) -> None:
    settings, kwargs, name = REFUSED[case]
    with pytest.raises(ValueError, match=f"WeightedSFTTrainer does not support {name}: "):
        build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path, **settings), weighted_text(8), **kwargs)


def test_liger_is_refused_by_name(tmp_path: Path) -> None:
    args = config_of(WeightedSFTConfig, tmp_path)
    args.use_liger_kernel = True  # its own package need not be there to refuse it
    with pytest.raises(ValueError, match="does not support use_liger_kernel"):
        build(WeightedSFTTrainer, args, weighted_text(8))


@pytest.mark.parametrize("column", ["image", "images"])
def test_vision_rows_are_refused_by_name(column: str, tmp_path: Path) -> None:
    rows = weighted_text(4).add_column(column, ["picture"] * 4)
    with pytest.raises(ValueError, match="does not support vision data"):
        build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), rows)


@pytest.mark.parametrize("backend", ["cp", "sp"])
def test_sequence_and_context_parallelism_are_refused_by_name(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from accelerate import Accelerator

    config = SimpleNamespace(
        cp_enabled=backend == "cp", sp_enabled=backend == "sp", sp_backend=None, tp_size=1, cp_size=1, sp_size=1
    )
    stock_init = SFTTrainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:  # the real thing needs several processes to start at all
        stock_init(self, *args, **kwargs)
        monkeypatch.setattr(Accelerator, "parallelism_config", property(lambda self: config))

    monkeypatch.setattr(SFTTrainer, "__init__", init)
    with pytest.raises(ValueError, match="does not support sequence or context parallelism"):
        build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), weighted_text(8))


@pytest.mark.parametrize(
    ("field", "value"), [("normalize", "sum"), ("reduction", "mean"), ("on_bad_row", "ignore"), ("normalize", None)]
)
def test_unknown_choices_are_refused_by_the_config(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{field} must be one of"):
        config_of(WeightedSFTConfig, tmp_path, **{field: value})


def leaky_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **kwargs: Any
) -> tuple[Any, None]:
    """Causal attention that ignores the mask, and with it where documents end."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture
def leaky() -> Any:
    AttentionInterface.register("leaky_test_attention", leaky_attention)
    return "leaky_test_attention"


@pytest.mark.parametrize("settings", [{"packing": True}, {"padding_free": True, "max_length": None}])
def test_a_kernel_that_mixes_packed_documents_is_refused(leaky: str, settings: dict, tmp_path: Path) -> None:
    model = tiny_model(TOKENIZER)
    model.set_attn_implementation(leaky)
    args = config_of(WeightedSFTConfig, tmp_path, **settings)
    with pytest.raises(ValueError, match="lets packed documents attend to each other"):
        build(WeightedSFTTrainer, args, weighted_text(8), model=model)


def test_the_same_kernel_is_fine_without_packing(leaky: str, tmp_path: Path) -> None:
    model = tiny_model(TOKENIZER)
    model.set_attn_implementation(leaky)
    assert (
        len(train(build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), weighted_text(), model=model)))
        == 4
    )


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_kernels_that_keep_documents_apart_are_taken(kernel: str, tmp_path: Path) -> None:
    model = tiny_model(TOKENIZER)
    model.set_attn_implementation(kernel)
    args = config_of(WeightedSFTConfig, tmp_path, packing=True, max_length=96)
    build(WeightedSFTTrainer, args, weighted_text(8), model=model)
    assert model.training


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_formatted_dataset_trains_as_a_plain_one(kind: str, packing: bool, tmp_path: Path) -> None:
    ids = [TOKENIZER(text)["input_ids"] for text in tiny_text_dataset(16)["text"]]
    rows = Dataset.from_dict({"input_ids": ids, "weight": [[t % 5 / 2 for t in row] for row in ids]})
    runs = []
    for name, dataset in (("plain", rows), ("formatted", rows.with_format(kind))):
        args = config_of(WeightedSFTConfig, tmp_path / name, packing=packing, max_length=24)
        trainer = build(WeightedSFTTrainer, args, dataset)
        runs.append((train(trainer), trainer.model))
    assert runs[0][0] == runs[1][0]
    assert_same_weights(runs[0][1], runs[1][1])


# --- rows prepared before --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_rows_prepared_before_train_as_raw_ones(packing: bool, tmp_path: Path) -> None:
    from hf_ext.data.weighting import prepare_sft_rows

    runs = []
    for name in ("raw", "prepared"):
        args = config_of(WeightedSFTConfig, tmp_path / name, packing=packing, max_length=48)
        rows = weighted_text(24)
        if name == "prepared":
            rows = prepare_sft_rows(rows, TOKENIZER, args)
        trainer = build(WeightedSFTTrainer, args, rows)
        runs.append((train(trainer), trainer.model))
    assert runs[0][0] == runs[1][0]
    assert_same_weights(runs[0][1], runs[1][1])


def test_packed_rows_without_packing_are_refused(tmp_path: Path) -> None:
    from hf_ext.data.weighting import prepare_sft_rows

    rows = prepare_sft_rows(weighted_text(8), TOKENIZER, config_of(WeightedSFTConfig, tmp_path, packing=True))
    with pytest.raises(ValueError, match="packed rows without packing"):
        build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), rows)


def test_the_saved_model_opens_with_stock_classes(tmp_path: Path) -> None:
    trainer = build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), weighted_text())
    train(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert_same_weights(loaded, trainer.model)
    text = weighted_text()["text"][0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]


def test_pairs_with_an_ignored_prompt_column_of_another_kind(tmp_path: Path) -> None:
    rows = (
        tiny_prompt_completion_dataset(16).add_column("source", ["a", "b"] * 8).add_column("weight", weights_for(16))
    )
    assert len(train(build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), rows))) == 4


def test_forgetting_arm_is_the_old_name_of_forgetting_run():
    trainer = WeightedSFTTrainer.__new__(WeightedSFTTrainer)
    with pytest.warns(FutureWarning, match="is now called forgetting_run"):
        trainer.forgetting_arm = "FLOW"
    assert trainer.forgetting_run == "FLOW"
    with pytest.warns(FutureWarning, match="is now called forgetting_run"):
        assert trainer.forgetting_arm == "FLOW"
