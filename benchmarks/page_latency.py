"""How long the node takes for each page of the dashboard, with 10,000 jobs and 1,000 packages.

    python benchmarks/page_latency.py [--rounds 40] [--jobs 10000] [--packages 1000]

The real app behind a real server in this process, SQLite, one reader who is logged in as an administrator and asks for
every page in turn, round after round; the first round is not counted. Prints the milliseconds from request to whole
answer (p50, p95, longest) and the bytes of each page as JSON, the slowest page first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import httpx2

from services.auth import service as auth
from services.auth.models import User
from tests.browser.seeing import Site, furnished_site
from tests.browser.test_every_page import addresses


def main() -> None:
    """Measure, and print what was found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--jobs", type=int, default=10_000)
    options.add_argument("--packages", type=int, default=1_000)
    chosen = options.parse_args()
    with (
        redirect_stdout(sys.stderr),  # furnishing a node checks a dataset, which says so
        tempfile.TemporaryDirectory() as folder,
        furnished_site(Path(folder), jobs=chosen.jobs, packages=chosen.packages) as site,
        httpx2.Client(
            base_url=site.url, headers=_session(site), timeout=60, follow_redirects=True
        ) as client,
    ):
        times: dict[str, list[float]] = {address: [] for address in addresses(site)}
        sizes: dict[str, int] = {}
        for turn in range(chosen.rounds + 1):
            for address, some in times.items():
                asked = time.perf_counter()
                answer = client.get(address)
                taken = 1000 * (time.perf_counter() - asked)
                answer.raise_for_status()
                sizes[address] = len(answer.content)
                if turn:
                    some.append(taken)
    pages = {
        address: {**_figures(some), "bytes": sizes[address]} for address, some in times.items()
    }
    slowest = dict(sorted(pages.items(), key=lambda one: -one[1]["p95"]))
    found = {
        "cores": os.cpu_count(),
        "jobs": chosen.jobs,
        "packages": chosen.packages,
        "rounds": chosen.rounds,
    }
    sys.stdout.write(json.dumps({**found, "milliseconds": slowest}, indent=2) + "\n")


def _session(site: Site) -> dict[str, str]:
    settings = site.resources.settings.session
    with site.resources.sessions.begin() as session:
        user = session.get_one(User, site.furnished.users["ada"])
        signed_in = auth.start_session(session, user, settings, user_agent="bench", via="password")
    return {"Cookie": f"ppdd_session={signed_in.cookie}"}


def _figures(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    p95 = ordered[round(0.95 * (len(ordered) - 1))]
    found = {"p50": statistics.median(ordered), "p95": p95, "max": ordered[-1]}
    return {name: round(value, 1) for name, value in found.items()}


if __name__ == "__main__":
    main()
