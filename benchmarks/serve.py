"""Load on `recbole-mm serve`: milliseconds from the moment a request was due to its answer, while runs change.

    python benchmarks/serve.py --folder DIR                                  # 200 requests/s, SASRec, 80,000 items
    taskset -c 0,1 python benchmarks/serve.py --folder DIR --rates 100,200,400 --changes 2
    python benchmarks/serve.py --folder DIR --users 5000 --items 4000 --interactions 60000 --rates 50 --seconds 5

The data are those of `scale.py`, and the runs SASRecs as they are before training, whose lists cost what those of
trained ones do. Requests are due at even distances whether or not earlier ones have been answered, so a server that
falls behind shows in the milliseconds. Every other request is for a user of the data, the others are histories.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import markdown_table
from recommend import make_run
from scale import dataset_name, write_dataset

CONNECTIONS = 64
HISTORY = 10
K = 10


@dataclass
class Seen:
    """What a load saw.

    Attributes:
        milliseconds: of each answer, from when its request was due.
        wrong: requests without an answer of status 200.
    """

    milliseconds: list[float] = field(default_factory=list)
    wrong: int = 0


class Connection:
    """A connection that is kept open, with as little of HTTP as this server's answers need: this is no client.

    Args:
        port: of the server, on this machine.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> int:
        """Return the status of the answer.

        Raises:
            OSError, EOFError: there was none.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        writer.write(head.encode() + b"\r\n\r\n" + body)
        try:
            told = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(told.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        except (OSError, EOFError):
            self._streams = None
            raise
        return int(told[9:12])


async def load(port: int, bodies: list[bytes], rate: float, seconds: float) -> Seen:
    """Send requests that are due at a rate (1/s) for some seconds."""
    seen, free = Seen(), asyncio.Queue[Connection]()
    for _ in range(CONNECTIONS):
        free.put_nowait(Connection(port))

    async def ask(body: bytes, due: float) -> None:
        connection = await free.get()
        try:
            seen.wrong += await connection.post("/recommend", body) != 200
        except (OSError, EOFError):
            seen.wrong += 1
        seen.milliseconds.append((time.perf_counter() - due) * 1000)
        free.put_nowait(connection)

    begun, asked = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        due = begun + number / rate
        await asyncio.sleep(max(0, due - time.perf_counter()))
        asked.append(asyncio.create_task(ask(bodies[number % len(bodies)], due)))
    await asyncio.gather(*asked)
    return seen


async def loaded(server: subprocess.Popen, arguments: argparse.Namespace, port: int, rate: float, link: Path) -> Seen:
    """Load a server, and have it change runs meanwhile."""
    if rate:
        await load(port, bodies_of(arguments), min(rate, 50), 2)  # not counted: connections, and caches of pages
    loading = asyncio.create_task(load(port, bodies_of(arguments), rate, arguments.seconds))
    for _ in range(arguments.changes):
        await asyncio.sleep(arguments.seconds / (arguments.changes + 1))
        turn(link, runs_of(arguments))
        server.send_signal(signal.SIGHUP)
    return await loading


def bodies_of(arguments: argparse.Namespace) -> list[bytes]:
    """Return requests, half of them by users and half by histories, of which a few items were never chosen."""
    draw = random.Random(0)
    users = [{"user": f"u{draw.randrange(arguments.users)}", "k": K} for _ in range(500)]
    items = [f"i{item}" for item in range(arguments.items)]
    histories = [{"history": draw.sample(items, HISTORY), "skip_unknown": True, "k": K} for _ in range(500)]
    return [json.dumps(one).encode() for pair in zip(users, histories, strict=True) for one in pair]


def runs_of(arguments: argparse.Namespace) -> list[Path]:
    name = f"SASRec-{dataset_name(arguments.users)}-served"
    return [Path(arguments.folder) / f"{name}-{number}" for number in (1, 2)]


def turn(link: Path, runs: list[Path]) -> None:
    """Have a link lead to the other run."""
    other = runs[1] if link.exists() and link.resolve() == runs[0].resolve() else runs[0]
    draft = link.with_name(f"{link.name}.next")
    draft.unlink(missing_ok=True)
    draft.symlink_to(other.resolve())
    draft.replace(link)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where the synthetic dataset and the runs go")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=80_000)
    parser.add_argument("--interactions", type=int, default=2_000_000)
    parser.add_argument("--rates", default="200", help="requests per second, a row each")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--changes", type=int, default=0, help="changes of the run during each row")
    arguments = parser.parse_args()
    folder, link = Path(arguments.folder), Path(arguments.folder) / "served"
    write_dataset(folder, arguments.users, arguments.items, arguments.interactions)
    for run_dir in runs_of(arguments):
        if not (run_dir / "result.json").is_file():
            make_run(arguments, run_dir)
    turn(link, runs_of(arguments))
    command = [sys.executable, "-m", "recbole_mm.cli", "serve", str(link), "--port=0", "--look_every=0"]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as server:
        assert server.stdout is not None
        port = re.search(r":(\d+)/", server.stdout.readline())
        assert port is not None
        for rate in map(float, arguments.rates.split(",")):
            seen = asyncio.run(loaded(server, arguments, int(port[1]), rate, link))
            shown = np.percentile(seen.milliseconds, [50, 95, 99, 100])
            rows.append([f"{rate:g}", len(seen.milliseconds), seen.wrong, *(f"{value:.1f}" for value in shown)])
            print(" | ".join(map(str, rows[-1])), flush=True)
        server.send_signal(signal.SIGTERM)
    head = ["requests/s", "requests", "not answered", "p50, ms", "p95, ms", "p99, ms", "slowest, ms"]
    print("\n" + markdown_table(head, rows))


if __name__ == "__main__":
    main()
