"""Pictures by URL list, against a server that does everything wrong; killed and resumed; nothing leaves the folder."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import filelock
import pytest
import requests

from recbole_mm.datasets import connection
from recbole_mm.datasets.connection import is_public
from recbole_mm.datasets.download import Failure, Limits, download_images, plan, read_failures
from recbole_mm.datasets.fetch import Fetcher, FetchFailed, Stopped, check_url, open_session
from recbole_mm.errors import DataError
from recbole_mm.utils.retry_after import retry_after
from tests.picture_server import PictureServer

QUICK = Limits(rate=1000, threads=4, connect_timeout=5, read_timeout=5, total_timeout=20, attempts=3, backoff=0.01)
QUICK = dataclasses.replace(QUICK, public_only=False)  # the server of these tests is on this machine
IMPATIENT = dataclasses.replace(QUICK, read_timeout=0.4, total_timeout=1.0)


@pytest.fixture
def server():
    with PictureServer() as running:
        yield running


def fetch(server: PictureServer, tmp_path: Path, *paths: str, limits: Limits = QUICK, **more: str):
    urls = {path.replace("/", "-"): server.url(path) for path in paths} | more
    return download_images(urls, tmp_path / "images", tmp_path / "failures.csv", limits)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def reasons(report) -> dict[str, tuple[str, bool]]:
    return {failure.item_id: (failure.reason, failure.final) for failure in report.failed}


# --------------------------------------------------------------------------------------------------- what a server does


def test_pictures_arrive_with_the_suffix_of_their_content(server, tmp_path):
    report = fetch(server, tmp_path, "good/1", "png/2", "to/good/3")
    assert (report.fetched, report.there, report.failed) == (3, 0, ())
    assert names(tmp_path / "images") == ["good-1.jpg", "png-2.png", "to-good-3.jpg"]
    assert not (tmp_path / "failures.csv").exists()
    assert str(report) == "pictures: 3 fetched, 0 were there, 0 failed"


@pytest.mark.parametrize(
    ("path", "reason", "final", "asked"),
    [
        ("404/x", "HTTP 404", True, 1),
        ("410/x", "HTTP 410", True, 1),
        ("403/x", "HTTP 403", True, 1),
        ("500/x", "HTTP 500", False, 3),
        ("html/x", "not a picture", True, 1),
        ("empty/x", "empty", True, 1),
        ("truncated/x", "broken JPEG image", True, 2),
        ("huge/x", "larger than 20,971,520 bytes", True, 1),
        ("endless/x", "larger than 20,971,520 bytes", True, 1),
        ("slow/x", "not done after 1 s", False, 3),
        ("headers/x", "not done after 1 s", False, 3),
        ("drop/x", "the connection was dropped", False, 3),
        ("stall/x", "timed out", False, 3),
        ("halfway/x", "timed out", False, 3),
        ("loop/x", "more than 5 redirects", True, 6),
        ("file/x", "neither http nor https", True, 1),
        ("to/to/404/x", "HTTP 404", True, 1),
    ],
)
def test_every_fault_has_an_end_and_a_reason(server, tmp_path, path, reason, final, asked):
    start = time.monotonic()
    limits = IMPATIENT if path in ("headers/x", "slow/x", "stall/x", "halfway/x") else QUICK
    report = fetch(server, tmp_path, path, "good/1", limits=limits)
    assert time.monotonic() - start < 30
    assert report.fetched == 1, "another picture suffers"
    (failure,) = report.failed
    assert failure.reason.startswith(reason)
    assert failure.final is final
    assert server.asked[path] == asked
    assert names(tmp_path / "images") == ["good-1.jpg"]
    assert read_failures(tmp_path / "failures.csv") == {failure.item_id: failure}


@pytest.mark.parametrize("path", ["flaky/x", "short/x", "broken/x"])
def test_a_passing_fault_is_tried_again(server, tmp_path, path):
    report = fetch(server, tmp_path, path)
    assert (report.fetched, report.failed) == (1, ())
    assert server.asked[path] == 2


def test_a_busy_host_is_left_alone_as_long_as_it_asks(server, tmp_path):
    start = time.monotonic()
    report = fetch(server, tmp_path, "busy/x", limits=dataclasses.replace(QUICK, threads=1))
    assert report.fetched == 1
    assert time.monotonic() - start >= 1.0
    assert server.moments[1] - server.moments[0] >= 0.99


def test_a_host_that_asks_for_too_long_is_asked_nothing_more(server, tmp_path):
    paths = ["later/x", *(f"good/{place}" for place in range(30))]
    report = fetch(server, tmp_path, *paths, limits=dataclasses.replace(QUICK, threads=1))
    assert sum(server.asked.values()) == 1
    assert len(report.failed) == 31
    assert {reason for reason, _ in reasons(report).values()} == {
        "HTTP 429: the host asks to be left alone for 86400 s"
    }
    assert not any(failure.final for failure in report.failed)
    assert "the same command tries 31 of them again" in str(report)


def test_a_dead_host_is_given_up(tmp_path):
    with PictureServer() as dead:
        url = dead.url("good/x")
    urls = {str(place): url for place in range(50)}
    limits = dataclasses.replace(QUICK, attempts=1, give_up_after=5, threads=2)
    report = download_images(urls, tmp_path / "images", tmp_path / "failures.csv", limits)
    found = [reason for reason, _ in reasons(report).values()]
    assert 5 <= found.count("no connection") <= 7
    assert len(found) == 50
    assert all("did not answer 5 times in a row" in reason for reason in found if reason != "no connection")


def test_waiting_for_ones_turn_takes_no_time_of_a_file(server):
    limits = dataclasses.replace(QUICK, total_timeout=0.5)
    fetcher = Fetcher(limits, threading.Event())
    fetcher._host(check_url(server.url(""))).hold(1.0)
    with open_session(public_only=False) as session:
        assert fetcher.fetch(session, server.url("good/x")).startswith(b"\xff\xd8")


def test_the_rate_is_kept_over_all_threads_and_counts_redirects(server, tmp_path):
    limits = dataclasses.replace(QUICK, rate=20, threads=8)
    start = time.monotonic()
    report = fetch(server, tmp_path, *(f"good/{place}" for place in range(8)), "to/good/x", limits=limits)
    assert report.fetched == 9
    assert len(server.moments) == 10
    assert time.monotonic() - start >= 9 / 20


# ------------------------------------------------------------------------------------------------ addresses not public

PUBLIC = dataclasses.replace(QUICK, public_only=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "0.0.0.0", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost", "169.254.169.254",
        "10.0.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1]", "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(server, tmp_path, host):
    port = server.server_address[1]
    report = fetch(server, tmp_path, a=f"http://{host}:{port}/good/a", limits=PUBLIC)
    (failure,) = report.failed
    assert failure.reason.endswith("is not public; --allow_private allows it")
    assert not failure.final, "the switch makes the same URL worth another try"
    assert not server.asked


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True), ("8.8.8.8", True), ("2606:2800:21f:cb07::1", True), ("64:ff9b::808:808", True),
        ("::ffff:8.8.8.8", True), ("100.64.0.1", False), ("192.168.1.1", False), ("172.16.0.1", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("192.0.2.1", False), ("fd00::1", False), ("fec0::1", False),
        ("ff02::1", False), ("::7f00:1", False), ("2001:db8::1", False), ("2001:0:4136:e378::1", False),
        ("fe80::1%eth0", False), ("2002:a9fe:a9fe::", False), ("2002:808:808::", True),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) is public


def test_a_redirect_leads_nowhere_else(server, tmp_path, monkeypatch):
    """The first host passes for a public one; what it points to is judged by itself."""
    there, refused = f"localhost:{server.server_address[1]}", f"127.0.0.2:{server.server_address[1]}"
    monkeypatch.setattr(connection, "is_public", lambda address: address in ("127.0.0.1", "::1"))
    report = fetch(server, tmp_path, a=f"http://{there}/away/{refused}/good/a", limits=PUBLIC)
    assert reasons(report)["a"][0].startswith("the address 127.0.0.2 is not public")
    assert list(server.asked) == [f"away/{refused}/good/a"]


def test_a_name_is_resolved_once_and_all_of_its_addresses_count(server, tmp_path, monkeypatch):
    asked = []
    answers = {"one.example": [["127.0.0.1"], ["10.0.0.1"]], "two.example": [["127.0.0.1", "10.0.0.1"]]}
    original = socket.getaddrinfo

    def resolve(host, port, *args, **kwargs):
        if host not in answers:
            return original(host, port, *args, **kwargs)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers[host].pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(connection, "is_public", lambda address: address == "127.0.0.1")
    port = server.server_address[1]
    report = fetch(server, tmp_path, a=f"http://one.example:{port}/good/a", limits=PUBLIC)
    assert (report.fetched, asked) == (1, ["one.example"]), "connected to what was looked at"
    report = fetch(server, tmp_path, b=f"http://two.example:{port}/good/b", limits=PUBLIC)
    assert reasons(report)["b"][0].startswith("the address 10.0.0.1 of two.example is not public")


def test_what_is_connected_to_is_looked_at_too(server, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "public_addresses", lambda host, port: ["127.0.0.1"])
    report = fetch(server, tmp_path, a=f"http://any.example:{server.server_address[1]}/good/a", limits=PUBLIC)
    assert reasons(report)["a"][0].startswith("the address 127.0.0.1 of any.example is not public")
    assert not server.asked


def test_a_proxy_may_be_private_but_not_what_is_asked_of_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    urls = {"a": "http://nowhere.invalid/a", "b": "http://169.254.169.254/b", "c": "http://localhost/c"}
    reported = reasons(fetch(server, tmp_path, limits=PUBLIC, **urls))
    assert reported["a"] == ("HTTP 404", True), "a name without an address here is left to the proxy"
    assert list(server.asked) == ["http://nowhere.invalid/a"]
    assert {reported[item][0].partition("--")[2] for item in "bc"} == {"allow_private allows it"}


# ------------------------------------------------------------------------------------------------------ names and URLs


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:image/png;base64,AAAA",
        "/etc/passwd",
        "",
        "http://",
        "http://[x/",
    ],
)
def test_other_schemes_are_never_opened(tmp_path, url):
    report = download_images({"a": url}, tmp_path / "images", tmp_path / "failures.csv", QUICK)
    assert report.failed[0].final
    assert names(tmp_path / "images") == []


@pytest.mark.parametrize(
    "item", ["../up", "a/b", "/etc/x", "..", ".hidden", "a\\b", "a\0b", "", "line\nbreak", "long" * 60, "ü" * 120]
)
def test_ids_that_are_no_file_names_are_not_fetched(server, tmp_path, item):
    report = fetch(server, tmp_path, **{item: server.url("good/x")})
    assert reasons(report) == {item: ("its id cannot be a file name", True)}
    assert not server.asked
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".failures.lock", "failures.csv"]
    assert read_failures(tmp_path / "failures.csv").keys() == {item}


def test_credentials_and_cookies_stay_here(tmp_path, monkeypatch):
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    request = requests.Request("GET", "http://127.0.0.1/x")
    assert "Authorization" in requests.Session().prepare_request(request).headers, "the test shows nothing"
    assert "Authorization" not in open_session().prepare_request(request).headers


def test_hosts():
    assert check_url("https://Example.org/a b") == "example.org"
    assert check_url("http://example.org:8080/x") == "example.org:8080"
    with pytest.raises(FetchFailed, match="no host"):
        check_url("https:///x")


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("120") == 120
    assert retry_after(None) is None
    assert retry_after("soon") is None
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < retry_after(later) <= 90
    assert retry_after("Mon, 01 Jan 2001 00:00:00 GMT") == 0


# ------------------------------------------------------------------------------------------------------------ resuming


def test_what_is_there_and_what_failed_for_good_is_not_asked_again(server, tmp_path):
    server.recovers_after = 4  # beyond this run's three attempts
    paths = ["good/1", "404/2", "flaky/3"]
    first = fetch(server, tmp_path, *paths)
    assert reasons(first) == {"404-2": ("HTTP 404", True), "flaky-3": ("HTTP 503", False)}
    urls = {path.replace("/", "-"): server.url(path) for path in paths}
    told = plan(urls, tmp_path / "images", tmp_path / "failures.csv", QUICK)
    assert "3 URLs; 1 are in" in told
    assert "1 failed for good (failures.csv); 1 to fetch from 127.0.0.1:" in told
    second = fetch(server, tmp_path, *paths)
    assert (second.fetched, second.there) == (1, 1)
    assert reasons(second) == {"404-2": ("HTTP 404", True)}
    assert (server.asked["good/1"], server.asked["404/2"], server.asked["flaky/3"]) == (1, 1, 4)
    assert plan(urls, tmp_path / "images", tmp_path / "failures.csv", QUICK).endswith("none to fetch")
    (tmp_path / "failures.csv").unlink()
    fetch(server, tmp_path, *paths)
    assert server.asked["404/2"] == 2


def test_another_url_of_a_failed_item_is_tried(server, tmp_path):
    fetch(server, tmp_path, a=server.url("404/a"))
    assert fetch(server, tmp_path, a=server.url("good/a")).fetched == 1
    assert not (tmp_path / "failures.csv").exists()


def test_a_line_of_failures_cut_short_by_a_kill_is_passed_over(tmp_path):
    path = tmp_path / "failures.csv"
    path.write_text('item_id,url,reason,final\n1,http://x/1,HTTP 404,yes\n2,http://x/2,"HTTP')
    assert read_failures(path) == {"1": Failure("1", "http://x/1", "HTTP 404", True)}


RUN = """
import sys
from pathlib import Path
from recbole_mm.datasets import connection
from recbole_mm.datasets.connection import is_public
from recbole_mm.datasets.download import Limits, download_images
base, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
urls = {str(place): f"{base}good/{place}" for place in range(count)} | {"gone": f"{base}404/gone"}
limits = Limits(rate=1000, threads=4, backoff=0.01, public_only=False)
print(download_images(urls, folder / "images", folder / "failures.csv", limits))
"""


def test_killed_at_any_time_it_fetches_only_what_is_missing(server, tmp_path):
    server.pace = 0.01
    count = 120
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", RUN, server.url(""), str(tmp_path), str(count)]
    kills = 0
    for stop_at in (20, 60):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while sum(server.asked.values()) < stop_at and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        for path in (tmp_path / "images").glob("[0-9]*"):
            assert path.suffix == ".jpg"
            assert path.read_bytes().endswith(b"\xff\xd9"), "half a picture under its final name"
    assert kills == 2
    (tmp_path / "images" / ".7.partial").write_bytes(b"left by a kill")
    before = set(names(tmp_path / "images"))
    asked = server.asked.copy()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    there = sum(name.endswith(".jpg") for name in before)
    assert 20 <= there < count
    assert f"{count - there} fetched, {there} were there, 1 failed (HTTP 404: 1)" in done.stdout
    assert names(tmp_path / "images") == sorted(f"{place}.jpg" for place in range(count))
    again = {path for path in server.asked if server.asked[path] > asked[path]}
    assert again <= {f"good/{place}" for place in range(count) if f"{place}.jpg" not in before} | {"404/gone"}
    # Each kill can waste the four requests in flight, no more.
    assert sum(server.asked.values()) <= count + 1 + 2 * 5


def test_ctrl_c_says_how_far_it_came(server, tmp_path, monkeypatch):
    import recbole_mm.datasets.download as module

    original = module.progress

    def interrupted(iterable, *arguments, **options):
        def some():
            for place, value in enumerate(iterable):
                if place == 3:
                    raise KeyboardInterrupt
                yield value

        return original(some(), *arguments, **options)

    monkeypatch.setattr(module, "progress", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted: 3 of 30 pictures are in .*; the same command"):
        fetch(server, tmp_path, *(f"good/{place}" for place in range(30)))
    monkeypatch.undo()
    assert fetch(server, tmp_path, *(f"good/{place}" for place in range(30))).failed == ()
    assert len(names(tmp_path / "images")) == 30


def test_a_stop_ends_every_wait(server):
    stop = threading.Event()
    fetcher = Fetcher(dataclasses.replace(QUICK, rate=0.01), stop)
    host = fetcher._host("example.org")
    host.take_turn()
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    with pytest.raises(Stopped):
        host.take_turn()
    assert time.monotonic() - start < 50, "its turn comes after 100 seconds"


def test_two_processes_do_not_fetch_into_one_folder(server, tmp_path):
    with (
        filelock.FileLock(tmp_path / ".failures.lock"),
        pytest.raises(DataError, match="another process is fetching into it"),
    ):
        fetch(server, tmp_path, "good/1")
    assert not server.asked


def test_a_full_disk_is_one_line(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"images: cannot be written \(No space left on device\)"):
        fetch(server, tmp_path, "good/1", "good/2")
    assert names(tmp_path / "images") == []
