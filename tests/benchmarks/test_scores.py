import numpy as np
import pytest
import torch

from benchmarks.scores import el2n_scores, forgetting_counts, grand_scores, uncertainty_scores


@pytest.fixture
def model_rows():
    torch.manual_seed(0)
    hidden, labels = torch.randn(9, 5), torch.randint(0, 4, (9,))
    return torch.nn.Linear(5, 4), hidden, labels


@pytest.mark.parametrize("bias", [True, False])
def test_grand_is_the_length_of_autograds_gradient_of_the_last_layer(model_rows, bias):
    head, hidden, labels = model_rows
    expected = []
    for row in range(9):
        loss = torch.nn.functional.cross_entropy(head(hidden[row]), labels[row])
        parameters = list(head.parameters()) if bias else [head.weight]
        gradients = torch.autograd.grad(loss, parameters)
        expected.append(float(sum((g**2).sum() for g in gradients) ** 0.5))
    logits = head(hidden).detach().numpy()
    found = grand_scores(logits, labels.numpy(), hidden.numpy(), bias=bias)
    assert found == pytest.approx(expected, rel=1e-5)


def test_el2n_is_the_length_of_autograds_gradient_of_the_logits(model_rows):
    head, hidden, labels = model_rows
    logits = head(hidden).detach().requires_grad_()
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    assert el2n_scores(logits.detach().numpy(), labels.numpy()) == pytest.approx(logits.grad.norm(dim=1), rel=1e-5)


def test_el2n_worked_by_hand():
    logits = np.log([[0.5, 0.25, 0.25], [1.0, 1e-300, 1e-300]])
    expected = [np.sqrt(0.25 + 0.0625 + 0.0625), np.sqrt(2)]  # the second is sure, and wrong
    assert el2n_scores(logits, [0, 1]) == pytest.approx(expected)


def test_runs_are_averaged():
    rng = np.random.default_rng(0)
    logits, labels, hidden = rng.standard_normal((3, 6, 4)), rng.integers(0, 4, 6), rng.standard_normal((3, 6, 2))
    for score, more in ((el2n_scores, ()), (grand_scores, (hidden,)), (uncertainty_scores, None)):
        if more is None:
            together, each = score(logits), [score(one) for one in logits]
        else:
            together = score(logits, labels, *more)
            each = [score(logits[run], labels, *(x[run] for x in more)) for run in range(3)]
        assert together == pytest.approx(np.mean(each, axis=0))


def test_large_logits_do_not_overflow():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]])
    assert el2n_scores(logits, [0, 0]) == pytest.approx([0.0, np.sqrt(2)])
    assert uncertainty_scores(logits, kind="entropy") == pytest.approx([0.0, 0.0])


def test_forgetting_worked_by_hand():
    correct = np.array(
        [
            [1, 0, 0, 1, 1],
            [0, 1, 0, 1, 0],
            [1, 1, 0, 1, 0],
            [0, 1, 0, 1, 0],
        ]
    )
    assert forgetting_counts(correct).tolist() == [2, 0, 4, 0, 1]  # row 2 was never right: 4, the epochs


def test_a_row_never_learnt_is_harder_than_any_that_was():
    for epochs in range(1, 9):
        alternating = np.arange(epochs) % 2 == 0
        counts = forgetting_counts(np.stack([alternating, np.zeros(epochs)], axis=1))
        assert counts[1] > counts[0]


def test_uncertainty_against_scipy():
    from scipy.stats import entropy

    p = np.random.default_rng(0).dirichlet(np.ones(5), 20)
    logits = np.log(p) + 3.0  # a constant changes nothing
    ordered = np.sort(p, axis=1)
    assert uncertainty_scores(logits, kind="entropy") == pytest.approx(entropy(p, axis=1))
    assert uncertainty_scores(logits) == pytest.approx(1 - ordered[:, -1])
    assert uncertainty_scores(logits, kind="margin") == pytest.approx(1 - (ordered[:, -1] - ordered[:, -2]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: el2n_scores([[0.0, np.nan]], [0]), "logits of row 0 hold nan in column 1.*Drop the row"),
        (lambda: el2n_scores(np.zeros((2, 3)), [0, 3]), "Label of row 1 is 3, and the logits have 3 classes"),
        (lambda: el2n_scores(np.zeros((2, 3)), [0, -100]), "Label of row 1 is -100"),
        (lambda: el2n_scores(np.zeros((2, 3)), [0.0, 1.0]), "2 whole numbers"),
        (lambda: el2n_scores(np.zeros((2, 3)), [0]), "2 whole numbers"),
        (lambda: el2n_scores(np.zeros(3), [0]), r"logits must have shape"),
        (lambda: grand_scores(np.zeros((2, 3)), [0, 1], np.zeros((3, 4))), "one vector a row and run"),
        (lambda: grand_scores(np.zeros((2, 3)), [0, 1], np.full((2, 4), np.inf)), "features of row 0 hold inf"),
        (lambda: forgetting_counts([[0, 1], [2, 0]]), "Row 0 of epoch 1 is .*2.*booleans"),
        (lambda: forgetting_counts([0, 1]), r"shape \(epochs, n\)"),
        (lambda: uncertainty_scores(np.zeros((2, 3)), kind="variance"), "kind must be"),
        (lambda: uncertainty_scores(np.zeros((2, 1)), kind="margin"), "at least two classes"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
