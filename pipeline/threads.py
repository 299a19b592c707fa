"""One thread per worker: equal bits whatever the number of workers, and no spinning on shared cores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import cv2
import threadpoolctl
import torch


def one_thread() -> None:
    """Limits OpenCV, BLAS, OpenMP and torch to one thread in this process."""
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)
    torch.set_num_threads(1)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets torch use ``count`` threads inside the block (a driver step that trains one network)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
