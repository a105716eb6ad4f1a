"""The nearest-neighbour check tells copies from new samples."""

from __future__ import annotations

import pytest
import torch

from ayf_core.errors import AyfError
from ayf_core.evaluation.memorisation import nearest_neighbour_check


def draw(n: int, seed: int) -> torch.Tensor:
    return torch.randn((n, 6), generator=torch.Generator().manual_seed(seed))


def test_figures_agree_with_a_case_worked_by_hand() -> None:
    train = torch.tensor([[0.0], [1.0], [5.0]])  # nearest other training point: 1, 1 and 4 away
    generated = torch.tensor([[0.25], [-2.0], [6.0]])  # 0.25, 2 and 1 from points 0, 0 and 5
    test = torch.tensor([[3.5], [1.5]])  # 1.5 and 0.5 from points 5 and 1
    result = nearest_neighbour_check(generated, train, test)
    assert (result.generated_to_train, result.test_to_train, result.copy_ratio) == (1.0, 1.0, 1.0)
    assert result.authenticity == pytest.approx(1 / 3)  # only the second: 2 > 1
    assert result.test_authenticity == 0.0


def test_new_samples_of_the_same_law_score_as_held_out_data() -> None:
    result = nearest_neighbour_check(draw(800, 0), draw(600, 1), draw(800, 2))
    assert result.copy_ratio == pytest.approx(1.0, abs=0.05)
    assert result.authenticity == pytest.approx(result.test_authenticity, abs=0.06)


def test_copies_have_a_small_ratio_and_no_authenticity() -> None:
    train = draw(300, 1)
    exact = nearest_neighbour_check(train[:200], train, draw(200, 2))
    near = nearest_neighbour_check(train[:200] + 0.01 * draw(200, 3), train, draw(200, 2))
    assert (exact.copy_ratio, exact.authenticity) == (0.0, 0.0)
    assert 0 < near.copy_ratio < 0.05
    assert near.authenticity == 0.0


def test_test_set_of_copies_is_refused() -> None:
    train = draw(30, 1)
    with pytest.raises(AyfError, match="remove duplicates"):
        nearest_neighbour_check(draw(10, 2), train, train[:5])
