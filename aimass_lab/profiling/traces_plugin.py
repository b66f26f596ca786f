"""The child process behind `traces_tensorboard`: TensorBoard, whose profiler plugin reads today's traces too.

Run it as a program; nothing imports it. The plugin parses each trace in a process of its own, which reads this
file again: what is changed here holds there as well.
"""

from __future__ import annotations

import sys
from typing import Any

from torch_tb_profiler.profiler.data import RunProfileData

from .traces_file import prepare_

_parse = RunProfileData.from_json


def _from_json(worker: str, span: Any, trace_json: dict[str, Any]) -> Any:
    prepare_(trace_json)
    return _parse(worker, span, trace_json)


RunProfileData.from_json = staticmethod(_from_json)


def main(folder: str) -> None:
    """Serve the traces in `folder` on a free port of this machine until standard input ends."""
    from tensorboard import default, program

    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(argv=["tensorboard", "--logdir", folder, "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"])
    print("ready", board.launch(), flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main(sys.argv[1])
