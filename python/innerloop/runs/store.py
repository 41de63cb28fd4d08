"""The folder of one run: claimed for it, locked, and with a journal of finished units in which
every line carries a seal over its content and the run's key.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from innerloop.runs.errors import InputError
from innerloop.runs.files import (
    parse_json,
    read_whole,
    reason,
    remove_stale_parts,
    special_kind,
    write_bytes,
)

JOURNAL = "units.jsonl"
RESULTS = "results.json"
LOCK = ".lock"
_SYNC_SECONDS = 0.5
_VERSION = 2  # of the journal
_FIRST_VERSION = re.compile(rb'[0-9a-f]{8} \{"format":"innerloop\.')


def _line(record: dict[str, Any], key: str = "") -> bytes:
    body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return _seal(body, key) + b" " + body + b"\n"


def _seal(body: bytes, key: str) -> bytes:
    """Sixteen hexadecimal digits over a line and the key of the run that it belongs to."""
    return hashlib.sha256(key.encode() + b"\0" + body).hexdigest()[:16].encode()


def _parse(line: bytes, key: str = "") -> dict[str, Any] | None:
    """The record of a journal line without its end, or None if it is altered or of another run."""
    seal, _, body = line.partition(b" ")
    record = parse_json(body) if seal == _seal(body, key) else None
    return record if isinstance(record, dict) else None


class Store:
    """The output folder of one run, locked while open, with the units finished so far.

    Args:
        folder: where everything is written; made if absent.
        key: digest of everything that determines the numbers.
        describe: what the key was made from, kept so that a mismatch can be explained.
        fresh: forget units of an earlier run in this folder, also of another key.
        form: the format that the journal belongs to: which command wrote it.
        outputs: names (or patterns such as "*.png") of all that the run writes into the folder.

    Members:
        units: results by name of unit.
        resumed: how many were there already.
        notices: what was found and mended on opening, one sentence each, to be shown.

    Raises:
        InputError: the folder cannot be written, is in use, holds a different run (unless `fresh`),
            or holds files with the names of outputs that no run of innerloop is known to have
            written: these are never replaced.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        describe: dict[str, Any],
        fresh: bool,
        form: str,
        outputs: Sequence[str],
    ) -> None:
        self.folder = folder
        self.units: dict[str, dict[str, Any]] = {}
        self.notices: list[str] = []
        self._key = key
        self._header: dict[str, Any] = {
            "format": form,
            "journal": _VERSION,
            "key": key,
            "describe": describe,
        }
        self._outputs = tuple(outputs)
        self._synced = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._open_lock()
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from None
        try:
            self._take_lock()
            self._journal = self._open_journal(fresh)
        except BaseException:
            self._lock.close()
            raise
        self.resumed = len(self.units)

    def _unwritable(self, error: Exception, more: str = "; choose another folder") -> InputError:
        if isinstance(error, InputError):
            return error
        what = reason(error) if isinstance(error, OSError) else str(error)
        return InputError(f"--out {str(self.folder)!r} cannot be written ({what}){more}")

    def _open_lock(self) -> IO[bytes]:
        if kind := special_kind(self.folder / LOCK):
            raise InputError(
                f"--out {str(self.folder)!r} cannot be locked, since {LOCK} in it is {kind}; "
                "choose another folder"
            )
        return open(self.folder / LOCK, "ab")

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"--out {str(self.folder)!r} is in use by another run; wait for it, or choose "
                "another folder"
            ) from None

    def _open_journal(self, fresh: bool) -> io.FileIO:
        path = self.folder / JOURNAL
        try:
            found = self._outputs_there()
            for part in (self.folder, *(self.folder / o for o in self._outputs if o.endswith("/"))):
                remove_stale_parts(part)
            valid = self._load(path, fresh, found) if os.path.lexists(path) else None
            if valid is None:
                content = self._content()
                write_bytes(path, content)
                valid = len(content)
            journal = open(path, "r+b", buffering=0)  # noqa: SIM115  (open as long as the store)
            journal.truncate(valid)
            journal.seek(valid)
            return journal
        except OSError as error:
            raise self._unwritable(error) from None

    def _outputs_there(self) -> list[str]:
        """Names of outputs that exist; refused where one could not be written, or would replace
        what is not known to be one.
        """
        there = sorted(entry.name for entry in self.folder.iterdir())
        found = [
            (name, output.endswith("/"))
            for name in there
            for output in (JOURNAL, *self._outputs)
            if fnmatch.fnmatchcase(name, output.rstrip("/"))
        ]
        for name, is_folder in found:
            kind = special_kind(self.folder / name) or "a file"
            # A link is replaced, never followed, but the journal is written on the spot.
            wanted = ("a folder",) if is_folder else ("a file", "a link")[: 2 - (name == JOURNAL)]
            if kind not in wanted:
                raise InputError(
                    f"--out {str(self.folder)!r}: {name} in it is {kind}, but the run writes "
                    f"{wanted[0]} there; choose another folder"
                )
        if JOURNAL not in there:
            self._refuse_strangers([name for name, _ in found])
        return [name for name, _ in found if name != JOURNAL]

    def _refuse_strangers(self, names: list[str]) -> None:
        """Refuse a folder with outputs, but without a journal that says whose they are."""
        if names:
            raise InputError(
                f"--out {str(self.folder)!r} holds {', '.join(names[:3])} but no {JOURNAL} of a "
                "run, so this may be someone else's work; choose another folder, or move that away"
            )

    def _content(self) -> bytes:
        """The journal of what is in memory."""
        lines = [_line({"unit": u, "result": r}, self._key) for u, r in self.units.items()]
        return b"".join([_line(self._header), *lines])

    def _load(self, path: Path, fresh: bool, outputs: list[str]) -> int | None:
        """Take the units of a journal and return the length of what is whole in it, or None if it
        must be written anew.
        """
        named = f"--out {str(self.folder)!r}: {JOURNAL}"
        content = read_whole(path, named)
        if len(content) < len(_line(self._header)) and self._content().startswith(content):
            self._refuse_strangers(outputs)  # no run gets to them before its journal is whole
            return None
        *lines, _ = content.split(b"\n")  # a torn last line is no unit
        header = _parse(lines[0]) if lines else None
        units = [_parse(line, self._key) for line in lines]
        ours = [unit for unit in units if unit is not None and _is_unit(unit)]
        if header is not None and not (_is_header(header) and header["journal"] == _VERSION):
            header = None
        if header is None and not ours:
            self._refuse_unknown(named, lines, fresh)
            return None
        if header is not None and header["format"] != self._header["format"]:
            raise InputError(
                f"--out {str(self.folder)!r} holds a run of another command "
                f"({header['format'][:60]}); choose another folder"
            )
        if fresh:
            return None
        if header is not None and header["key"] != self._key:
            raise InputError(
                f"--out {str(self.folder)!r} holds a different run "
                f"({self._difference(header)}); choose another folder, or --fresh to replace it"
            )
        self.units = {unit["unit"]: unit["result"] for unit in ours}
        damaged = len(lines) - len(ours) - (header is not None)
        if damaged:
            self.notices.append(
                f"{path}: {damaged} of {len(lines)} lines are damaged and were left out; what they "
                "held is computed again"
            )
            return None
        return sum(len(line) + 1 for line in lines)

    def _refuse_unknown(self, named: str, lines: list[bytes], fresh: bool) -> None:
        """Refuse a journal that this version cannot read, unless it is an older one's and to be
        replaced.
        """
        if lines and _FIRST_VERSION.match(lines[0]):
            if not fresh:
                raise InputError(
                    f"{named} is of another version of innerloop; choose another folder, or "
                    "--fresh to replace it"
                )
            return
        raise InputError(
            f"{named} is damaged or not a journal of innerloop; choose another folder, or move "
            "that file away"
        )

    def _difference(self, header: dict[str, Any]) -> str:
        """The first settings in which the stored run differs from this one."""
        old, new = _flatten(header["describe"]), _flatten(self._header["describe"])
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
        line = _line({"unit": unit, "result": result}, self._key)
        before = self._journal.tell()
        try:
            while line:
                line = line[self._journal.write(line) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._journal.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._journal.truncate(before)
            raise self._unwritable(error, f"; {len(self.units)} units are kept") from None
        self.units[unit] = result

    def close(self) -> None:
        """Make the journal durable and release the folder."""
        if self._journal.closed:
            return
        try:
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
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
        with contextlib.suppress(InputError) if error else contextlib.nullcontext():
            self.close()  # what went wrong first is what the user should hear


def _is_header(record: dict[str, Any]) -> bool:
    kinds = {"format": str, "journal": int, "key": str, "describe": dict}
    return all(isinstance(record.get(name), kind) for name, kind in kinds.items())


def _is_unit(record: dict[str, Any]) -> bool:
    return isinstance(record.get("unit"), str) and isinstance(record.get("result"), dict)


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
