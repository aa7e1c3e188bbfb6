"""A frozen lower part computed once a row, and the log-probabilities of fixed rows under models on top of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

KL_STRIDE = 3  # the exact KL is taken at every third position: it costs more than all the rest
ROWS_AT_ONCE = 16


class FrozenLower(nn.Module):
    """
    Embeddings and lower layers of a frozen decoder as one lookup, from token ids to the hidden states above them.

    In the place of a model's embeddings it leaves a model of the top layers alone, which any trainer takes for a whole
    one. A row's states do not depend on its batch: the decoder is causal, and padding stands on the right.
    """

    def __init__(self, model_path: str, trained: int, autocast: bool, pad_id: int, file: Path) -> None:
        super().__init__()
        whole = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).requires_grad_(False)
        object.__setattr__(self, "whole", whole)  # not a submodule: no trainer may find its weights
        self.model_path, self.trained, self.autocast, self.pad_id = model_path, trained, autocast, pad_id
        self.file = file  # a killed benchmark goes on without computing the states again
        self.states: dict[tuple[int, ...], Tensor] = torch.load(file) if file.exists() else {}

    def precision(self) -> Any:
        """The autocast that training runs under."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)

    def top(self) -> Any:
        """The original model with this lookup in the place of all that is frozen; its layers are to be trained."""
        model = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32).requires_grad_(False)
        model.config.tie_word_embeddings, model.config.use_cache = False, False
        model.config.num_hidden_layers = self.trained
        model.model.layers = model.model.layers[-self.trained :].requires_grad_(True)
        model.model.embed_tokens = self
        return model

    def add(self, rows: list[list[int]]) -> None:
        """Compute what `forward` will look up."""
        missing = sorted((row for row in rows if self._key(row) not in self.states), key=len)
        for k in tqdm(range(0, len(missing), ROWS_AT_ONCE), desc="Frozen layers"):
            chunk = missing[k : k + ROWS_AT_ONCE]
            ids = pad_sequence([torch.tensor(row) for row in chunk], batch_first=True)
            with torch.no_grad(), self.precision():
                states = self.whole.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            for row, lower in zip(chunk, states[-1 - self.trained], strict=True):
                self.states[self._key(row)] = lower[: len(row)].float().clone()
        if missing:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.states, self.file)

    def _key(self, row: list[int]) -> tuple[int, ...]:
        """The row without padding. Where the end token pads, it goes as well: it ends every row."""
        end = len(row)
        while end and row[end - 1] == self.pad_id:
            end -= 1
        return tuple(row[:end])

    def forward(self, input_ids: Tensor) -> Tensor:
        """(rows, padded_len, hidden) for ids (rows, padded_len); zeros on padding. A row never added is an error."""
        found = [self.states[self._key(row)] for row in input_ids.tolist()]
        return pad_sequence([*found, torch.zeros(input_ids.shape[1], found[0].shape[1])], batch_first=True)[:-1]


class Scorer:
    """Log-probabilities of fixed rows (prompt ids, completion ids) under models made by one `FrozenLower.top`."""

    def __init__(self, lower: FrozenLower, start: Any, rows: list[tuple[list[int], list[int]]]) -> None:
        self.lower, self.start, self.rows = lower, start, rows
        self.lengths = np.array([len(completion) for _, completion in rows], dtype=float)
        lower.add([prompt + completion for prompt, completion in rows])
        self.before = self.scores(start)["logp"]

    def _finals(self, body: Any, chunk: list[int]) -> list[Tensor]:
        """Of each row, the states that predict its completion: (completion_len, hidden)."""
        whole = [prompt + completion for prompt, completion in (self.rows[i] for i in chunk)]
        ids = pad_sequence([torch.tensor(row) for row in whole], batch_first=True, padding_value=self.lower.pad_id)
        with torch.no_grad(), self.lower.precision():
            states = body(input_ids=ids, use_cache=False).last_hidden_state
        starts = [len(self.rows[i][0]) - 1 for i in chunk]
        return [own[k : k + len(self.rows[i][1])].float() for i, k, own in zip(chunk, starts, states, strict=True)]

    def _log_probs(self, final: Tensor) -> Tensor:
        """(positions, vocab_size). bf16 inside the product, float32 out: bf16 logits would be rounded to eighths."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium" if self.lower.autocast else "highest")
        logits = final @ self.start.lm_head.weight.T
        torch.set_float32_matmul_precision(before)
        return torch.log_softmax(logits, dim=-1)

    def scores(self, model: Any, rows: Any = None, with_kl: bool = False) -> dict[str, np.ndarray]:
        """
        Of each row, NaN where not asked for: `logp`, nats summed over the completion; `kl`, KL(start||new) of the next
        token, nats, mean over every third position of the completion.
        """
        model.eval()
        sums = {name: np.full(len(self.rows), np.nan) for name in ("logp", "kl")}
        ordered = sorted(range(len(self.rows)) if rows is None else rows, key=lambda i: sum(map(len, self.rows[i])))
        for k in range(0, len(ordered), ROWS_AT_ONCE):
            chunk = ordered[k : k + ROWS_AT_ONCE]
            starts = self._finals(self.start.model, chunk) if with_kl else [None] * len(chunk)
            for i, final, start in zip(chunk, self._finals(model.model, chunk), starts, strict=True):
                with torch.no_grad():
                    log_q = self._log_probs(final)
                    sums["logp"][i] = self._picked(log_q, i)
                    if start is not None:
                        log_p, log_q = self._log_probs(start[::KL_STRIDE]), log_q[::KL_STRIDE]
                        sums["kl"][i] = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
        return sums

    def _picked(self, log_probs: Tensor, row: int) -> float:
        tokens = torch.tensor(self.rows[row][1])[:, None]
        return float(log_probs.gather(1, tokens).sum(dtype=torch.float64))

    def lookup_error(self, model: Any) -> float:
        """Largest difference, nats per sequence, to scores of the whole model with `model`'s layers on top."""
        chunk = list(range(min(4, len(self.rows))))
        looked_up, body = self.scores(model, chunk)["logp"], self.lower.whole.model
        own = body.layers
        body.layers = nn.ModuleList([*own[: -self.lower.trained], *model.model.layers])
        try:
            finals = self._finals(body, chunk)
        finally:
            body.layers = own
        with torch.no_grad():
            return max(
                abs(self._picked(self._log_probs(f), i) - looked_up[i]) for i, f in zip(chunk, finals, strict=True)
            )
