"""The command that shows a release in a browser."""

from __future__ import annotations

import argparse
import functools
import webbrowser

from rich.console import Console

from pipeline.released import one_release
from review.server import serve as serve_release


def serve(values: argparse.Namespace, _: Console) -> int:
    """Serves the review page until Ctrl-C."""
    serve_release(
        one_release(values.release),
        port=values.port,
        reviewer=values.reviewer,
        read_only=values.read_only,
        open_browser=webbrowser.open if values.open else None,
        say=functools.partial(print, flush=True),
    )
    return 0
