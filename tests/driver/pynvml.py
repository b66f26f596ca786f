"""Takes the binding's place in a Jupyter server of the tests: a GPU is there once ``STAND_IN_GPU`` names a file, a list of ``[pid, bytes, percent]``."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standin_nvml import ERRORS, a_gpu, nvml, process, share

from aimass_lab.readings import gpu_processes

if sys.platform == "linux":  # this driver counts as the namespace does in which it is asked, container or not
    gpu_processes.FIRST_PID_NAMESPACE = os.readlink("/proc/self/ns/pid")
_file = Path(os.environ["STAND_IN_GPU"])
_users = lambda: json.loads(_file.read_text())  # noqa: E731
_gpu = a_gpu(
    processes=lambda: [process(pid, size) for pid, size, _ in _users()],
    shares=lambda: [share(pid, percent) for pid, _, percent in _users() if percent],
)
globals().update(vars(nvml([_gpu], init_error=lambda: None if _file.exists() else ERRORS["LIBRARY_NOT_FOUND"])))
