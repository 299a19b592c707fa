"""The ``curate`` command, top to bottom: which module knows the command, and how every error is told."""

from __future__ import annotations

from pipeline.process import prepare_process

prepare_process()  # before anything loads OpenMP

import importlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from manifests.text import clean  # noqa: E402
from pipeline import desk_flags  # noqa: E402
from pipeline.errors import CurateError  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 1 failed, 2 wrong usage."""
    console = Console(file=sys.stderr, soft_wrap=True)
    words = sys.argv[1:] if argv is None else argv
    try:
        # Only what the command needs is loaded: a look at a release waits for no torch.
        family = "pipeline.desk" if words and words[0] in desk_flags.COMMANDS else "pipeline.commands"
        code: int = importlib.import_module(family).run(words, console)
        return code
    except CurateError as error:
        console.print(Text.assemble(("curate: error:", "bold red"), f" {clean(str(error))}"), highlight=False)
        return error.exit_code
    except OSError as error:
        console.print(f"curate: error: {clean(str(error))}; check the path and the disk", markup=False, highlight=False)
        console.print("what was committed is kept, the same command goes on from there")
        return 1
    except Exception as error:  # the last line of defence: a defect of ours
        if os.environ.get("CURATE_DEBUG"):
            raise
        told = f"curate: this is a defect: {type(error).__name__}: {clean(str(error))}"
        console.print(told, markup=False, highlight=False)
        console.print("what was committed is kept; set CURATE_DEBUG=1 for the traceback and report it, please")
        return 1
    except KeyboardInterrupt:
        console.print("curate: stopped; what was committed is kept, the same command goes on from there")
        return 1


if __name__ == "__main__":
    sys.exit(main())
