"""Models over a handful of symbols whose next-token distributions a test can write down, and their chi-square."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import tiny_model

BOS, EOS = 0, 1


def symbol_tokenizer(vocab_size: int, **special: str) -> PreTrainedTokenizerFast:
    vocab = {"<s>": BOS, "</s>": EOS} | {f"t{i}": i for i in range(2, vocab_size)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"} | special)
    )


def symbol_model(vocab_size: int, seed: int = 0, **config: object) -> LlamaForCausalLM:
    """Far from uniform (over 100 between the likeliest and the rarest of 64 symbols), with 3 % on the rarest 14."""
    return tiny_model(vocab_size, seed, **({"tie_word_embeddings": False, "initializer_range": 0.2} | config))


@torch.no_grad()
def next_token_probabilities(model: LlamaForCausalLM, prefixes: list[list[int]]) -> np.ndarray:
    """Exact softmax after each prefix (all of one length), from a plain forward without a cache, in float64."""
    logits = model(input_ids=torch.tensor(prefixes), use_cache=False).logits[:, -1].double()
    return torch.softmax(logits, dim=-1).numpy()


def teacher_forced_logps(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """Log-probability of every id but the first, from one plain forward over the whole row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits, dim=-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def chi_square_p(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """p-value of the counts under the probabilities; cells that expect fewer than 5 are pooled into one."""
    expected = probabilities / probabilities.sum() * counts.sum()
    rare = expected < 5
    observed, expected_cells = counts[~rare], expected[~rare]
    if expected[rare].sum() > 0:
        observed = np.append(observed, counts[rare].sum())
        expected_cells = np.append(expected_cells, expected[rare].sum())
    return float(chisquare(observed, expected_cells * observed.sum() / expected_cells.sum()).pvalue)


def first_token_p(model: LlamaForCausalLM, sampled: list[list[int]]) -> float:
    """p-value of the first sampled tokens (rows without the start) under the exact softmax after `<s>`."""
    exact = next_token_probabilities(model, [[BOS]])[0]
    return chi_square_p(np.bincount([row[0] for row in sampled], minlength=len(exact)), exact)


def two_token_p(model: LlamaForCausalLM, sampled: list[list[int]]) -> float:
    """p-value of the first two sampled tokens together; a row that ended after one token is a cell of its own."""
    first = next_token_probabilities(model, [[BOS]])[0]
    joint = first[:, None] * next_token_probabilities(model, [[BOS, token] for token in range(len(first))])
    joint[EOS] = 0
    joint[EOS, EOS] = first[EOS]
    counts = np.zeros_like(joint)
    np.add.at(counts, ([row[0] for row in sampled], [row[1] if row[0] != EOS else EOS for row in sampled]), 1)
    return chi_square_p(counts.ravel(), joint.ravel())
