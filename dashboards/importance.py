"""How much each searched setting matters for a metric, and how sure that is with so few trials."""

from __future__ import annotations

import numpy as np
import pandas as pd

FEWEST_TRIALS = 6
_SPLITS = 16
_SHUFFLES = 5


def importance(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Permutation importance in a random forest (Breiman 2001), judged on trials the forest has not seen.

    Sixteen times a third of the trials is held out, a forest is grown on the rest, and each setting is shuffled among
    those held out: the importance is how much the squared error grows, as a share of the metric's variance. The
    scatter over the sixteen is the uncertainty. Trials stopped early ran shorter, which alone makes a metric worse:
    `trained_steps` is among the settings wherever it differs, so that its part is not ascribed to them.

    Args:
        trials: as `frames.trials` reads them; those with a value of the metric count.

    Returns:
        setting, importance, uncertainty (standard deviation over the splits), greatest first; `attrs` has "trials" and
        "explained": the share of the variance of unseen trials that the forest explains (below 0: none, the
        importances mean nothing). Empty with fewer than six trials or where nothing differs.
    """
    known = trials[(trials["kind"] == "trial") & np.isfinite(trials[metric].astype(float))]
    names = [name for name in [*trials.attrs["settings"], "trained_steps"] if known[name].astype(str).nunique() > 1]
    columns = ["setting", "importance", "uncertainty"]
    target = _target(known[metric])
    if len(known) < FEWEST_TRIALS or not names or target.std() == 0:
        return pd.DataFrame(columns=columns)
    inputs = np.column_stack([_numbers(known[name]) for name in names])
    growth, explained = _judge(inputs, target)
    table = pd.DataFrame(dict(zip(columns, [names, growth.mean(axis=0), growth.std(axis=0)], strict=True)))
    table = table.sort_values("importance", ascending=False, ignore_index=True)
    table.attrs |= {"trials": len(known), "explained": explained}
    return table


def _judge(inputs: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Growth of the squared error [splits, settings] as a share of the variance, and the share explained."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import ShuffleSplit

    random = np.random.default_rng(0)
    growth, errors = [], []
    for kept, held in ShuffleSplit(_SPLITS, test_size=1 / 3, random_state=0).split(inputs):
        forest = RandomForestRegressor(24, min_samples_leaf=2, random_state=0).fit(inputs[kept], target[kept])
        seen = inputs[held]
        shuffled = np.stack([_shuffled(seen, k, random) for k in range(seen.shape[1]) for _ in range(_SHUFFLES)])
        predicted = forest.predict(np.concatenate([seen[None], shuffled]).reshape(-1, seen.shape[1]))
        error = ((predicted.reshape(-1, len(held)) - target[held]) ** 2).mean(axis=1)
        errors.append(error[0])
        growth.append((error[1:].reshape(-1, _SHUFFLES).mean(axis=1) - error[0]) / target.var())
    return np.array(growth), float(1 - np.mean(errors) / target.var())


def _shuffled(rows: np.ndarray, column: int, random: np.random.Generator) -> np.ndarray:
    copy = rows.copy()
    copy[:, column] = random.permutation(copy[:, column])
    return copy


def _target(values: pd.Series) -> np.ndarray:
    """The metric, in logarithms where it has many sizes: one bad trial should not be all that counts."""
    numbers = values.to_numpy(float)
    spread = len(numbers) > 0 and numbers.min() > 0 and numbers.max() / numbers.min() > 3
    return np.log(numbers) if spread else numbers


def _numbers(values: pd.Series) -> np.ndarray:
    """Numbers as they are, anything else by its place in the alphabet."""
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().all():
        return numbers.to_numpy(float)
    return pd.Categorical(values.astype(str)).codes.astype(float)
