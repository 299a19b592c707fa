"""Where the folder of real data, goldens and models is that tests and benchmarks read."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("CURATE_SHARED", "../shared"))
