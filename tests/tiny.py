"""Tiny models, tokenizers and datasets, built in code: no file, no network, the same on every run."""

from __future__ import annotations

import random
from functools import cache

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<s>", "<unk>", "<|im_start|>", "<|im_end|>")

# ChatML. The generation block spans what the assistant writes and its end token: `assistant_only_loss` supervises it.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}"
    "{{- '\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

_NAMES = ("Ada", "Ben", "Chen", "Dana", "Emil", "Fatima", "Goran", "Hana")
_VERBS = ("counts", "paints", "carries", "sells", "buys", "finds", "draws", "mends")
_THINGS = ("apples", "boats", "clocks", "drums", "engines", "flutes", "gloves", "hats")
_PLACES = ("at home", "in the market", "by the river", "on the hill", "near the old mill")


def _sentence(rng: random.Random) -> str:
    words = (rng.choice(_NAMES), rng.choice(_VERBS), str(rng.randint(2, 99)), rng.choice(_THINGS), rng.choice(_PLACES))
    return " ".join(words) + "."


def tiny_sentences(n: int, seed: int = 0, max_sentences: int = 4) -> list[str]:
    """Return `n` texts of 1 to `max_sentences` sentences each, so that rows differ in length."""
    rng = random.Random(seed)
    return [" ".join(_sentence(rng) for _ in range(rng.randint(1, max_sentences))) for _ in range(n)]


@cache
def _trained_bpe(vocab_size: int) -> str:
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(tiny_sentences(200, seed=12345), trainer)
    return bpe.to_str()


def tiny_tokenizer(vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """
    Return a byte-level BPE tokenizer with at most `vocab_size` tokens (at least 261: bytes and special tokens).

    Beginning `<s>`, end `<|im_end|>`, padding `<pad>` (not the end token), unknown `<unk>`; nothing is added to plain
    text; the ChatML template has generation blocks.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_bpe(vocab_size)),
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="right",
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(
    vocab: int | PreTrainedTokenizerBase, seed: int = 0, layers: int = 2, width: int = 32, **config: object
) -> LlamaForCausalLM:
    """
    Return a random Llama in float32 on the CPU without dropout; the same `seed` gives the same weights.

    Args:
        vocab (`int` or tokenizer):
            Vocabulary size, or a tokenizer whose size and special ids the model takes.
        seed (`int`):
            Seed of the weights. The caller's random state is left as it was.
        layers (`int`), width (`int`):
            Number of layers and hidden size (a multiple of 8: 4 heads of even size).
        **config:
            Further fields of `LlamaConfig`.
    """
    fields: dict[str, object] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "attention_dropout": 0.0,
        "initializer_range": 0.1,  # wide enough that tokens and rows differ clearly in loss
        "tie_word_embeddings": True,
    }
    if isinstance(vocab, int):
        fields |= {"vocab_size": vocab, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    else:
        fields |= {
            "vocab_size": len(vocab),
            "bos_token_id": vocab.bos_token_id,
            "eos_token_id": vocab.eos_token_id,
            "pad_token_id": vocab.pad_token_id,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(fields | config)))
    return model.to(torch.float32)


def tiny_text_dataset(n: int = 16, seed: int = 0) -> Dataset:
    """Return `n` rows with a string column `text` of uneven length."""
    return Dataset.from_dict({"text": tiny_sentences(n, seed)})


def tiny_prompt_completion_dataset(n: int = 16, seed: int = 0, conversational: bool = False) -> Dataset:
    """Return `n` rows with columns `prompt` and `completion`: strings, or lists of messages if `conversational`."""
    prompts = [f"Tell me about row {i}. " for i in range(n)]
    completions = tiny_sentences(n, seed)
    if not conversational:
        return Dataset.from_dict({"prompt": prompts, "completion": completions})
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": text}] for text in prompts],
            "completion": [[{"role": "assistant", "content": text}] for text in completions],
        }
    )


def tiny_messages_dataset(n: int = 16, seed: int = 0) -> Dataset:
    """Return `n` rows with a column `messages`: one user and one assistant turn, every third row two of each."""
    first, second = tiny_sentences(n, seed), tiny_sentences(n, seed + 1)
    rows = []
    for i, (one, two) in enumerate(zip(first, second, strict=True)):
        turns = [{"role": "user", "content": f"Tell me about row {i}."}, {"role": "assistant", "content": one}]
        if i % 3 == 0:
            turns += [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": two}]
        rows.append(turns)
    return Dataset.from_dict({"messages": rows})
