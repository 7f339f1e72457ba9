"""Waiting for a job in front of a terminal: a bar per stage with its ETA, and its end in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import Progress, TaskID

from ppdd_core.cli.console import bar_columns, err, remark
from ppdd_core.errors import Interrupted
from services.cli.remote import Node, NodeError


def watch(node: Node, job_id: str) -> dict[str, Any]:
    """Show a job's progress on stderr until it has ended, and return the job; NodeError where it did not succeed.

    Ctrl-C leaves the job running: it is the node's, not this command's.
    """
    try:
        with _bars() as bars:
            for kind, event in node.follow(job_id):
                if kind == "progress":
                    bars.show(event["data"])
                elif kind == "state":
                    bars.say(event["data"])
    except KeyboardInterrupt:
        raise Interrupted(
            f"the job goes on at the node. See it again: ppdd job wait {job_id}; stop it: ppdd job cancel {job_id}"
        ) from None
    job: dict[str, Any] = node.get(f"/jobs/{job_id}")
    if job["state"] != "succeeded":
        error = job["error"] or {"detail": "", "resumable": job["state"] == "cancelled"}
        onward = f" (it can go on: ppdd job resume {job_id})" if error["resumable"] else ""
        raise NodeError(
            f"job {job_id} {'was cancelled' if job['state'] == 'cancelled' else 'failed: ' + error['detail']}{onward}"
        )
    return job


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self.bars, self.tasks = bars, dict[str, TaskID]()

    def show(self, progress: dict[str, Any]) -> None:
        stage, total = str(progress.get("stage", "")), progress.get("total") or None
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total, note="")
            if not err.is_terminal:
                remark(f"{stage} …")
        self.bars.update(
            self.tasks[stage],
            completed=progress.get("done", 0),
            total=total,
            note=progress.get("note", ""),
        )

    def say(self, state: dict[str, Any]) -> None:
        if state.get("detail"):
            remark(f"{state['state']}: {state['detail']}")


@contextmanager
def _bars() -> Iterator[_Bars]:
    with Progress(*bar_columns(), console=err, disable=not err.is_terminal) as bars:
        yield _Bars(bars)
