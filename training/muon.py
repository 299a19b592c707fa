"""Muon: momentum whose kernels move by orthogonal matrices (Jordan et al., "Muon", 2024).

The update of a kernel (K, ...), flattened to (K, R), is the momentum U S V' with S replaced by about 1, so that
directions which gradients rarely show are learnt as fast as the others. Biases, scales and shifts follow Adam.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_BETAS, _EPS = (0.9, 0.999), 1e-8
_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the odd polynomial that takes singular values to [0.7, 1.2], Jordan et al.
_ITERATIONS = 5
_VECTORS = 0.15  # the rate of biases, scales and shifts, as a part of the kernels'


class Muon(torch.optim.Optimizer):
    """Muon on parameters of two dimensions and more, Adam on the others.

    Args:
        parameters: Those of a network.
        lr: Rate of the kernels; that of the others is 0.15 of it.
        weight_decay: Of the kernels alone, decoupled as in AdamW.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        every = list(parameters)
        groups = [
            {"params": [p for p in every if p.dim() > 1], "kernels": True},
            {"params": [p for p in every if p.dim() <= 1], "kernels": False},
        ]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter that has a gradient; returns what `closure` returns."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            move = self._move_kernel if group["kernels"] else self._move_vector
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move(parameter, parameter.grad, group)
        return loss

    def _move_kernel(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        momentum = self.state[kernel].setdefault("momentum", torch.zeros_like(kernel))
        momentum.lerp_(gradient, 1.0 - _MOMENTUM)
        matrix = gradient.lerp(momentum, _MOMENTUM).reshape(len(kernel), -1)  # Nesterov's
        rows, columns = matrix.shape
        kernel.mul_(1.0 - group["lr"] * group["weight_decay"])
        kernel.add_(orthogonal(matrix).reshape(kernel.shape), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _move_vector(self, vector: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[vector]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(vector), "square": torch.zeros_like(vector)}
        state["step"] += 1
        state["mean"].lerp_(gradient, 1.0 - _BETAS[0])
        state["square"].lerp_(gradient.square(), 1.0 - _BETAS[1])
        mean = state["mean"] / (1.0 - _BETAS[0] ** state["step"])
        square = state["square"] / (1.0 - _BETAS[1] ** state["step"])
        vector.addcdiv_(mean, square.sqrt_().add_(_EPS), value=-_VECTORS * group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V' of a matrix U S V', (R, C) float32: the singular values that count end in about [0.7, 1.2].

    Five Newton-Schulz iterations x <- (a + b x x' + c (x x')^2) x. They are polynomials of the first x x', so they
    are run on this small matrix, and their product meets x once.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    x = matrix / matrix.norm().clamp(min=1e-7)
    gram, product = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(_ITERATIONS):
        factor = _B * gram + _C * (gram @ gram)
        factor.diagonal().add_(_A)
        product = factor @ product
        gram = factor @ gram @ factor
    out: Tensor = product @ x
    return out
