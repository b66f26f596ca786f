"""Several bundles behind one server: a new version is loaded and proved beside the old one, takes its place, and the old one finishes what it has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .config import ServingConfig, check_manifest, load_config
from .devices import CPU
from .ensemble import SUFFIX, Ensemble, load_ensemble
from .errors import BundleError, RequestError, ServerError
from .pool import PARITY_TOLERANCE
from .service import LocalService, Model, Servable, version_order
from .version_policy import VersionPolicies

logger = logging.getLogger(__name__)

DRAIN_STEP_S = 0.01
Key = tuple[str, str]
"""Name and version."""


@dataclass(frozen=True)
class Found:
    """A folder of the repository that is a whole bundle."""

    folder: Path
    config: ServingConfig

    @property
    def key(self) -> Key:
        """Name and version."""
        return self.config.name, self.config.version


@dataclass(frozen=True)
class _Refusal:
    """A bundle that was not let in, and why; another try is worth while once its manifest was written anew."""

    folder: Path
    written: int
    reason: str


class Repository:
    """Which versions are served.

    Args:
        service: Where they are served.
        own: The bundle that this server came with, checked already; it is one of them.
        folder: Its subfolders are further bundles; None: there are none.
        versions: Which ones of each model are served.
        workers: Of each model, in place of what its bundle says.
        devices: Where they compute, in turn.
    """

    def __init__(
        self, service: LocalService, own: Found, folder: Path | None, *, versions: VersionPolicies, workers: int | None = None, devices: Sequence[str] = (CPU,)
    ) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets a `ServerError` when the workers of a served model cannot be started any more."""
        self._service, self._own, self._folder = service, own, folder
        self._policies, self._workers, self._devices = versions, workers, devices
        self._refused: dict[Key, _Refusal] = {}
        """Versions that were not let in."""
        self._broken: dict[str, str] = {}
        """Folders that are no bundles, with the reason."""
        self._known: dict[Path, tuple[int, Found]] = {own.folder: (_written(own.folder), own)}
        """By folder: when its manifest was written, and what it is; hashing takes a while."""
        self._ensembles: dict[Path, tuple[int, Key]] = {}
        """By file: when it was written, and what it is served as."""
        self._unloaded: set[str] = set()
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Serve what is there.

        Raises:
            ServerError: the server's own bundle, where it is to be served, does not load; others are left out.
            BundleError: its vectors cannot be used.
        """
        await self.refresh(must_load=self._own.key)
        there = {bundle.key[0] for _, bundle in self._known.values()}
        for name in self._policies.by_model.keys() - there:  # no error: it may come, by --poll or when asked for
            logger.warning("--versions says which versions of %r are served, and there is no such model yet, but %s", name, ", ".join(sorted(there)))

    async def refresh(self, name: str | None = None, *, must_load: Key | None = None) -> None:
        """Look at the folders again: load what is new, let go of what is not wanted any more.

        Args:
            name: Of the only model to look at; all if not given.
            must_load: Of a bundle whose failure is one of the server.

        Raises:
            ServerError: `must_load` is wanted and does not load.
            BundleError: its vectors cannot be used.
        """
        async with self._changing:
            found = await asyncio.to_thread(self._scan)
            self._refused = {key: refusal for key, refusal in self._refused.items() if key in found}
            while missing := self._missing(wanted := self._wanted(found, name)):  # what does not load is wanted no more, and takes nobody's place
                await self._try_to_load(*missing, must_load=must_load)
            combined = {key for _, key in self._ensembles.values()}
            for key in [key for key in self._service.models if key not in wanted and key not in combined and name in (None, key[0])]:
                self._retire(self._service.remove(key))
            self._refresh_ensembles()

    def _missing(self, wanted: Mapping[Key, Found]) -> tuple[Found, bool] | None:
        """The next bundle to load, and whether as a shadow: one that is not served, or a shadow that is to answer from now on."""
        for key, bundle in wanted.items():
            served, is_shadow = self._service.models.get(key), self._is_shadow(key, wanted)
            if served is None or (served.background and not is_shadow):
                return bundle, is_shadow
        return None

    def _is_shadow(self, key: Key, wanted: Mapping[Key, Found]) -> bool:
        """Whether a version only gets copies: the newest of several, unless it answers already."""
        served = self._service.models.get(key)
        if self._service.shadows is None or (served is not None and not served.background):
            return False
        others = [other for other in wanted if other[0] == key[0] and other != key]
        return bool(others) and all(version_order(other[1]) < version_order(key[1]) for other in others)

    async def _try_to_load(self, bundle: Found, background: bool, *, must_load: Key | None) -> None:
        """Serve a bundle, or write down why not."""
        old = self._service.models.get(bundle.key)
        try:
            await self._load(bundle, background=background)
        except (ServerError, BundleError) as error:
            if bundle.key == must_load:
                raise
            self._refuse(bundle, str(error))
            old = self._service.remove(bundle.key) if bundle.key in self._service.models else None
        else:
            self._refused.pop(bundle.key, None)
        if old is not None:
            self._retire(old)

    def _refuse(self, bundle: Found, reason: str) -> None:
        self._refused[bundle.key] = _Refusal(bundle.folder, _written(bundle.folder), reason)
        logger.warning("version %s of %s is not served: %s", bundle.config.version, bundle.config.name, reason)

    def _refresh_ensembles(self) -> None:
        """Serve the ensembles that the folder describes now, as it describes them; the models that they are made of are there already."""
        files = {path: _written(path) for path in sorted(self._folder.glob(f"*{SUFFIX}"))} if self._folder is not None else {}
        for path, (written, key) in list(self._ensembles.items()):
            if files.get(path) != written or key not in self._service.models:
                del self._ensembles[path]
                if key in self._service.models:
                    self._retire(self._service.remove(key))
        for path, written in files.items():
            if path in self._ensembles:
                continue
            try:
                config = load_ensemble(path)
                key = config.name, config.version
                if key in self._service.models:
                    raise BundleError(f"{path.name}: version {key[1]!r} of a model {key[0]!r} is served already")
                if config.name not in self._unloaded:
                    self._service.add(Ensemble(config, self._service))
                    self._ensembles[path] = written, key
            except BundleError as error:
                self._broken[path.name] = str(error)

    async def unload(self, name: str) -> None:
        """Stop serving a model until it is loaded again.

        Raises:
            RequestError: 404, there is none.
        """
        self._service.find(name, None)
        async with self._changing:
            self._unloaded.add(name)
            for key in [key for key in self._service.models if key[0] == name]:
                self._retire(self._service.remove(key))

    async def load(self, name: str) -> None:
        """Serve the newest versions of a model that are there.

        Raises:
            RequestError: 404, there is none; 400, none could be loaded, with the reason.
        """
        self._unloaded.discard(name)
        self._refused = {key: refusal for key, refusal in self._refused.items() if key[0] != name}
        await self.refresh(name)
        served = [key for key in self._service.models if key[0] == name]
        refused = [refusal.reason for key, refusal in self._refused.items() if key[0] == name]
        if refused:
            raise RequestError(400, f"{name!r} was not loaded: {refused[0]}")
        if not served:
            if reasons := [why for file, why in self._broken.items() if file == name + SUFFIX]:
                raise RequestError(400, f"{name!r} was not loaded: {reasons[0]}")
            raise RequestError(404, f"no bundle of a model {name[:80]!r} is in the repository")

    async def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """Name, version and state of everything there is, with the reason where it is not served; or of what is `ready` alone."""
        entries = [{"name": name, "version": version, "state": "READY" if m.ready else "UNAVAILABLE"} for (name, version), m in self._service.models.items()]
        entries += [
            {"name": name, "version": version, "state": "UNAVAILABLE", "reason": refusal.reason} for (name, version), refusal in self._refused.items()
        ]  # fmt: skip
        entries += [
            {"name": _told(name), "version": "", "state": "UNAVAILABLE", "reason": _told(why)} for name, why in self._broken.items()
        ]  # fmt: skip
        return [entry for entry in entries if entry["state"] == "READY"] if ready else entries

    async def stop(self) -> None:
        """End all workers."""
        await asyncio.gather(*(model.close() for model in self._service.models.values()), return_exceptions=True)
        if self._retiring:
            _, late = await asyncio.wait(self._retiring, timeout=2.0)
            for task in late:
                task.cancel()

    # --- what is there ---

    def _scan(self) -> dict[Key, Found]:
        """The whole bundles by name and version; the server's own goes before another of the same."""
        folders = [self._own.folder, *(sorted(path for path in self._folder.iterdir() if path.is_dir()) if self._folder is not None else ())]
        found: dict[Key, Found] = {}
        self._broken = {}
        for folder in folders:
            bundle = self._read(folder)
            if isinstance(bundle, str):
                self._broken[folder.name] = bundle
            elif bundle.key in found:
                self._broken[folder.name] = f"{found[bundle.key].folder.name} has the same name and version"
            else:
                found[bundle.key] = bundle
        return found

    def _read(self, folder: Path) -> Found | str:
        """What a folder is; one that is being copied is no bundle until its manifest and all its files are there."""
        written, known = _written(folder), self._known.get(folder)
        if known is not None and known[0] == written:
            return known[1]
        try:
            check_manifest(folder)
            bundle = Found(folder, load_config(folder))
        except BundleError as error:
            return str(error)
        self._known[folder] = written, bundle
        return bundle

    def _was_refused(self, bundle: Found) -> bool:
        """Whether these very files were."""
        refusal = self._refused.get(bundle.key)
        return refusal is not None and (refusal.folder, refusal.written) == (bundle.folder, _written(bundle.folder))

    def _wanted(self, found: Mapping[Key, Found], only: str | None) -> dict[Key, Found]:
        """The versions to serve of each model that is not unloaded, or of one model, older ones first; what was refused does not count."""
        wanted: dict[Key, Found] = {}
        for name in {name for name, _ in found if only in (None, name)} - self._unloaded:
            there = sorted((key[1] for key, bundle in found.items() if key[0] == name and not self._was_refused(bundle)), key=version_order)
            wanted |= {(name, version): found[name, version] for version in self._policies.of(name).choose(there)}
        return wanted

    # --- coming and going ---

    async def _load(self, bundle: Found, *, background: bool) -> None:
        """Start the workers of a version, prove it on its stored vectors, and let it in.

        Raises:
            ServerError: it does not start, or computes something else than its vectors say.
            BundleError: its vectors cannot be read.
        """
        config = bundle.config if self._workers is None else replace(bundle.config, workers=self._workers)
        model = Model(bundle.folder, config, self._service, background=background, devices=self._devices)
        try:
            await model.pool.start()
            worst = model.pool.parity_error
            if bundle is not self._own and worst > PARITY_TOLERANCE:
                raise ServerError(f"it computes something else than its stored outputs say: a relative error of {worst:.3g}")
            if background:  # loaded and proved, which might never end on a processor that is never free
                model.pool.step_back()
        except BaseException:
            await model.close()
            raise
        model.pool.failed.add_done_callback(partial(self._on_failed, model, bundle))
        self._service.add(model)

    def _on_failed(self, model: Servable, bundle: Found, failed: asyncio.Future[None]) -> None:
        """Workers cannot be started any more: the end of a shadow, and of the server where the version answers."""
        error = None if failed.cancelled() else failed.exception()
        if error is None or self._service.models.get(bundle.key) is not model:
            return
        if model.background:
            self._refuse(bundle, str(error))
            self._retire(self._service.remove(bundle.key))
        elif not self.failed.done():
            self.failed.set_exception(error)

    def _retire(self, model: Servable) -> None:
        """End a version that gets no more requests, when it has answered those that it has."""
        task = asyncio.get_running_loop().create_task(_finish(model))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _finish(model: Servable) -> None:
    while model.num_users:
        await asyncio.sleep(DRAIN_STEP_S)
    await model.close()


def _written(path: Path) -> int:
    """When a file, or the manifest of a folder, was written; 0 where there is none."""
    try:
        return (path / "manifest.json" if path.is_dir() else path).stat().st_mtime_ns
    except OSError:
        return 0


def _told(text: str) -> str:
    """Folders may have names that are no text."""
    return text.encode("utf-8", "replace").decode()
