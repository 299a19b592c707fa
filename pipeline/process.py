"""What must be set before anything heavy is imported; so this module imports nothing heavy itself."""

from __future__ import annotations

import logging
import os


def prepare_process() -> None:
    """Makes OpenMP and BLAS sleep while they wait instead of burning a core, and silences what libraries log on load.

    Their log stays if CURATE_DEBUG is set.
    """
    if not os.environ.get("CURATE_DEBUG"):
        logging.getLogger().addHandler(logging.NullHandler())
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
