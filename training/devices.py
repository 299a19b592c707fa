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
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

Report = Callable[[str], None]

Accelerator = Literal["cpu", "cuda", "auto"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

#: How long processes wait for the first one, which validates alone.
_PATIENCE = timedelta(hours=6)


class DeviceError(RuntimeError):
    """A training cannot run on the devices it asks for, or one of its processes failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """What a training runs on.

    Attributes:
        accelerator: "cpu", "cuda", or "auto": a GPU if there is one.
        devices: Processes that share every batch, each on a device of its own.
        precision: Arithmetic of forward and backward: "32-true", "bf16-mixed" or, on a GPU, "16-mixed".
        section: Of the config file, for messages.
    """

    accelerator: Accelerator = "cpu"
    devices: int = 1
    precision: Precision = "32-true"
    section: str = "train"


class Work(Protocol):
    """What every process does; must be picklable, such as a `functools.partial` of a function of a module."""

    def __call__(self, fabric: Any, report: Report) -> None:
        """Work on `fabric` (a `lightning_fabric.Fabric`); only process 0 may write or is heard."""


def spread(work: Work, on: Devices, report: Report) -> None:
    """Run `work` here, or in `on.devices` processes.

    Raises:
        DeviceError: A GPU is asked for and there are none or too few; or a process failed, with its last words.
    """
    accelerator = accelerator_of(on)
    if on.devices == 1:
        work(_fabric(on, accelerator), report)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // on.devices)
    context: Any = start_processes(  # type: ignore[no-untyped-call]
        _process, (work, on, accelerator, port, threads, lines), on.devices, join=False
    )
    try:
        while not context.join(timeout=0.1):
            _pass_on(lines, report)
        _pass_on(lines, report)
    except ProcessRaisedException as error:
        words = re.sub(r"^[\w.]+Error: ", "", str(error).strip().splitlines()[-1])
        raise DeviceError(f"process {error.error_index} of {on.devices}: {words}") from error
    except ProcessExitedException as error:
        raise DeviceError(f"one of {on.devices} processes ended: {error}; start again to go on") from error
    finally:
        for process in context.processes:
            process.terminate()
            process.join()


def accelerator_of(on: Devices) -> str:
    """Kind of the devices to use, "cpu" or "cuda".

    Raises:
        DeviceError: GPUs are asked for that are not here.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if on.accelerator == "cpu" or (on.accelerator == "auto" and not found):
        if on.precision == "16-mixed":
            raise DeviceError(
                f"{on.section}.precision is '16-mixed', which needs a GPU, but torch finds none: choose bf16-mixed"
            )
        return "cpu"
    if found < on.devices:
        raise DeviceError(
            f"{on.section}.accelerator is {on.accelerator!r} with {on.devices} devices, but torch finds {found} GPUs "
            "here: choose cpu or fewer devices"
        )
    return "cuda"


def _process(rank: int, work: Work, on: Devices, accelerator: str, port: int, threads: int, lines: Any) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    fabric = _fabric(on, accelerator)
    torch.set_num_threads(threads)  # Fabric has just set another number
    work(fabric, lines.put if rank == 0 else _unsaid)
    torch.distributed.destroy_process_group()


def _fabric(on: Devices, accelerator: str) -> Any:
    # Imported here: it takes a second, which only a training should cost.
    lightning = importlib.import_module("lightning_fabric")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would greet on the terminal
    parts = importlib.import_module("lightning_fabric.plugins.environments")
    strategies = importlib.import_module("lightning_fabric.strategies")
    fabric = lightning.Fabric(
        accelerator=accelerator,
        devices=on.devices,
        strategy=strategies.DDPStrategy(timeout=_PATIENCE) if on.devices > 1 else "auto",
        precision=on.precision,
        plugins=[parts.LightningEnvironment()],  # else it would look for a scheduler of its own accord
    )
    fabric.launch()
    return fabric


def _pass_on(lines: Any, report: Report) -> None:
    while not lines.empty():
        report(lines.get())


def _unsaid(_: str) -> None:
    pass
