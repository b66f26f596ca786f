"""What happened in the pools of workers, a JSON line each: batches with the times of their requests, workers that got ready, ended and were replaced.

Times are those of `time.monotonic`, which all processes of a machine share, so that who sent the requests can lay both sides of a run over each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from .request_log import RequestLog


class Journal(RequestLog):
    """Writes batches and what became of workers, for one model.

    Args:
        path: The file; ``-`` is standard error; None: nothing is written.

    Raises:
        ServerError: the file cannot be written.
    """

    what = "journal"

    def batch(self, model: tuple[str, str], worker: int, at: float, seconds: float, items: Sequence[int], queued: Sequence[float]) -> None:
        """A batch is back.

        Args:
            model: Name and version.
            worker: Number of the worker's process.
            at: When the batch was sent to it.
            seconds: How long that took, the way there and back included.
            items: Of each request in it.
            queued: When each of them came.
        """
        times = [round(time, 7) for time in queued]
        self.write(event="batch", model=model, worker=worker, at=round(at, 7), seconds=round(seconds, 7), items=items, queued=times)

    def ready(self, model: tuple[str, str], worker: int, at: float, seconds: float, *, again: bool) -> None:
        """A worker takes batches from now on, `seconds` after its process was started; `again` where it stands in for one that ended."""
        self.write(event="ready", model=model, worker=worker, at=round(at, 7), seconds=round(seconds, 7), again=again)

    def ended(self, model: tuple[str, str], worker: int, at: float, code: int, batches: int) -> None:
        """A worker that should have lived is gone, with this exit code, after so many batches."""
        self.write(event="ended", model=model, worker=worker, at=round(at, 7), code=code, batches=batches)

    def handed_on(self, model: tuple[str, str], worker: int, at: float, requests: int, failed: int) -> None:
        """What a worker had when it ended: so many requests go to another, so many were answered with an error."""
        self.write(event="handed_on", model=model, worker=worker, at=round(at, 7), requests=requests, failed=failed)
