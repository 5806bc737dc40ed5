"""What Locust's users ask a server: each once a second, from a moment of its own, half by user and half by history.

    SERVE_USERS=100000 SERVE_ITEMS=80000 locust -f benchmarks/serve_load.py --headless -u 200 -r 200 -t 30s --host URL

`serve.py` calls it. Of so many users at one request a second, a slow answer delays one user's next request alone, so
requests come at their rate whether or not earlier ones have been answered.
"""

import os
import random
import time

import gevent
from locust import FastHttpUser, task

USERS, ITEMS = int(os.environ["SERVE_USERS"]), int(os.environ["SERVE_ITEMS"])
HISTORY, K = 10, 10


class Visitor(FastHttpUser):
    """Somebody who asks for a list once a second."""

    def on_start(self) -> None:
        """Choose a moment of a second; by `constant_throughput` all would ask in the moment of their start."""
        self.turn = time.monotonic() + random.random()
        gevent.sleep(self.turn - time.monotonic())

    def wait_time(self) -> float:
        """Return the seconds to the same moment of the next second."""
        self.turn += 1
        return max(0.0, self.turn - time.monotonic())

    @task
    def of_user(self) -> None:
        """Ask for a user of the data."""
        self.client.post("/recommend", json={"user": f"u{random.randrange(USERS)}", "k": K}, name="user")

    @task
    def of_history(self) -> None:
        """Ask for somebody new; a few items were never chosen by anybody, and are unknown to the run."""
        history = [f"i{item}" for item in random.sample(range(ITEMS), HISTORY)]
        self.client.post("/recommend", json={"history": history, "skip_unknown": True, "k": K}, name="history")
