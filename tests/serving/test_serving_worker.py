"""The worker's end of its socket, and what its process leaves alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aimass_lab.serving.frames import pack
from aimass_lab.serving.launch import start
from aimass_lab.serving.worker import AT_ONCE_BYTES, _Frames


@pytest.mark.parametrize("size", [0, 1, 64, AT_ONCE_BYTES, 3 * AT_ONCE_BYTES + 1])
@pytest.mark.parametrize("piece", [1, 5, 11, 13, 4096, 10**9])
def test_a_frame_arrives_whole_in_whatever_pieces(size: int, piece: int) -> None:
    if piece < 4096 < size:
        piece = 4096 + piece
    payload = os.urandom(size)
    sent = b"".join(pack({"items": [1], "shapes": [[size]], "sizes": [size]}, [payload]))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames = _Frames(theirs)
        for _ in range(2):  # nothing of the one before is left
            thread = threading.Thread(target=lambda: [ours.sendall(sent[at : at + piece]) for at in range(0, len(sent), piece)])
            thread.start()
            frame = frames.next()
            thread.join()
            assert frame is not None
            assert frame[0] == {"items": [1], "shapes": [[size]], "sizes": [size]}
            assert bytes(frame[1]) == payload


@pytest.mark.parametrize("kept", [0, 5, 12, 20, 100, AT_ONCE_BYTES + 100])
def test_an_end_within_a_frame_is_an_end(kept: int) -> None:
    sent = b"".join(pack({"items": [1]}, [bytes(2 * AT_ONCE_BYTES)]))
    ours, theirs = socket.socketpair()
    with theirs:
        frames = _Frames(theirs)
        thread = threading.Thread(target=lambda: (ours.sendall(sent[:kept]), ours.close()))
        thread.start()
        assert frames.next() is None
        thread.join()


def test_onnx_runtime_tells_its_maker_nothing(linear_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its database, which holds what it would send, is in nobody's home: neither a server's nor a notebook's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with start(linear_folder, grpc_port=None):  # it has answered its warm-up
        assert not list(tmp_path.rglob("onnxruntime.db*"))
    told = "from aimass_lab.formats._onnxruntime import import_onnxruntime; import_onnxruntime().get_available_providers()"
    subprocess.run([sys.executable, "-c", told], check=True)
    assert not list(tmp_path.rglob("onnxruntime.db*"))
