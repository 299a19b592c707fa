"""Where a training runs: Lightning Fabric on one device, or one process for each of several.

    the caller ── starts ──> process 0 (writes files, sends lines of text back)  <── gradients ──>  process 1, 2, ..

The caller takes no part: it passes on what process 0 reports, and ends all of them when one fails.
"""

import importlib
import logging
import os
import re
import socket
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from teachers.recipe import TeachConfig, TeachError

Report = Callable[[str], None]

#: How long processes wait for the first one, which validates alone.
_PATIENCE = timedelta(hours=6)


class Work(Protocol):
    """What every process does; must be picklable, such as a `functools.partial` of a function of a module."""

    def __call__(self, fabric: Any, report: Report) -> None:
        """Work on `fabric` (a `lightning_fabric.Fabric`); only process 0 may write or is heard."""


def spread(work: Work, config: TeachConfig, report: Report) -> None:
    """Run `work` here, or in `config.devices` processes.

    Raises:
        TeachError: A GPU is asked for and there are none or too few; or a process failed, with its last words.
    """
    accelerator = accelerator_of(config)
    if config.devices == 1:
        work(_fabric(config, accelerator), report)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // config.devices)
    context: Any = start_processes(  # type: ignore[no-untyped-call]
        _process, (work, config, accelerator, port, threads, lines), config.devices, join=False
    )
    try:
        while not context.join(timeout=0.1):
            _pass_on(lines, report)
        _pass_on(lines, report)
    except ProcessRaisedException as error:
        words = re.sub(r"^[\w.]+Error: ", "", str(error).strip().splitlines()[-1])
        raise TeachError(f"process {error.error_index} of {config.devices}: {words}") from error
    except ProcessExitedException as error:
        raise TeachError(f"one of {config.devices} processes ended: {error}; start again to go on") from error
    finally:
        for process in context.processes:
            process.terminate()
            process.join()


def accelerator_of(config: TeachConfig) -> str:
    """Kind of the devices to use, "cpu" or "cuda".

    Raises:
        TeachError: GPUs are asked for that are not here.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.accelerator == "cpu" or (config.accelerator == "auto" and not found):
        if config.precision == "16-mixed":
            raise TeachError(
                "teach.precision is '16-mixed', which needs a GPU, but torch finds none: choose bf16-mixed"
            )
        return "cpu"
    if found < config.devices:
        raise TeachError(
            f"teach.accelerator is {config.accelerator!r} with {config.devices} devices, but torch finds {found} GPUs "
            "here: choose cpu or fewer devices"
        )
    return "cuda"


def _process(rank: int, work: Work, config: TeachConfig, accelerator: str, port: int, threads: int, lines: Any) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    fabric = _fabric(config, accelerator)
    torch.set_num_threads(threads)  # Fabric has just set another number
    work(fabric, lines.put if rank == 0 else _unsaid)
    torch.distributed.destroy_process_group()


def _fabric(config: TeachConfig, accelerator: str) -> Any:
    # Imported here: it takes a second, which only a training should cost.
    lightning = importlib.import_module("lightning_fabric")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would greet on the terminal
    parts = importlib.import_module("lightning_fabric.plugins.environments")
    strategies = importlib.import_module("lightning_fabric.strategies")
    fabric = lightning.Fabric(
        accelerator=accelerator,
        devices=config.devices,
        strategy=strategies.DDPStrategy(timeout=_PATIENCE) if config.devices > 1 else "auto",
        precision=config.precision,
        plugins=[parts.LightningEnvironment()],  # else it would look for a scheduler of its own accord
    )
    fabric.launch()
    return fabric


def _pass_on(lines: Any, report: Report) -> None:
    while not lines.empty():
        report(lines.get())


def _unsaid(_: str) -> None:
    pass
