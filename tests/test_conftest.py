"""What `make test` rests on: a process that died is no failed test, for only failed tests are run once more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

SUITE = {
    "fails": ("def test_it(): assert 0", pytest.ExitCode.TESTS_FAILED),
    "dies": ("import os, signal\ndef test_it(): os.kill(os.getpid(), signal.SIGKILL)\ndef test_never_run(): pass", pytest.ExitCode.INTERNAL_ERROR),
}


@pytest.mark.parametrize("how", SUITE)
def test_a_process_that_died_is_told_from_a_test_that_failed(tmp_path, how):
    text, code = SUITE[how]
    (tmp_path / "test_one.py").write_text(text)
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    line = [sys.executable, "-m", "pytest", "-n", "1", "--max-worker-restart", "0", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    done = subprocess.run(line, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("ended by SIGKILL" in done.stdout) is (how == "dies")
