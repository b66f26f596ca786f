"""Runs a command as the parent of everything it starts, orphans included, so that a server's whole tree can be read and ended."""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:  # reap the orphans, too
        try:
            os.wait()
        except ChildProcessError:
            break
