"""The factor of the output Fisher against the matrix itself."""

import pytest
import torch

from stages.curvature.likelihoods import categorical_factor


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
def test_categorical_factor_gives_the_softmax_fisher(classes: int) -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(20, classes)
    factor = categorical_factor(logits)
    assert factor.shape == (20, classes, classes - 1)
    p = torch.softmax(logits.double(), -1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(factor @ factor.mT, fisher, rtol=1e-12, atol=1e-16)


def test_categorical_factor_of_a_certain_prediction() -> None:
    factor = categorical_factor(torch.tensor([[200.0, 0.0, -50.0], [0.0, 300.0, 0.0]]))
    assert torch.isfinite(factor).all()
    # Σ_00 = p_0 (1 − p_0), and 1 − p_0 is e⁻²⁰⁰: far below what 1 − p could show.
    variance = factor[0, 0].square().sum()
    torch.testing.assert_close(variance, torch.tensor(-200.0).double().exp(), rtol=1e-10, atol=0)
