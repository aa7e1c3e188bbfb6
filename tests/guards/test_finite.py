"""A value that is not finite stops the run and says which dataset rows it came from."""

from __future__ import annotations

import math
import re

import pytest
import torch

from hf_ext.guards.finite import NonFiniteError, check_finite, check_gradient, parameter_error


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "log-prob", "weight"])
def test_bad_value_is_named_with_step_rank_rows_and_position(name, value):
    values = torch.zeros(2, 3)
    values[1, 2] = value
    rows = torch.tensor([[4, 4, 4], [9, 9, 4213]])
    with pytest.raises(NonFiniteError) as caught:
        check_finite(name, values, step=1200, rank=3, row_index=rows)
    error = caught.value
    assert (error.name, error.step, error.rank, error.row_indices) == (name, 1200, 3, [4213])
    assert str(error).startswith(
        f"{name} has 1 of 6 values not finite, first {value} at (1, 2), "
        "at step 1,200 on rank 3.\n  dataset rows: 4,213\n"
    )
    assert "The optimiser step was not taken." in str(error)
    assert isinstance(error, FloatingPointError)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_finite_values_pass_whatever_their_size(dtype, shape):
    check_finite("loss", torch.full(shape, torch.finfo(dtype).max, dtype=dtype), step=0, rank=0)


def test_row_index_of_tokens_is_that_of_the_predicted_token():
    values = torch.zeros(1, 4)
    values[0, 1] = math.nan  # predicts token 2, the first of the second packed document
    packed = torch.tensor([[30, 30, 31, 31, 31]])
    with pytest.raises(NonFiniteError) as caught:
        check_finite("log-prob", values, step=0, rank=0, row_index=packed)
    assert caught.value.row_indices == [31]


def test_row_index_may_be_one_a_batch_row():
    values = torch.zeros(3, 4)
    values[0, 0] = values[2, 3] = math.inf
    with pytest.raises(NonFiniteError) as caught:
        check_finite("log-prob", values, step=0, rank=0, row_index=torch.tensor([8, 5, 2]))
    assert caught.value.row_indices == [2, 8]


def test_scalar_names_every_row_of_the_batch_sorted_once_and_at_most_eight():
    rows = torch.tensor([[1000 + i, 1000 + i, -1] for i in reversed(range(11))])
    with pytest.raises(NonFiniteError) as caught:
        check_finite("loss", torch.tensor(math.nan, requires_grad=True), step=0, rank=0, row_index=rows)
    assert caught.value.row_indices == list(range(1000, 1011))
    (shown,) = re.findall(r"dataset rows: (.*)", str(caught.value))
    assert shown == "1,000, 1,001, 1,002, 1,003, 1,004, 1,005, 1,006, 1,007 and 3 more"
    assert str(caught.value).startswith("loss is nan, at step 0 on rank 0.")


def test_rows_that_are_not_known_are_said_to_be():
    with pytest.raises(NonFiniteError, match="dataset rows: not known"):
        check_finite("loss", torch.tensor(math.inf), step=0, rank=0)


# --- gradients and parameters ----------------------------------------------------------------------------------------


def parameters(**values: list[float] | None) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters by name with these gradients; `None` has none."""
    named = [(name, torch.nn.Parameter(torch.zeros(3))) for name in values]
    for (_, parameter), gradient in zip(named, values.values(), strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    return named


def test_the_first_parameter_with_a_bad_gradient_is_named_with_the_rows_of_the_step():
    named = parameters(frozen=None, sound=[1.0, 2.0, 3.0], guilty=[1.0, math.inf, math.nan], later=[math.nan] * 3)
    rows = torch.tensor([7, -1, 3, 7])
    with pytest.raises(NonFiniteError) as caught:
        check_gradient(torch.tensor(math.nan), named, step=12, rank=1, row_index=rows)
    error = caught.value
    assert (error.name, error.step, error.rank, error.row_indices) == ("gradient", 12, 1, [3, 7])
    assert "parameter 'guilty', where it has 2 of 3 values not finite, first inf at (1,)" in str(error)


@pytest.mark.parametrize("norm", [0.0, 3e38, torch.tensor(5.0), torch.tensor(1e-30, dtype=torch.float64)])
def test_a_finite_norm_passes_without_a_look_at_the_gradients(norm):
    check_gradient(norm, iter(()), step=0, rank=0)


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1, 2, 3]),
        torch.tensor([3, 4], dtype=torch.uint8),
        torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        torch.empty(4, device="meta"),
        torch.empty(0),
    ],
    ids=["integers", "bytes", "float8", "meta", "empty"],
)
def test_a_parameter_that_cannot_be_read_as_numbers_hides_none_that_can(values):
    sound, broken = ("sound", torch.ones(2)), ("broken", torch.tensor([[1.0, math.nan]]))
    assert parameter_error([("odd", values), sound], step=0, rank=0) is None
    error = parameter_error([("odd", values), sound, broken], step=3, rank=0, advice="Look after it.")
    assert error is not None
    assert str(error).startswith(
        "parameter 'broken' has 1 of 2 values not finite, first nan at (0, 1), after step 3 on"
    )
    assert str(error).endswith("Look after it.")


def test_a_model_without_parameters_is_finite():
    assert parameter_error([], step=0, rank=0) is None
