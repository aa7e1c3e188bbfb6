"""The probe refuses every engine that is off, and lets an exact one pass, each time."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from hf_ext import BackendError
from hf_ext.data.backends.probe import DOUBLED, OTHER, Positions, alternatives_of, probe_backend
from hf_ext.data.backends.protocol import RowRequest, SampledRow, sample_checked
from tests.data.backends.engines import PlainEngine, keep, penalise, top_k
from tests.data.symbol_models import BOS, EOS, symbol_model

SEEDS = range(20)
VOCAB = 384  # with 0.018 nats a token between temperatures 1 and 0.9; SmolLM2-135M has 0.03


@pytest.fixture(scope="module")
def model():
    return symbol_model(VOCAB, initializer_range=0.4)


def probe(engine, model, seed=0, temperature=1.0, prompts=((BOS,),), eos_ids=(EOS,), longest=64):
    return probe_backend(
        engine, model, prompts, eos_ids=eos_ids, max_new_tokens=longest, temperature=temperature, seed=seed
    )


@pytest.mark.timeout(1200)  # some 20 seconds of a processor: minutes where others share it
def test_an_exact_engine_passes_20_of_20(model):
    for seed in SEEDS:
        reports = ("raw", "processed", None)[seed % 3]
        report = probe(PlainEngine(model, reports=reports), model, seed)
        assert report.reports_model is (reports is not None)
        assert report.tokens >= 3072


# Fault -> what the engine does, and what the refusal names. An engine that reports the log-probabilities of before the
# fault, or none, is the hard case: only the samples show it.
FAULTS = {
    "top_k": ({"change": top_k(50)}, "as likely under top_k="),
    "temperature": ({"change": lambda logits: logits / 0.9}, r"as likely under 0\.\d+ times the temperature"),
    "shifted_ids": ({"shift": 1}, "another distribution|stopped after|goes on after"),
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_20_of_20(model, fault):
    settings, words = FAULTS[fault]
    for seed in SEEDS:
        with pytest.raises(BackendError, match=words):
            probe(PlainEngine(model, reports=("raw", None)[seed % 2], **settings), model, seed)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"change": keep(lambda probs: probs >= 0.1 * probs.amax(-1, keepdim=True))}, "min_p="),
        ({"change": keep(lambda probs: probs.cumsum(-1) - probs < 0.95, ordered=True)}, "top_p=|top_k="),
        ({"change": lambda logits: logits / 1.1}, "1.1 times the temperature"),
        ({"history": penalise(1.3)}, "repetition_penalty="),
        ({"doubles": True}, "first token of the prompt doubled"),
    ],
)
def test_other_faults_are_named(settings, words):
    model = symbol_model(VOCAB, 3, initializer_range=0.4, max_position_embeddings=256)
    with pytest.raises(BackendError, match=words):
        probe(PlainEngine(model, reports=None, **settings), model)


def test_an_engine_that_holds_back_end_tokens_is_named(model):
    ends = list(range(1, 20))
    engine = PlainEngine(model, change=keep(lambda probs: ~torch.isin(torch.arange(VOCAB), torch.tensor(ends))))
    with pytest.raises(BackendError, match="end tokens never sampled"):
        probe(engine, model, eos_ids=ends)


def test_other_weights_are_refused_by_their_samples_and_by_what_they_report(model):
    with pytest.raises(BackendError, match="under another distribution altogether"):
        probe(PlainEngine(symbol_model(VOCAB, 5, initializer_range=0.4), reports=None), model)

    class OffByALittle(PlainEngine):
        def sample(self, rows, temperature, eos_ids):
            sampled = super().sample(rows, temperature, eos_ids)
            noise = torch.Generator().manual_seed(0)
            return [
                SampledRow(row.ids, tuple(logp - float(torch.rand((), generator=noise)) for logp in row.logps))
                for row in sampled
            ]

    with pytest.raises(BackendError, match=r"differ from the model's by 0\.(49|50)\d* nats.*not quantised"):
        probe(OffByALittle(model), model)


def test_weights_in_bfloat16_pass(model):
    low = copy.deepcopy(model).to(torch.bfloat16)
    report = probe(PlainEngine(low), model)
    assert 1e-4 < report.mean_gap < 0.1
    assert report.reports_model


def test_another_temperature_than_1_is_probed_as_such(model):
    raw = probe(PlainEngine(model, reports="raw"), model, temperature=0.7)
    processed = probe(PlainEngine(model, reports="processed"), model, temperature=0.7)
    assert (raw.reports_model, processed.reports_model) == (True, False)  # a store holds those at temperature 1
    with pytest.raises(BackendError, match="times the temperature"):
        probe(PlainEngine(model, change=lambda logits: logits * 0.7), model, temperature=0.7)  # the engine ignores it


def test_short_rows_are_followed_by_more_of_them(model):
    engine = PlainEngine(model)
    report = probe(engine, model, longest=4, prompts=((BOS,), (BOS, 5, 7)))
    assert report.tokens <= 1024 * 4
    assert engine.calls * 64 >= report.tokens / 4


def test_a_likelihood_ratio_has_mean_one_under_the_model():
    """So that Markov's inequality bounds false refusals: summed over the vocabulary, exactly."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 40, generator=generator)
    for temperature in (1.0, 0.6):
        probs = (logits[0].double() / temperature).softmax(-1)
        for name, log_ratio in alternatives_of([EOS, 3]).items():
            ratios = [float(log_ratio(Positions(((7, 9), (x,)), logits, temperature)).exp()) for x in range(40)]
            assert math.fsum((probs * torch.tensor(ratios)).tolist()) == pytest.approx(1, abs=1e-5), name
    assert {OTHER, DOUBLED} & set(alternatives_of([EOS])) == {OTHER}  # the doubled start needs a forward of its own


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (SampledRow(()), "no token was sampled"),
        (SampledRow((5,) * 5), "5 tokens were sampled, where 4"),
        (SampledRow((5, 999, EOS)), "token 999 is outside"),
        (SampledRow((5, EOS, 6, 7)), "goes on after an end token"),
        (SampledRow((5, 6)), "stopped after 2 of 4 tokens, with token 6"),
        (SampledRow((5, EOS), (-1.0,)), "1 log-probabilities for 2"),
        (SampledRow((5, EOS), (-1.0, math.nan)), "above 0 or not a number"),
        (SampledRow((5, EOS), (-1.0, 0.5)), "above 0 or not a number"),
    ],
)
def test_a_row_of_a_wrong_form_is_refused_by_its_number(row, words):
    class Engine(PlainEngine):
        def sample(self, rows, temperature, eos_ids):
            return [SampledRow((5, EOS)), row]

    with pytest.raises(BackendError, match=f"backend odd, row 1 of 2: .*{words}"):
        sample_checked(Engine(None, name="odd"), [RowRequest((0,), 4, 1)] * 2, 1.0, [EOS], 64)


def test_missing_rows_are_refused():
    class Engine(PlainEngine):
        def sample(self, rows, temperature, eos_ids):
            return []

    with pytest.raises(BackendError, match="gave 0 rows for 1"):
        sample_checked(Engine(None), [RowRequest((0,), 4, 1)], 1.0, [EOS], 64)
