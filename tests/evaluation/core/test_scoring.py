"""Losses, picks and greedy answers against a plain loop: one whole sequence at a time, every logit, no cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from hf_ext.evaluation.core import scoring
from hf_ext.evaluation.core.judges import least
from hf_ext.evaluation.core.prompts import text_prompts
from hf_ext.evaluation.core.scoring import AnswerScorer
from hf_ext.evaluation.core.task_files import CoreRow, load_tasks
from hf_ext.evaluation.core.tokens import PromptTokens, TokenPrompt, needs_space
from hf_ext.guards.row_errors import RowError
from tests.evaluation.core.small_tasks import plain_losses, plainly_greedy, small_rows, write_tasks
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
VOCABULARY = len(TOKENIZER)
MODELS = {seed: tiny_model(TOKENIZER, seed=seed, initializer_range=0.3).eval() for seed in range(3)}


def prompt_of(sequences, starts):
    row = CoreRow(0, "row", ("",), ("",) * len(sequences), 0)
    return TokenPrompt(row, sequences, starts, [1] * len(sequences), False)


def scored(model, prompts, batch_tokens):
    scorer = AnswerScorer(model, batch_tokens)
    results = [None] * len(prompts)
    for places in scorer.plan(prompts):
        for place, result in zip(places, scorer([prompts[place] for place in places]), strict=True):
            results[place] = result
    return results


def check(model, prompts, batch_tokens, atol=1e-4):
    for prompt, result in zip(prompts, scored(model, prompts, batch_tokens), strict=True):
        losses = plain_losses(model, prompt.sequences, prompt.starts)
        tokens = [len(ids) - start for ids, start in zip(prompt.sequences, prompt.starts, strict=True)]
        assert result.losses == pytest.approx(losses, abs=atol)
        assert result.tokens == tokens
        pairs = zip(losses, tokens, strict=True)
        means = sorted((loss / count, option) for option, (loss, count) in enumerate(pairs) if count)
        pick = least(result.losses, result.tokens, result.tokens)
        assert (pick is None) == (not means)
        if means and (len(means) == 1 or means[1][0] - means[0][0] > atol):
            assert pick == means[0][1]
        elif means:  # a tie: of equal texts the first one counts
            assert prompt.sequences.index(prompt.sequences[pick]) == pick


token = st.integers(0, VOCABULARY - 1)
few = st.lists(token, min_size=0, max_size=9)


@st.composite
def rows(draw):
    """Options that share all of their context, a part of it or nothing; some empty, some the same twice."""
    common = draw(st.lists(token, min_size=1, max_size=40))
    sequences = []
    starts = []
    for _ in range(draw(st.integers(1, 5))):
        if sequences and draw(st.booleans()) and draw(st.booleans()):
            sequences.append(list(sequences[0]))
            starts.append(starts[0])
            continue
        context = common + draw(few)
        sequences.append(context + draw(few))
        starts.append(len(context))
    return prompt_of(sequences, starts)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(rows(), min_size=1, max_size=4), st.sampled_from([1, 60, 4096]), st.sampled_from([1, 20, 10**6]))
def test_losses_equal_a_plain_loop_for_ragged_options_however_they_are_read(prompts, batch_tokens, shared_tokens):
    model = MODELS[len(prompts) % 3]
    former, scoring.SHARED_TOKENS = scoring.SHARED_TOKENS, shared_tokens
    try:
        check(model, prompts, batch_tokens)
    finally:
        scoring.SHARED_TOKENS = former


@pytest.mark.parametrize("label", ["copa", "arc_easy", "commonsense_qa", "winograd", "bigbench_operators"])
@pytest.mark.parametrize("protocol", ["foundry", "nanochat"])
def test_40_rows_of_each_type_equal_a_plain_loop(tmp_path, label, protocol):
    count = 12 if label in ("arc_easy", "commonsense_qa") else 40  # with examples: long, and of the type of copa
    (task_rows,) = load_tasks(write_tasks(tmp_path, {label: small_rows(label, count)}), label)
    prompts = PromptTokens(TOKENIZER, task_rows.task, protocol, 300)(list(text_prompts(task_rows, protocol)))
    results = scored(MODELS[0], prompts, 700)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.losses == pytest.approx(plain_losses(MODELS[0], prompt.sequences, prompt.starts), abs=1e-4)
        if label == "bigbench_operators":
            assert result.is_greedy == [plainly_greedy(MODELS[0], prompt.sequences[0], prompt.starts[0])]


def test_an_answer_that_the_model_itself_would_write_is_greedy():
    model = MODELS[1]
    ids = [5, 9, 17]
    for _ in range(6):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    result, spoilt = scored(model, [prompt_of([ids], [3]), prompt_of([[*ids[:-1], (ids[-1] + 1) % 9]], [3])], 100)
    assert (result.is_greedy, spoilt.is_greedy) == ([True], [False])


class Counting(torch.nn.Module):
    """Counts the tokens that a model reads and the positions whose logits it gives."""

    def __init__(self, model):
        super().__init__()
        self.tokens = self.logits = self.calls = 0
        model.register_forward_hook(self.count, with_kwargs=True)

    def count(self, model, args, kwargs, output):
        self.calls += 1
        self.tokens += kwargs["input_ids"].numel()
        self.logits += output.logits.shape[0] * output.logits.shape[1]


def test_a_long_context_is_read_once_and_a_short_one_with_every_option():
    model = tiny_model(TOKENIZER).eval()
    context = list(range(20, 220))
    long = prompt_of([[*context, 1, option, 2] for option in (3, 4, 5, 6)], [201] * 4)
    short = prompt_of([[7, 8, option, 2] for option in (3, 4, 5, 6)], [2] * 4)
    scorer = AnswerScorer(model, 4096)
    counts = Counting(model)
    scorer([long])
    assert (counts.calls, counts.tokens) == (2, 200 + 4 * 2)
    assert counts.logits == 1 + 4 * 2  # those of the context are not had
    scorer([short])
    assert (counts.calls, counts.tokens) == (3, 208 + 4 * 3)


def test_options_of_one_token_need_one_reading_of_the_context():
    model = tiny_model(TOKENIZER).eval()
    prompt = prompt_of([[*range(20, 120), letter] for letter in (3, 4, 5, 6)], [100] * 4)
    scorer = AnswerScorer(model, 4096)
    counts = Counting(model)
    (result,) = scorer([prompt])
    assert (counts.calls, counts.tokens, counts.logits) == (1, 100, 1)
    assert result.losses == pytest.approx(plain_losses(model, prompt.sequences, prompt.starts), abs=1e-4)


def family(name):
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256))
    if name == "bloom":
        return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))
    if name == "sliding window":
        config = MistralConfig(**shape, intermediate_size=64, num_key_value_heads=2, sliding_window=16)
        return MistralForCausalLM(config)
    model = tiny_model(TOKENIZER, seed=4)
    if name == "prompt tuning":
        return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False))
    return adapter


@pytest.mark.parametrize("name", ["gpt2", "bloom", "sliding window", "prompt tuning", "LoRA"])
def test_other_models_and_adapters_give_their_own_losses(name):
    model = family(name).eval()
    context = [(7 * i) % VOCABULARY for i in range(90)]
    prompts = [
        prompt_of([[*context, 9, *range(option, option + 3)] for option in (30, 40, 50)], [91] * 3),
        prompt_of([[5, 6, 7, 8]], [2]),
        prompt_of([[5, 6, 7, 8, 9, 10, 11]], [4]),
    ]
    whole = [[list(ids) for ids in prompt.sequences] for prompt in prompts]
    for prompt, result, sequences in zip(prompts, scored(model, prompts, 64), whole, strict=True):
        for ids, start, loss in zip(sequences, prompt.starts, result.losses, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -len(ids) :].double()
            targets = torch.tensor(ids[start:])
            expected = torch.nn.functional.cross_entropy(logits[start - 1 : -1], targets, reduction="sum")
            assert loss == pytest.approx(float(expected), abs=1e-4)


# --- from text to tokens ---


def tokens_of(folder, label, rows, protocol="foundry", tokenizer=TOKENIZER, max_length=400):
    (task_rows,) = load_tasks(write_tasks(folder, {label: rows}), label)
    make = PromptTokens(tokenizer, task_rows.task, protocol, max_length)
    return make(list(text_prompts(task_rows, protocol)))


def test_foundry_tokenises_examples_question_and_answer_apart(tmp_path):
    rows = small_rows("arc_easy", 4)
    prompt = tokens_of(tmp_path, "arc_easy", rows)[0]
    (task_rows,) = load_tasks(tmp_path, "arc_easy")
    text = next(text_prompts(task_rows))
    space = " " if needs_space(TOKENIZER) else ""
    parts = [TOKENIZER(t)["input_ids"] for t in (text.shots_text, text.contexts[0], space + text.answers[1])]
    assert prompt.sequences[1] == parts[0] + parts[1] + parts[2]
    assert prompt.starts[1] == len(parts[0]) + len(parts[1])
    assert prompt.characters == [len(choice) for choice in rows[0]["choices"]]


def test_beginning_token_comes_once_and_an_end_token_not_at_all(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|im_end|>",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("<|im_end|>", tokenizer.eos_token_id)],
    )
    with_examples = tokens_of(tmp_path / "a", "arc_easy", small_rows("arc_easy", 3), tokenizer=tokenizer)[0]
    without = tokens_of(tmp_path / "b", "copa", small_rows("copa", 3), tokenizer=tokenizer)[0]
    for prompt in (with_examples, without):
        for ids in prompt.sequences:
            assert ids[0] == tokenizer.bos_token_id
            assert ids.count(tokenizer.bos_token_id) == 1
            assert tokenizer.eos_token_id not in ids


def test_nanochat_scores_from_where_the_options_part(tmp_path):
    rows = [{"query": "Ada", "choices": ["sells hats", "sells drums", "sells"], "gold": 0}]
    (prompt,) = tokens_of(tmp_path, "copa", rows, "nanochat")
    whole = [[TOKENIZER.bos_token_id, *TOKENIZER(f"Ada {choice}")["input_ids"]] for choice in rows[0]["choices"]]
    assert prompt.sequences == whole
    shared = len(TOKENIZER("Ada sells")["input_ids"]) + 1
    assert prompt.starts == [shared] * 3
    assert len(prompt.sequences[2]) == shared  # an option that all others begin with has nothing left to score


def test_nanochat_scores_what_schemas_end_with(tmp_path):
    rows = [{"context_options": ["Ada hats", "Ada boats"], "continuation": "at home.", "gold": 0}]
    (prompt,) = tokens_of(tmp_path, "winograd", rows, "nanochat")
    ends = {tuple(ids[start:]) for ids, start in zip(prompt.sequences, prompt.starts, strict=True)}
    assert len(ends) == 1
    assert TOKENIZER.decode(list(ends.pop())).strip().endswith("at home.")


@pytest.mark.parametrize("protocol", ["foundry", "nanochat"])
def test_a_long_context_loses_its_beginning(tmp_path, protocol):
    rows = small_rows("arc_easy", 12)
    whole = tokens_of(tmp_path, "arc_easy", rows, protocol, max_length=2000)
    cut = tokens_of(tmp_path, "arc_easy", rows, protocol, max_length=120)
    assert not any(prompt.is_truncated for prompt in whole)
    assert all(prompt.is_truncated for prompt in cut)
    for long, short in zip(whole, cut, strict=True):
        for option, ids in enumerate(short.sequences):
            assert ids == long.sequences[option][-120:]
            assert ids[short.starts[option] :] == long.sequences[option][long.starts[option] :]


@pytest.mark.parametrize(("label", "field"), [("copa", "choices"), ("lambada_openai", "continuation")])
def test_an_answer_longer_than_the_context_is_refused_by_task_and_row(tmp_path, label, field):
    rows = small_rows(label, 3)
    long = "hats " * 200
    rows[1] |= {"choices": ["hats", long]} if label == "copa" else {"continuation": long}
    rows[1] |= {"gold": 0} if label == "copa" else {}
    with pytest.raises(
        RowError, match=rf"task '{label}', row 1 \({label}-001\), field '{field}': an answer of .* tokens"
    ):
        tokens_of(tmp_path, label, rows, max_length=64)


def test_an_answer_without_a_token_is_refused_where_there_is_no_choice(tmp_path):
    rows = small_rows("lambada_openai", 3)
    rows[2]["continuation"] = "  "
    with pytest.raises(RowError, match=r"row 2 .* the answer has no token"):
        tokens_of(tmp_path, "lambada_openai", rows)


def test_an_answer_behind_nothing_is_refused(tmp_path):
    with pytest.raises(RowError, match="no token stands before the answer"):
        tokens_of(tmp_path, "lambada_openai", [{"context": " ", "continuation": "hats"}])
