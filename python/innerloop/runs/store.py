"""Finished units on disk: an append-only journal with a checksum per line."""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from innerloop.runs.errors import InputError
from innerloop.runs.files import write_bytes

JOURNAL = "units.jsonl"
RESULTS = "results.json"
_SYNC_SECONDS = 0.5


def _line(record: dict[str, Any]) -> bytes:
    body = json.dumps(record, separators=(",", ":"), allow_nan=False)
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record of a journal line, or None if the line is torn or altered."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != f"{zlib.crc32(body):08x}".encode():
        return None
    record = json.loads(body)
    return record if isinstance(record, dict) else None


class Store:
    """The output folder of one run, locked while open, with the units finished so far.

    Args:
        folder: where everything is written; made if absent.
        key: digest of everything that determines the numbers.
        describe: what the key was made from, kept so that a mismatch can be explained.
        fresh: forget units of an earlier run in this folder, also of another key.
        form: what the journal calls its format.

    Raises:
        InputError: the folder cannot be written, is in use, or holds a different run (unless
            `fresh`).
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        describe: dict[str, Any],
        fresh: bool,
        form: str,
    ) -> None:
        self.folder = folder
        self.units: dict[str, dict[str, Any]] = {}
        self._key = key
        self._describe = describe
        self._form = form
        self._synced = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / ".lock", "ab")  # noqa: SIM115  (open as long as the store)
        except OSError as error:
            raise InputError(
                f"--out {str(folder)!r} cannot be written ({error.strerror})"
            ) from None
        try:
            self._take_lock()
            self._journal = self._open_journal(fresh)
        except BaseException:
            self._lock.close()
            raise
        self.resumed = len(self.units)

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"--out {str(self.folder)!r} is in use by another run") from None

    def _open_journal(self, fresh: bool) -> IO[bytes]:
        path = self.folder / JOURNAL
        try:
            header, valid = (None, 0) if fresh else self._load(path)
            if header is None and not fresh and (self.folder / RESULTS).exists():
                raise InputError(
                    f"--out {str(self.folder)!r} holds results without a usable journal; "
                    "choose another folder, or --fresh to replace them"
                )
            if header is None:
                first = _line({"format": self._form, "key": self._key, "describe": self._describe})
                write_bytes(path, first)
            elif header.get("key") != self._key:
                raise InputError(
                    f"--out {str(self.folder)!r} holds a different run "
                    f"({self._difference(header)}); choose another folder, or --fresh to replace it"
                )
            journal = open(path, "r+b")  # noqa: SIM115  (open as long as the store)
            if header is not None:
                journal.truncate(valid)
            journal.seek(0, os.SEEK_END)
            return journal
        except OSError as error:
            raise InputError(
                f"--out {str(self.folder)!r} cannot be written ({error.strerror})"
            ) from None

    def _load(self, path: Path) -> tuple[dict[str, Any] | None, int]:
        """The journal's header and the length of its valid prefix; units are read on the way."""
        if not path.exists():
            return None, 0
        header: dict[str, Any] | None = None
        valid = 0
        with open(path, "rb") as stream:
            for line in stream:
                record = _parse(line)
                if record is None:
                    break
                if header is None:
                    header = record
                else:
                    self.units[record["unit"]] = record["result"]
                valid += len(line)
        return header, valid

    def _difference(self, header: dict[str, Any]) -> str:
        """The first settings in which the stored run differs from this one."""
        old, new = _flatten(header.get("describe", {})), _flatten(self._describe)
        changed = [
            f"{name}: {_short(old.get(name))} there, {_short(new.get(name))} now"
            for name in [*new, *(name for name in old if name not in new)]
            if old.get(name) != new.get(name)
        ]
        return "; ".join(changed[:3]) + (
            f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        )

    def add(self, unit: str, result: dict[str, Any]) -> None:
        """Append a finished unit; it reaches the disk within half a second, and a torn line is
        only that unit lost.
        """
        self.units[unit] = result
        self._journal.write(_line({"unit": unit, "result": result}))
        self._journal.flush()
        now = time.monotonic()
        if now - self._synced > _SYNC_SECONDS:
            os.fsync(self._journal.fileno())
            self._synced = now

    def close(self) -> None:
        """Make the journal durable and release the folder."""
        if not self._journal.closed:
            self._journal.flush()
            os.fsync(self._journal.fileno())
            self._journal.close()
            self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _short(value: Any) -> str:
    """A setting as a sentence shows it."""
    text = "" if value is None or value == [] else str(value)
    return f"{text[:12]}..." if len(text) > 40 else text or "nothing"


def _flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name if prefix == "config." else prefix + name] = value
    return flat
