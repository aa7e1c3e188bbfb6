"""The tiny model of `hf-ext demo --fast`: built in code, and taught some generated text so that it knows something."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from hf_ext.demo.tasks import DAYS, GOODS, MATERIALS, NOISE, PLACES
from hf_ext.guards.disk import write_whole

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, END, PAD = "<s>", "</s>", "<pad>"

_NAMES = ("Ada", "Ben", "Chen", "Dana", "Emil", "Fatima", "Goran", "Hana")
_STORIES = (
    "{name} saw {count} {goods} in {place} and bought them on {day}.",
    "On {day}, {name} took the train from {place} to {other}.",
    "{name} and {friend} carried {count} {goods} to {place}.",
    "Nobody in {place} wanted the {goods} that {name} made.",
    "Note: {count} {goods} arrived from {place} on {day}.\nHouse line: [IN] {place} / {count} {goods}.",
    "Note: On {day}, {count} {goods} left for {place}.\nHouse line: [OUT] {place} / {count} {goods}.",
)
"""The last two are how the house wrote lines before: the skill is new, its words are not."""


def tiny_folder(folder: Path, *, seed: int, num_steps: int = 250, show_progress: bool = True) -> Path:
    """
    Write a tiny Llama, trained for seconds on generated stories, as a plain transformers folder.

    It is the "original model" of the fast demo: it knows stories, and forgetting means to lose them.

    Args:
        folder (`Path`):
            Where to write; returned as it is if a whole model lies there.
        seed (`int`):
            Of weights and text.
        num_steps (`int`, *optional*, defaults to `250`):
            Training steps.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `Path`: `folder`.
    """
    marker = folder / "tiny.json"  # written last, so that its folder is whole
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == {"seed": seed, "num_steps": num_steps}:
        return folder
    rng = random.Random(seed)
    texts = [_story(rng) for _ in range(2_000)]
    tokenizer = _tokenizer([*texts, " ".join(NOISE), "[filed]"])
    model = _model(tokenizer, seed)
    _teach(model, tokenizer, texts, num_steps, seed, show_progress)
    marker.unlink(missing_ok=True)  # of another model: half of this one must not pass for it
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_whole(marker, json.dumps({"seed": seed, "num_steps": num_steps}))
    return folder


def _story(rng: random.Random) -> str:
    place, other = rng.sample(PLACES, 2)
    name, friend = rng.sample(_NAMES, 2)
    return rng.choice(_STORIES).format(
        name=name,
        friend=friend,
        place=place,
        other=other,
        day=rng.choice(DAYS),
        count=rng.randint(2, 99),
        goods=f"{rng.choice(MATERIALS)} {rng.choice(GOODS)}",
    )


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BEGIN, eos_token=END, pad_token=PAD)


def _model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The weights depend on the seed alone, and the caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _teach(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    num_steps: int,
    seed: int,
    show_progress: bool,
) -> None:
    """Next-token training on `texts`, 32 a step."""
    rng = random.Random(seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=num_steps)
    model.train()
    for _ in tqdm(range(num_steps), desc="teaching the tiny model", unit="step", disable=not show_progress):
        rows = [f"{BEGIN}{text}{END}" for text in rng.sample(texts, 32)]
        batch = tokenizer(rows, return_tensors="pt", padding=True, add_special_tokens=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
