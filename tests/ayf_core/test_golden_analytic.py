"""The analytic fields against values computed independently (tests/golden/reference.json)."""

import json
from pathlib import Path

import pytest
import torch

from ayf_core.analytic import Gaussian, GaussianMixture, consistency_optimum

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def column(section, key):
    return tensor([case[key] for case in GOLDEN[section]["cases"]])


def field(section):
    about = GOLDEN[section]
    if section == "gaussian":
        return Gaussian(tensor(about["mean"]), tensor(about["cov"]))
    return GaussianMixture(tensor(about["weights"]), tensor(about["means"]), tensor(about["covs"]))


@pytest.mark.parametrize("section", ["gaussian", "mixture"])
def test_velocity_matches_the_golden_values(section):
    velocity = field(section).velocity(column(section, "x"), column(section, "t"))
    torch.testing.assert_close(velocity, column(section, "velocity"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("section", ["gaussian", "mixture"])
def test_flow_map_matches_the_golden_values(section):
    points = field(section).flow_map(column(section, "x"), column(section, "t"), column(section, "s"))
    torch.testing.assert_close(points, column(section, "flow_map"), rtol=1e-9, atol=1e-9)


def test_mixture_log_density_matches_the_golden_values():
    log_density = field("mixture").log_density(column("mixture", "x"))
    torch.testing.assert_close(log_density, column("mixture", "data_log_density"), rtol=1e-9, atol=1e-9)


def test_consistency_optimum_matches_the_golden_values():
    mapped = consistency_optimum(
        column("consistency_1d", "x")[:, None], column("consistency_1d", "t"), GOLDEN["consistency_1d"]["c"]
    )
    torch.testing.assert_close(mapped[:, 0], column("consistency_1d", "f"), rtol=1e-9, atol=1e-9)
