"""`recbole-mm serve`: answers requests for recommendations of a finished run over HTTP, and shows a page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from recbole_mm.cli.arguments import PROGRAM
from recbole_mm.cli.recommend import quiet, settings_of
from recbole_mm.errors import ConfigError
from recbole_mm.utils.escaping import one_line
from recbole_mm.utils.paths import given_path

KEY_ENV = "RECBOLE_MM_API_KEY"
"""Environment variable with the key that requests must show."""
SHORTEST_KEY = 16

_HELP = f"""Answer recommendations of a finished run over HTTP, and show a page of them at /.

RUN is the folder of a run, a link to one, or a folder of runs, of which the one finished last is served. A newer one
takes over, without a lost request, within --look_every seconds or on SIGHUP. SIGTERM and Ctrl-C end the server once
what has been asked is answered. /openapi.json describes the paths. Other arguments, --key=value, are settings
of the run.

Where others than this machine can ask (--host), {KEY_ENV} holds a key that each request shows as
`Authorization: Bearer KEY`.
"""

_EXAMPLES = f"""examples:
  {PROGRAM} serve saved/SASRec-shop-1a2b3c4d
  {PROGRAM} serve saved --port 9000
  {KEY_ENV}=$(openssl rand -hex 16) {PROGRAM} serve saved/current --host 0.0.0.0
  curl -d '{{"user": "ann"}}' -H 'Content-Type: application/json' http://127.0.0.1:8000/recommend

docs/serve.md says more.
"""


def main(arguments: Sequence[str]) -> int:
    """Serve a run until the process is told to end.

    Raises:
        ConfigError: an argument is malformed, the extra is not installed, the port is in use, or a key is missing.
        RecboleMMError: the run cannot be opened.
    """
    parsed, others = _parser().parse_known_args(arguments)
    changed = settings_of(others)
    if lacking := [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]:
        raise ConfigError(f"serve needs {lacking[0]}: pip install 'recbole_mm[serve]'")
    quiet()
    leave_a_core()
    from recbole_mm.serving.app import create_app
    from recbole_mm.serving.guard import is_local
    from recbole_mm.serving.served import opened_at
    from recbole_mm.serving.server import listen, rest_memory, serve
    from recbole_mm.serving.service import Service

    key = checked_key(os.environ.get(KEY_ENV, "").strip(), is_local(parsed.host), parsed.host)
    with listen(parsed.host, parsed.port) as listening:  # before the run is opened, which takes a while
        opened = partial(opened_at, changed=changed)
        limits = (parsed.look_every, parsed.batch, parsed.waiting)
        service = Service(Path(parsed.run), opened, *limits, after_change=rest_memory)
        address, port = listening.getsockname()[:2]
        host = f"[{address}]" if ":" in address else address
        ready = one_line(f"serving {service.served.name} at http://{host}:{port}/")
        app = create_app(service, key, parsed.timeout)
        serve(app, service, listening, parsed.connections, parsed.timeout, ready)
    print("ended", flush=True)
    return 0


def leave_a_core() -> None:
    """Score with all cores but one, which HTTP has to itself, unless OMP_NUM_THREADS says how many."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def checked_key(key: str, is_local: bool, host: str) -> str | None:
    """Return the key; None where there is none and none is needed.

    Raises:
        ConfigError: it is missing or too short to be one.
    """
    if key and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable()):
        raise ConfigError(f"{KEY_ENV} is no key: give {SHORTEST_KEY} ASCII characters at least (openssl rand -hex 16)")
    if not key and not is_local:
        raise ConfigError(
            f"--host={host} lets other machines ask, and {KEY_ENV} holds no key; set it, or serve 127.0.0.1 alone"
        )
    return key or None


def _number(kind: type, least: float, most: float, text: str) -> float:
    """Read a number within bounds, for `argparse`."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not from {least:g} to {most:g}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} serve",
        usage=f"{PROGRAM} serve RUN [options] [--key=value ...]",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, whole, seconds = parser.add_argument, partial(_number, int), partial(_number, float)
    add("run", type=given_path, metavar="RUN", help="folder of a finished run, a link to one, or a folder of runs")
    add("--host", default="127.0.0.1", help="address that is listened at (127.0.0.1: this machine alone)")
    add("--port", type=partial(whole, 0, 65535), default=8000, metavar="N", help="0 takes any that is free (8000)")
    add("--timeout", type=partial(seconds, 0.1, 3600), default=30, metavar="S", help="seconds of a request (30)")
    add("--look_every", "--look-every", type=partial(seconds, 0, 86400), default=10, metavar="S",
        help="seconds between looks for a newer run; 0 looks on SIGHUP alone (10)")  # fmt: skip
    add("--batch", type=partial(whole, 1, 4096), default=64, metavar="N", help="requests scored together at most (64)")
    add("--waiting", type=partial(whole, 1, 100_000), default=256, metavar="N",
        help="requests that wait to be scored at most; 503 is answered to others (256)")  # fmt: skip
    add("--connections", type=partial(whole, 1, 100_000), default=512, metavar="N",
        help="connections that are open at most (512)")  # fmt: skip
    return parser
