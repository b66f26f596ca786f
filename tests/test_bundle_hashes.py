"""Hashes of a bundle's requirements: as a package index has them, asked by real uv, and held by real pip."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aimass_lab.bundle.hashes import fetch_hashes
from aimass_lab.bundle.requirements import requirements_text
from aimass_lab.errors import BundleError, MissingPackageError

pytest.importorskip("uv", reason="uv is not installed")


class Quiet(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".whl": "application/octet-stream"}

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A package index on this machine: its folder and address."""
    folder = tmp_path_factory.mktemp("index")
    for name, version, tag in (("alpha", "1.0", "py3-none-any"), ("alpha", "1.0", "cp311-cp311-win_amd64"), ("alpha", "1.1", "py3-none-any"),
                               ("beta", "2.0", "py3-none-any")):  # fmt: skip
        place = folder / "simple" / name
        place.mkdir(parents=True, exist_ok=True)
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(place / f"{name}-{version}-{tag}.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", f"# {tag}\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: nowhere-to-be-found\n")
            wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
            wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
        links = [f'<a href="{path.name}#sha256={digest(path)}">{path.name}</a>' for path in sorted(place.glob("*.whl"))]
        (place / "index.html").write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _own_index(index: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", index[1])
    monkeypatch.setenv("UV_NO_CACHE", "1")
    monkeypatch.setenv("UV_NO_CONFIG", "1")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_file_of_the_pinned_versions_is_there_and_pip_refuses_others(index: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = index
    requirements = ("alpha==1.0", "beta==2.0")
    hashes = fetch_hashes(requirements)
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        assert set(hashes[requirement]) == {f"sha256:{digest(path)}" for path in (folder / "simple" / name).glob(f"{name}-{version}-*.whl")}
    assert len(hashes["alpha==1.0"]) == 2  # for other systems, too
    (tmp_path / "requirements.txt").write_text(requirements_text(requirements, hashes))

    def download() -> subprocess.CompletedProcess[str]:
        options = ("--isolated", "--no-cache-dir", "--disable-pip-version-check", "--no-deps", "--index-url", url)
        command = [sys.executable, "-m", "pip", "download", *options, "--require-hashes", "-r", "requirements.txt", "-d", "out"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = download()
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"alpha-1.0-py3-none-any.whl", "beta-2.0-py3-none-any.whl"}
    altered = tmp_path / "requirements.txt"
    altered.write_text(altered.read_text().replace(digest(folder / "simple/beta/beta-2.0-py3-none-any.whl"), 64 * "0"))
    done = download()
    assert (done.returncode, "DO NOT MATCH THE HASHES" in done.stderr) == (1, True), done.stderr


def test_what_the_index_does_not_have_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="no hashes: .*alpha==7"):
        fetch_hashes(["alpha==7"])
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(BundleError, match="the package index gives no hashes"):
        fetch_hashes(["alpha==1.0"])
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(MissingPackageError, match="'uv'"):
        fetch_hashes(["alpha==1.0"])


def test_the_file_says_why_it_has_none() -> None:
    assert requirements_text(["alpha==1.0"], None).startswith("# Without hashes, which only the package index has: a bundle that is written with --hashes")
    assert requirements_text(["alpha"], {}).startswith("# Without versions and hashes: these packages were not installed")
