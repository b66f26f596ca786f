"""The history on disk: one SQLite file that several notebooks may write at once and a killed kernel cannot break."""

from __future__ import annotations

import contextlib
import datetime
import os
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path

import msgspec

from .errors import StoreError
from .headlines import headline
from .records import AnyRecord, LedgerEntry, Record, Run, Setting, any_from_json, to_json
from .searching.claims import Outcome, Owner, Row, is_undecided, key_of

SCHEMA_VERSION = 4
_CREATE = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    verb TEXT NOT NULL,
    model TEXT NOT NULL,
    model_digest TEXT NOT NULL,
    taken_at TEXT NOT NULL,
    summary TEXT NOT NULL,
    record TEXT NOT NULL
)
"""
_CREATE_PREDICTIONS = """
CREATE TABLE IF NOT EXISTS predictions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    model_digest TEXT NOT NULL,
    environment TEXT NOT NULL,
    technique TEXT NOT NULL,
    batch_size INTEGER NOT NULL,
    point TEXT NOT NULL,
    quantity TEXT NOT NULL,
    kind TEXT NOT NULL,
    settled INTEGER NOT NULL,
    entry TEXT NOT NULL,
    UNIQUE (model_digest, environment, technique, batch_size, point, quantity, kind, settled)
)
"""
_CREATE_SEARCH_TRIALS = """
CREATE TABLE IF NOT EXISTS search_trials (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    search TEXT NOT NULL,
    round INTEGER NOT NULL,
    setting_key TEXT NOT NULL,
    setting TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started REAL NOT NULL,
    outcome TEXT,
    UNIQUE (search, round, setting_key)
)
"""
_KEY = ("model_digest", "environment", "technique", "batch_size", "point", "quantity", "kind")


def default_store_path() -> Path:
    """``$AIMASS_STORE``, or ``history.db`` in the user's data folder."""
    given = os.environ.get("AIMASS_STORE")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_data_path

    return user_data_path("aimass_lab") / "history.db"


class StoreWarning(UserWarning):
    """A result could not be written to the history; it was returned all the same."""


