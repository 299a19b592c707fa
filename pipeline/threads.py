"""One thread per worker: equal bits whatever the number of workers, and no spinning on shared cores."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

import cv2
import threadpoolctl


def prepare_process() -> None:
    """To be called before anything heavy is imported.

    OpenMP and BLAS sleep while they wait instead of burning a core; what libraries log while they load stays silent
    unless CURATE_DEBUG is set.
    """
    if not os.environ.get("CURATE_DEBUG"):
        logging.getLogger().addHandler(logging.NullHandler())
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def one_thread() -> None:
    """Limits OpenCV, BLAS, OpenMP, and torch if it is loaded, to one thread in this process."""
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets torch use ``count`` threads inside the block (a driver step that trains one network)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
