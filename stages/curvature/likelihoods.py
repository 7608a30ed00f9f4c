"""What a model's outputs mean: the Fisher of the outputs, as a factor of few columns."""

import torch
from torch import Tensor


def categorical_factor(logits: Tensor) -> Tensor:
    """A factor L of the softmax likelihood's output Fisher Σ = diag(p) − p pᵀ = L Lᵀ.

    Σ has rank K−1, and its Cholesky factor is known in closed form (Tanabe & Sagae 1992, "An Exact Cholesky
    Decomposition and the Generalized Inverse of the Variance-Covariance Matrix of the Multinomial Distribution"): with
    q_k = 1 − Σ_{i≤k} p_i,

        L_jj = √(p_j q_j / q_{j−1}),   L_kj = −p_k √(p_j / (q_{j−1} q_j)) for k > j.

    Everything is computed from log-probabilities in float64, so that a confident prediction, whose p is 1 to float32's
    rounding, keeps all its digits.

    Args:
        logits: [B, K], K ≥ 2.

    Returns:
        [B, K, K−1] in float64: column j is the gradient that a backward pass starts from, per example.
    """
    log_p = torch.log_softmax(logits.double(), dim=-1)
    # log q_{j-1} for every j: the sum of the tail p_j, …, p_{K-1}, without subtracting from 1.
    log_tail = log_p.flip(-1).logcumsumexp(-1).flip(-1)
    log_p_j, log_q_before, log_q = log_p[:, :-1], log_tail[:, :-1], log_tail[:, 1:]
    diagonal = torch.exp((log_p_j + log_q - log_q_before) / 2)
    below = -torch.exp(log_p[:, :, None] + ((log_p_j - log_q_before - log_q) / 2)[:, None, :])
    factor = torch.tril(below, diagonal=-1)
    factor.diagonal(dim1=1, dim2=2).copy_(diagonal)
    return factor