class Store:
    """Runs, kept in one SQLite file.

    Every call opens the file, does one transaction and closes it: nothing is held between calls,
    so a killed process leaves at most an unfinished transaction, which SQLite rolls back.

    Args:
        path: The file; made on the first write. None: `default_store_path`.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path).expanduser() if path else default_store_path()

    def add(self, verb: str, record: Record, *, model: str = "", model_digest: str = "", summary: str = "") -> int:
        """Keep `record` and return the number of its run.

        Raises:
            StoreError: the file cannot be written.
        """
        taken_at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        row = (verb, model, model_digest, taken_at, summary, to_json(record, indent=None))
        with self._connect() as connection:
            cursor = connection.execute("INSERT INTO runs (verb, model, model_digest, taken_at, summary, record) VALUES (?, ?, ?, ?, ?, ?)", row)
            return int(cursor.lastrowid or 0)

    def remember(self, verb: str, record: Record, *, model: str = "", model_digest: str = "") -> None:
        """Keep `record`; a history that cannot be written costs a `StoreWarning`, never the result."""
        try:
            self.add(verb, record, model=model, model_digest=model_digest, summary=headline(record))
        except StoreError as error:
            warnings.warn(f"the result is not in the history: {error}", StoreWarning, stacklevel=3)

    def runs(self, *, limit: int = 50, model: str | None = None) -> tuple[Run, ...]:
        """The newest runs first, of all models or of the one called `model`."""
        if not self.path.exists():
            return ()
        where, values = ("WHERE model = ?", (model, limit)) if model else ("", (limit,))
        query = f"SELECT id, verb, model, model_digest, taken_at, summary FROM runs {where} ORDER BY id DESC LIMIT ?"
        with self._connect() as connection:
            return tuple(Run(id=r[0], verb=r[1], model=r[2], model_digest=r[3], taken_at=r[4], summary=r[5]) for r in connection.execute(query, values))

    def get(self, run_id: int) -> tuple[Run, AnyRecord]:
        """The run numbered `run_id` and its record.

        Raises:
            StoreError: there is no such run.
        """
        query = "SELECT id, verb, model, model_digest, taken_at, summary, record FROM runs WHERE id = ?"
        row = None
        if self.path.exists():
            with self._connect() as connection:
                row = connection.execute(query, (run_id,)).fetchone()
        if row is None:
            raise StoreError(f"there is no run {run_id} in {self.path}", help="list them with: aimass history")
        run = Run(id=row[0], verb=row[1], model=row[2], model_digest=row[3], taken_at=row[4], summary=row[5])
        return run, any_from_json(row[6])

    def records(self, verb: str, *, model_digest: str, limit: int = 50) -> tuple[AnyRecord, ...]:
        """What a verb found of a model, newest first; what an older version wrote in another way is left out.

        Raises:
            StoreError: the file cannot be read.
        """
        if not self.path.exists():
            return ()
        with self._connect() as connection:
            query = "SELECT record FROM runs WHERE verb = ? AND model_digest = ? ORDER BY id DESC LIMIT ?"
            rows = connection.execute(query, (verb, model_digest, limit)).fetchall()
        found = []
        for (text,) in rows:
            with contextlib.suppress(msgspec.ValidationError):
                found.append(any_from_json(text))
        return tuple(found)

    # --- the ledger of predictions

    def predict(self, entries: Sequence[LedgerEntry]) -> None:
        """Keep predictions; a newer one of the same point replaces one that was not measured yet.

        Raises:
            StoreError: the file cannot be written.
        """
        self._write_entries(entries, settled=False)

    def settle(self, entries: Sequence[LedgerEntry]) -> None:
        """Keep entries of the ledger with what was measured; of each point the newest measured prediction counts.

        Raises:
            StoreError: the file cannot be written.
        """
        self._write_entries(entries, settled=True)

    def entries(self, *, model: str | None = None, environment: str | None = None) -> tuple[LedgerEntry, ...]:
        """The ledger, newest first: of all models and environments, or of those asked for."""
        if not self.path.exists():
            return ()
        wanted = {name: value for name, value in (("model", model), ("environment", environment)) if value is not None}
        where = f" WHERE {' AND '.join(f'{name} = ?' for name in wanted)}" if wanted else ""
        with self._connect() as connection:
            rows = connection.execute(f"SELECT id, entry FROM predictions{where} ORDER BY id DESC", tuple(wanted.values())).fetchall()
        return tuple(msgspec.structs.replace(msgspec.json.decode(text, type=LedgerEntry), id=number) for number, text in rows)

    # --- the trials of searches

    def search_log(self, digest: str, *, resume: bool) -> SearchLog:
        """The trials of one search, shared with every process that opens the same.

        Args:
            digest: Of what the trials depend on, see `searching.claims.search_digest`.
            resume: Whether to go on with the newest search of this digest, or to begin another. What it could not tell may be tried again.

        Raises:
            StoreError: the file cannot be used.
        """
        with self._connect() as connection:
            newest = connection.execute("SELECT MAX(round) FROM search_trials WHERE search = ?", (digest,)).fetchone()[0]
        number = 1 if newest is None else int(newest) + (0 if resume else 1)
        log = SearchLog(self, digest, number)
        if resume:
            log.reopen()
        return log

    def _write_entries(self, entries: Sequence[LedgerEntry], *, settled: bool) -> None:
        if not entries:
            return
        same_point = " AND ".join(f"{name} = ?" for name in _KEY)
        insert = f"INSERT OR REPLACE INTO predictions (model, {', '.join(_KEY)}, settled, entry) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        with self._connect() as connection:
            for entry in entries:
                key = tuple(getattr(entry, name) for name in _KEY)
                connection.execute(f"DELETE FROM predictions WHERE {same_point} AND settled = 0", key)
                connection.execute(insert, (entry.model, *key, int(settled), msgspec.json.encode(entry).decode()))

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # 30 s: another notebook's transaction takes milliseconds, so waiting this long means something is stuck.
            connection = sqlite3.connect(self.path, timeout=30)
            with contextlib.closing(connection), connection:
                self._check_version(connection)
                yield connection
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"the history {self.path} cannot be used: {error}", help="free disk space, or name another file in AIMASS_STORE") from error

    def _check_version(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"the history {self.path} was written by a newer version (schema {version}, known up to {SCHEMA_VERSION})", help="upgrade aimass-lab"
            )
        if version < SCHEMA_VERSION:
            connection.execute(_CREATE)
            if version in (2, 3):
                connection.execute("ALTER TABLE predictions RENAME TO predictions_before_4")
            connection.execute(_CREATE_PREDICTIONS)  # came with schema 2; what schema 1 kept stays as it is
            if version in (2, 3):  # 4 tells points of a service apart by its load
                kept = "id, model, model_digest, environment, technique, batch_size, quantity, kind, settled, entry"
                connection.execute(f"INSERT INTO predictions ({kept}, point) SELECT {kept}, '' FROM predictions_before_4")
                connection.execute("DROP TABLE predictions_before_4")
            connection.execute(_CREATE_SEARCH_TRIALS)  # came with schema 3
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


class SearchLog:
    """The trials of one search in the history: a `searching.claims.TrialLog`.

    A setting is taken by writing its row, and the file lets only one process do that. A row without outcome whose process
    has ended is nobody's: it is not listed, and may be taken again. So may one that was left undecided, once `reopen` was called: its row is
    then replaced by another one, which has another number.
    """

    def __init__(self, store: Store, digest: str, number: int) -> None:
        self.store, self.digest, self.number = store, digest, number
        self.owner = Owner.this()
        self._read: dict[int, Row] = {}
        """Settings that were tried, by the number of their row: its outcome does not change and is decoded once."""
        self._replaced: dict[str, tuple[str | float, ...]] = {}
        """By the key of a setting that this process took once more, the row that was there before."""

    def reopen(self) -> None:
        """Let what is undecided be tried again, once.

        Raises:
            StoreError: the file cannot be used.
        """
        self.rows()
        self._read = {number: replace(row, again=is_undecided(row.outcome)) for number, row in self._read.items()}

    def rows(self) -> Sequence[Row]:
        """All settings that were tried or are being tried by a process that is alive, oldest first.

        Raises:
            StoreError: the file cannot be used.
        """
        query = "SELECT id, setting, host, pid, started, outcome IS NOT NULL FROM search_trials WHERE search = ? AND round = ? ORDER BY id"
        with self.store._connect() as connection:
            found = connection.execute(query, (self.digest, self.number)).fetchall()
            for number, setting, host, pid, started, done in found:
                if done and number not in self._read:
                    text = connection.execute("SELECT outcome FROM search_trials WHERE id = ?", (number,)).fetchone()[0]
                    mine = Owner(host, pid, started) == self.owner
                    self._read[number] = Row(msgspec.json.decode(setting, type=Setting), "done", msgspec.json.decode(text, type=Outcome), mine)
        rows = []
        for number, setting, host, pid, started, done in found:
            if done:
                rows.append(self._read[number])
            elif (owner := Owner(host, pid, started)) == self.owner or owner.alive():
                rows.append(Row(msgspec.json.decode(setting, type=Setting), "running", None, owner == self.owner))
        return rows

    def claim(self, setting: Setting) -> bool:
        """Take a setting for this process; False where a process that is alive has it, or it was tried and is not to be tried again.

        Raises:
            StoreError: the file cannot be written.
        """
        key, mine = key_of(setting), astuple(self.owner)
        this = (self.digest, self.number, key)
        insert = "INSERT OR IGNORE INTO search_trials (search, round, setting_key, setting, host, pid, started) VALUES (?, ?, ?, ?, ?, ?, ?)"
        with self.store._connect() as connection:
            self._make_room(connection, key)
            if connection.execute(insert, (*this, msgspec.json.encode(setting).decode(), *mine)).rowcount:
                return True
            taken = connection.execute(f"SELECT host, pid, started FROM search_trials WHERE {_THIS} AND outcome IS NULL", this).fetchone()
            if taken is None or Owner(*taken).alive():
                return False
            take_over = f"UPDATE search_trials SET host = ?, pid = ?, started = ? WHERE {_THIS} AND outcome IS NULL AND {_OWNER}"
            return bool(connection.execute(take_over, (*mine, *this, *taken)).rowcount)

    def _make_room(self, connection: sqlite3.Connection, key: str) -> None:
        """Take the row of a setting that may be tried again out of the file, within the transaction that writes the new one."""
        number = next((number for number, row in self._read.items() if row.again and key_of(row.setting) == key), None)
        if number is None:
            return
        del self._read[number]
        row = connection.execute(f"SELECT {_COLUMNS} FROM search_trials WHERE id = ?", (number,)).fetchone()
        if connection.execute("DELETE FROM search_trials WHERE id = ?", (number,)).rowcount:  # no other process was faster
            self._replaced[key] = row

    def finish(self, setting: Setting, outcome: Outcome) -> None:
        """Write down what came of a setting that this process took.

        Raises:
            StoreError: the file cannot be written.
        """
        text = msgspec.json.encode(outcome).decode()
        with self.store._connect() as connection:
            query = f"UPDATE search_trials SET outcome = ? WHERE {_THIS} AND {_OWNER}"
            connection.execute(query, (text, self.digest, self.number, key_of(setting), *astuple(self.owner)))

    def release(self, setting: Setting) -> None:
        """Give a setting back that this process took and did not try to the end: what was known of it before is known again.

        Raises:
            StoreError: the file cannot be written.
        """
        key = key_of(setting)
        with self.store._connect() as connection:
            query = f"DELETE FROM search_trials WHERE {_THIS} AND outcome IS NULL AND {_OWNER}"
            released = connection.execute(query, (self.digest, self.number, key, *astuple(self.owner))).rowcount
            if released and (before := self._replaced.pop(key, None)) is not None:
                connection.execute(f"INSERT INTO search_trials ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", before)


_THIS = "search = ? AND round = ? AND setting_key = ?"
_COLUMNS = "search, round, setting_key, setting, host, pid, started, outcome"
_OWNER = "host = ? AND pid = ? AND started = ?"
