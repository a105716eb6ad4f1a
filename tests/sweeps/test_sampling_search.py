"""The search for sampling settings: it finds what is planted, and believes nothing that held-out draws do not show."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import pytest

from ayf_core.errors import AyfError
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.sampling.settings import SamplingSettings
from sweeps.sampling_search import SamplingSearch, read_search, tuned

REPOSITORY = Path(__file__).resolve().parents[2]
SEARCH = SamplingSearch(
    kind="sampling",
    model="models/emd",
    metric=None,
    steps=[4],
    candidates=60,
    selection_seeds=3,
    held_out_seeds=8,
    seed=0,
    shift=[0.3, 3.0],
    rho=[0.5, 2.0],
    largest_gamma=1.0,
    largest_guidance_scale=None,
)
SCALES = GuidanceRange(1.0, 2.0)


def scatter(settings: SamplingSettings, seed: int) -> float:
    """What chance adds to a draw: the same for the same settings and seed."""
    return random.Random(f"{settings}{seed}").gauss(0, 1)


def planted(settings: SamplingSettings, seed: int) -> float:
    """A distance that is least, 0.2, on the grid shifted:1.8 at γ = 0.4 and λ = 1.6."""
    off_grid = math.log(settings.grid_parameter / 1.8) if settings.grid == "shifted" else 0.6
    off = off_grid**2 + (settings.gamma - 0.4) ** 2 + ((settings.guidance_scale or 0) - 1.6) ** 2
    return 0.2 + off + 0.01 * scatter(settings, seed)


def test_the_planted_optimum_is_found_and_confirmed() -> None:
    verdict = tuned(planted, 4, SEARCH, SCALES, "min")
    best = verdict.best.settings
    assert best.grid == "shifted"
    assert best.grid_parameter == pytest.approx(1.8, rel=0.25)
    assert best.gamma == pytest.approx(0.4, abs=0.2)
    assert best.guidance_scale == pytest.approx(1.6, abs=0.15)
    assert verdict.confirmed
    assert verdict.gain.low is not None
    assert verdict.gain.low > 0.7  # 0.6² + 0.4² + 0.6² = 0.88 is all there is to gain
    assert verdict.untuned.settings == SamplingSettings(guidance_scale=1.0)
    assert (verdict.guided.settings.grid, verdict.guided.settings.gamma) == ("uniform", 0.0)
    assert verdict.gain_over_guided.low is not None
    assert 0.3 < verdict.gain_over_guided.low < verdict.gain.low


def test_a_metric_that_is_better_when_higher_is_maximised() -> None:
    verdict = tuned(lambda how, seed: -planted(how, seed), 4, SEARCH, SCALES, "max")
    assert verdict.best.settings == tuned(planted, 4, SEARCH, SCALES, "min").best.settings
    assert verdict.confirmed


def test_luck_on_the_selection_draws_is_not_taken_for_a_gain() -> None:
    search = dataclasses.replace(SEARCH, candidates=20)
    looked_better, confirmed = 0, 0
    for chance in range(20):
        verdict = tuned(lambda how, seed, shift=10_000 * chance: scatter(how, seed + shift), 4, search, SCALES, "min")
        chosen = next(c for c in verdict.candidates if c.settings == verdict.best.settings)
        looked_better += chosen.mean < verdict.candidates[0].mean - 0.5
        confirmed += verdict.confirmed
    assert looked_better > 10
    assert confirmed <= 2  # one in forty is what a 95 % interval lets through


def test_best_and_untuned_are_compared_draw_by_draw_on_seeds_that_chose_nothing() -> None:
    seen: dict[SamplingSettings, set[int]] = {}

    def measure(settings: SamplingSettings, seed: int) -> float:
        seen.setdefault(settings, set()).add(seed)
        return planted(settings, seed) + 100 * seed  # cancels only in pairs

    verdict = tuned(measure, 4, SEARCH, SCALES, "min")
    chosen_by, held_out = set(range(100, 103)), set(range(500, 508))
    confirmed = {verdict.best.settings, verdict.guided.settings, verdict.untuned.settings}
    assert all(seeds == chosen_by | (held_out if how in confirmed else set()) for how, seeds in seen.items())
    assert verdict.gain.mean == pytest.approx(0.88, abs=0.1)
    assert verdict.gain.count == 8


def test_the_untuned_settings_are_the_first_candidate_and_no_candidate_leaves_the_space() -> None:
    search = dataclasses.replace(SEARCH, largest_gamma=0.5, rho=None)
    verdict = tuned(planted, 4, search, SCALES, "min")
    tried = [candidate.settings for candidate in verdict.candidates]
    assert tried[0] == SamplingSettings(guidance_scale=1.0)
    assert [how.guidance_scale for how in tried[:5]] == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert {how.grid for how in tried} == {"uniform", "shifted"}
    assert all(0.3 <= how.grid_parameter <= 3 and how.gamma <= 0.5 for how in tried)
    assert all((how.guidance_scale or 0) in SCALES for how in tried)
    assert len(tried) in (60, 61)  # and perhaps the best λ alone


def test_one_step_has_only_a_guidance_scale() -> None:
    verdict = tuned(planted, 1, SEARCH, SCALES, "min")
    assert {(how.settings.grid, how.settings.gamma) for how in verdict.candidates} == {("uniform", 0.0)}
    assert verdict.best.settings.guidance_scale == pytest.approx(1.6, abs=0.1)
    assert verdict.guided == verdict.best
    assert verdict.gain_over_guided.mean == 0


def test_where_nothing_can_be_searched_the_untuned_settings_stay() -> None:
    verdict = tuned(planted, 1, SEARCH, None, "min")
    assert [candidate.settings for candidate in verdict.candidates] == [SamplingSettings()]
    assert not verdict.confirmed


def test_the_same_values_give_the_same_proposals() -> None:
    one, other = (tuned(planted, 4, SEARCH, SCALES, "min") for _ in range(2))
    assert one == other
    longer = tuned(planted, 4, dataclasses.replace(SEARCH, candidates=70), SCALES, "min")
    assert longer.candidates[:60] == one.candidates[:60]
    changed = tuned(planted, 4, dataclasses.replace(SEARCH, seed=1), SCALES, "min")
    assert changed.candidates != one.candidates


# --- the file -------------------------------------------------------------------------------------------


def test_the_shipped_file_is_valid() -> None:
    search = read_search(REPOSITORY / "sweeps/sampling.yaml")
    assert search.model == "models/emd"
    assert search.steps == [2, 4, 8]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("shifts: [1.0, 2.0]", "did you mean shift"),
        ("candidates: 0", "candidates"),
        ("candidates: many", "candidates"),
        ("steps: [2, 0]", "steps"),
        ("held_out_seeds: 1", "held_out_seeds"),
        ("shift: [3.0, 0.3]", "shift = "),
        ("rho: [0.5]", "rho = "),
        ("largest_gamma: 1.5", "largest_gamma"),
        ("kind: training", "kind"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(tmp_path: Path, line: str, message: str) -> None:
    name = line.partition(":")[0]
    kept = [x for x in (REPOSITORY / "sweeps/sampling.yaml").read_text().splitlines() if not x.startswith(f"{name}:")]
    file = tmp_path / "sampling.yaml"
    file.write_text("\n".join([*kept, line]) + "\n")
    with pytest.raises(AyfError, match=message) as caught:
        read_search(file)
    assert "sampling.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
