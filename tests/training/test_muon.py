"""Laws of Muon."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from training.muon import Muon, orthogonal


def _newton_schulz(matrix: Tensor) -> Tensor:
    """The iteration as it is published, on the whole matrix, in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    out: Tensor = x.float()
    return out


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_the_small_iteration_equals_the_published_one(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    expected = _newton_schulz(matrix) if rows <= columns else _newton_schulz(matrix.T).T
    assert torch.allclose(orthogonal(matrix), expected, atol=1e-4)


def test_singular_values_that_count_end_near_1() -> None:
    matrix = torch.randn(32, 288, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(1e-6 * matrix))
    assert 0.6 < values.min() <= values.max() < 1.3


def test_a_gradient_of_0_leaves_parameters_alone() -> None:
    layer = nn.Linear(4, 3)
    before = [p.detach().clone() for p in layer.parameters()]
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    Muon(layer.parameters(), lr=0.1, weight_decay=0.0).step()
    assert all(torch.equal(p, q) for p, q in zip(layer.parameters(), before, strict=True))


def test_vectors_follow_adam() -> None:
    mine, oracle = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    muon = Muon([mine], lr=0.02, weight_decay=0.5)
    adam = torch.optim.Adam([oracle], lr=0.02 * 0.15)
    for step in range(9):
        for p, optimiser in ((mine, muon), (oracle, adam)):
            p.grad = (p.detach() + step).sin()
            optimiser.step()
    assert torch.allclose(mine, oracle, atol=1e-6)


def test_a_state_restored_goes_on_with_the_same_bits() -> None:
    def run(restored_at: int) -> Tensor:
        layer = nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        muon = Muon(layer.parameters(), lr=0.02, weight_decay=0.1)
        for step in range(6):
            if step == restored_at:
                state = muon.state_dict()
                muon = Muon(layer.parameters(), lr=0.02, weight_decay=0.1)
                muon.load_state_dict(state)
            for p in layer.parameters():
                p.grad = (3 * p.detach() + step).cos()
            muon.step()
        return layer.weight.detach()

    assert torch.equal(run(3), run(-1))


@given(size=st.floats(1e-6, 1e6), seed=st.integers(0, 2**32))
def test_a_kernel_moves_as_far_in_every_direction_whatever_the_gradient(size: float, seed: int) -> None:
    kernel = nn.Parameter(torch.zeros(8, 3, 3, 3))
    kernel.grad = size * torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    Muon([kernel], lr=0.5, weight_decay=0.0).step()
    values = torch.linalg.svdvals(kernel.detach().flatten(1)) / 0.5
    assert 0.6 < values.min() <= values.max() < 1.3


def test_kernels_alone_decay() -> None:
    kernel, vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    kernel.grad, vector.grad = torch.zeros(2, 3), torch.zeros(3)
    Muon([kernel, vector], lr=0.5, weight_decay=0.2).step()
    assert torch.equal(kernel.detach(), torch.full((2, 3), 0.9))
    assert torch.equal(vector.detach(), torch.ones(3))
