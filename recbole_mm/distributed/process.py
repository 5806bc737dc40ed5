"""What a process of Ray's must take over from the command that it works for."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch


def settle(cwd: str, cpus: float) -> None:
    """Make Ray's process work as the command's own would: in its directory, on its share of the machine.

    Args:
        cwd: working directory of the command; Ray changes into a folder of its own.
        cpus: cores that are this process's. `OMP_NUM_THREADS` may ask for fewer threads.
    """
    gc.collect()  # the process may have had other work before
    torch.cuda.empty_cache()
    if Path(cwd).is_dir():
        os.chdir(cwd)
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, int(cpus))
    torch.set_num_threads(min(threads, int(given)) if given.isdigit() and int(given) else threads)
