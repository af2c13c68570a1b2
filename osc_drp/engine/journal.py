# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""The journal: what a run meant to do and did, on disk before it counts.

No replay log: a resumed run observes and plans again. Only the journal
knows the rows as they were before we changed them, the newest action of a
server before we restarted it, and that a run is not finished.

A run is a directory below the run directory, ``<UTC time>-<command>-<hex>``,
mode 0700, with one file of JSON lines. Every line is on the disk (fsync)
before ``write`` returns. No secret is ever written.
"""

import collections.abc
import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import re
import secrets
import threading
import typing as ty

from osc_drp import exceptions
from osc_drp.i18n import _

FILE = 'journal.jsonl'
LOCK = 'lock'
#: What files are locked on this machine (proc(5)).
LOCKS = pathlib.Path('/proc/locks')
#: How often to look there: the list may skip a line while it changes.
LOOKS = 5
_STAMP = '%Y%m%dT%H%M%SZ'
_RUN = re.compile(r'\d{8}T\d{6}Z-')

Entry: ty.TypeAlias = dict[str, ty.Any]


def _now() -> str:
    # the local clock: only for people who read the journal, never compared
    # with times of the cloud
    now = datetime.datetime.now(datetime.UTC)
    return now.isoformat(timespec='milliseconds')


def _sync(directory: pathlib.Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Run:
    """One run's journal, open for appending; safe for threads."""

    def __init__(self, path: pathlib.Path) -> None:
        """Open it.

        :raises DrpError: it cannot be read and written
        """
        self.path = path
        self._guard = threading.Lock()
        try:
            self._fd = os.open(
                path / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
            )
            content = (path / FILE).read_bytes()
        except OSError as error:
            raise exceptions.DrpError(
                _('cannot open the journal %(path)s: %(error)s')
                % {'path': path / FILE, 'error': error.strerror}
            ) from error
        #: The power, or a full disk, cut the last line in the middle.
        self._torn = bool(content) and not content.endswith(b'\n')

    @property
    def id(self) -> str:
        """The name of the run's directory."""
        return self.path.name

    def write(self, event: str, **fields: ty.Any) -> None:
        """Append one entry and wait until the disk has it.

        :raises DrpError: the disk is full or gone; nothing may be changed
            that the journal does not hold
        """
        entry = {'at': _now(), 'event': event, **fields}
        line = json.dumps(entry, sort_keys=True).encode() + b'\n'
        try:
            with self._guard:
                if self._torn:
                    line = b'\n' + line
                self._torn = True
                written = os.write(self._fd, line)
                self._torn = written != len(line)
            # side by side: one sync serves all that was written before it
            os.fsync(self._fd)
        except OSError as error:
            raise exceptions.DrpError(
                _('cannot write the journal %(path)s: %(error)s')
                % {'path': self.path / FILE, 'error': error.strerror}
            ) from error
        if written != len(line):
            raise exceptions.DrpError(
                _('cannot write the journal %s: the disk is full')
                % (self.path / FILE)
            )

    def close(self) -> None:
        """Close the file; the run stays unfinished unless it said so."""
        os.close(self._fd)

    def entries(self) -> list[Entry]:
        """Read all entries so far."""
        return read(self.path)


def read(path: pathlib.Path) -> list[Entry]:
    """Read a run's entries; a line that was cut short is left out.

    :raises DrpError: it cannot be read
    """
    entries = []
    try:
        lines = (path / FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise exceptions.DrpError(
            _('cannot read the journal %(path)s: %(error)s')
            % {'path': path / FILE, 'error': error.strerror}
        ) from error
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get('event'), str):
            entries.append(entry)
    return entries


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> collections.abc.Iterator[None]:
    """Name the run whose entries lack something: edited, or not of ours.

    Such an entry is not passed over: it may be what keeps us from doing
    something twice.

    :raises DrpError: they do
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError):
        raise exceptions.DrpError(
            _("the journal of run '%s' is damaged") % path
        ) from None


def _has_journal(path: pathlib.Path) -> bool:
    """Whether a directory is a run's.

    :raises OSError: there is a journal, or may be, that cannot be read
    """
    try:
        os.close(os.open(path / FILE, os.O_RDONLY))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        # what else may lie there, as lost+found, is not ours
        if _RUN.match(path.name):
            raise
        return False
    return True


def idle(entries: list[Entry]) -> datetime.timedelta:
    """Tell how long ago a run wrote its last entry, by this clock."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        return now - datetime.datetime.fromisoformat(entries[-1]['at'])
    except (KeyError, TypeError, ValueError):
        # edited by hand: nobody knows
        return datetime.timedelta.max


def boot_ids(entries: list[Entry]) -> dict[str, str]:
    """Tell which boot of each guest a run meant to end.

    By server id. Another boot now means that it did, or somebody else did;
    but not if the server was started since (another power loss), or got a
    volume: such a guest is to be rebooted for that.
    """
    found: dict[str, str] = {}
    for e in entries:
        what = e['event'], e.get('action')
        if what == ('before', 'guest reboot'):
            found[e['server']] = e['boot_id']
        elif what in (('before', 'start'), ('intent', 'attach')):
            found.pop(e['server'], None)
    return found


def late_attaches(entries: list[Entry]) -> frozenset[str]:
    """Tell to which servers a run attached a volume after their start.

    And which were not rebooted from the inside since. An attach counts from
    its intent on: the run may have been killed before it knew the outcome.
    """
    late: set[str] = set()
    for e in entries:
        done = e['event'] == 'outcome' and e.get('status') == 'done'
        if e.get('action') == 'attach' and (done or e['event'] == 'intent'):
            late.add(e['server'])
        elif (e['event'], e.get('action')) == ('before', 'start') or (
            done and e.get('action') == 'guest reboot'
        ):
            # it was off, and boots with what it has
            late.discard(e['server'])
    return frozenset(late)


def _locked(node: int) -> bool:
    """Whether the kernel lists a lock on a file, by its inode."""
    return any(
        line.split()[1] == 'FLOCK' and f':{node} ' in line
        for line in LOCKS.read_text().splitlines()
    )


class RunDirectory:
    """The directory of all runs on one cloud, held by one run at a time."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._lock: int | None = None

    def lock(self, owner: str) -> None:
        """Take the lock, or say who has it.

        A killed process loses it by itself (flock). The lock is local: on
        another machine the guards of every single change have to suffice.

        :raises Refused: another run is under way
        :raises DrpError: the directory cannot be made or written
        """
        fd = -1
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            note = f'{owner}, pid {os.getpid()}, since {_now()}\n'
            os.write(fd, note.encode())
        except BlockingIOError:
            holder = os.read(fd, 500).decode(errors='replace').strip()
            os.close(fd)
            raise exceptions.Refused(
                _('another run is under way on this cloud: %s')
                % (holder or _('unknown owner'))
            ) from None
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise exceptions.DrpError(
                _('cannot use the run directory %(path)s: %(error)s')
                % {'path': self.path, 'error': error.strerror}
            ) from error
        self._lock = fd

    def unlock(self) -> None:
        """Let the next run in."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def holder(self) -> str:
        """Tell who has the lock, without touching it; '' if nobody.

        The kernel knows: the note in the file outlives a killed run. A
        holder in another container, or on another machine, is not seen.
        """
        path = self.path / LOCK
        try:
            node = path.stat().st_ino
            note = path.read_text(errors='replace').strip()
            held = any(_locked(node) for _attempt in range(LOOKS))
        except OSError:
            return ''
        return note if held else ''

    def runs(self) -> list[pathlib.Path]:
        """List the runs, oldest first; without a directory there are none.

        :raises DrpError: it cannot be read: who saw no runs there would
            begin anew what another user began
        """
        try:
            # glob takes what it may not read for empty
            names = os.listdir(self.path)
            return sorted(
                self.path / name
                for name in names
                if _has_journal(self.path / name)
            )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise exceptions.DrpError(
                _('cannot read the run directory %(path)s: %(error)s')
                % {
                    'path': error.filename or self.path,
                    'error': error.strerror,
                }
            ) from error

    def find(self, name: str) -> pathlib.Path:
        """Find a run by its id, or take the directory itself.

        :raises DrpError: there is none
        """
        for path in (self.path / name, pathlib.Path(name)):
            # not Path.is_file(), which fails for what cannot be looked at
            if os.path.isfile(path / FILE):
                return path
        raise exceptions.DrpError(
            _("no run '%(name)s' in %(path)s")
            % {'name': name, 'path': self.path}
        )

    def begin(
        self,
        command: str,
        subject: dict[str, ty.Any],
        again: collections.abc.Sequence[str] = (),
    ) -> Run:
        """Open a new run's journal.

        :param subject: what it is about (the map, the selection), by which
            the same command finds its unfinished run again
        :param again: the command, in words, for who reads the journal
        """
        name = '{}-{}-{}'.format(
            self._stamp(), command.replace(' ', '-'), secrets.token_hex(2)
        )
        path = self.path / name
        try:
            path.mkdir(mode=0o700)
            run = Run(path)
            _sync(path)
            _sync(self.path)
        except OSError as error:
            raise exceptions.DrpError(
                _('cannot make the journal %(path)s: %(error)s')
                % {'path': path, 'error': error.strerror}
            ) from error
        run.write('begin', command=command, subject=subject, again=list(again))
        return run

    def _stamp(self) -> str:
        """Give the time, but later than that of every earlier run.

        The names give the order, and after a power loss the clock of this
        machine may be behind.
        """
        stamp = f'{datetime.datetime.now(datetime.UTC):{_STAMP}}'
        newest = max(
            (p.name.partition('-')[0] for p in self.runs()), default=''
        )
        if stamp > newest:
            return stamp
        try:
            last = datetime.datetime.strptime(newest, _STAMP)
        except ValueError:
            return stamp
        return f'{last + datetime.timedelta(seconds=1):{_STAMP}}'

    def unfinished(
        self, command: str, subject: dict[str, ty.Any]
    ) -> pathlib.Path | None:
        """Find the newest run of the same command on the same subject.

        Only if it did not end: a newer finished one hides older ones.
        """
        for path in reversed(self.runs()):
            entries = read(path)
            if not entries or entries[0].get('command') != command:
                continue
            if entries[0].get('subject') != subject:
                continue
            ended = any(e['event'] == 'end' for e in entries)
            return None if ended else path
        return None

    def resets(self) -> dict[tuple[str, str], str]:
        """Tell which attachments our own resets took off, and when.

        What we took off was attached at that moment (the cloud's clock), so
        only a detach after it can be a user's wish (DESIGN 10). A reset that
        was declined does not count; one that was killed does.
        """
        found: dict[tuple[str, str], str] = {}
        for path in self.runs():
            with _reading(path):
                for entry in read(path):
                    key = (entry.get('server', ''), entry.get('volume', ''))
                    if entry.get('action') != 'reset':
                        continue
                    if entry['event'] == 'old':
                        found[key] = entry['cloud_time']
                    elif (
                        entry['event'] == 'outcome'
                        and entry['status'] != 'done'
                    ):
                        found.pop(key, None)
        return found

    def shielded(self) -> frozenset[str]:
        """Tell which volumes a reset of ours left reserved, at any time.

        Whether one still is what we left must be read from the cloud. Not
        those of `--cinder-only`, which nova may map still.
        """
        found: set[str] = set()
        for path in self.runs():
            with _reading(path):
                found.update(
                    entry['volume']
                    for entry in read(path)
                    if entry['event'] == 'old'
                    and entry.get('free') is False
                    and not entry.get('cinder_only')
                )
        return frozenset(found)

    def kept(self) -> dict[tuple[str, str], frozenset[str]]:
        """Tell what `db reset --cinder-only` keeps 'reserved' for nova.

        By server and volume, the ids of the attachments that it took off
        cinder's record: no longer where the volume was made available or put
        back since, or where the reset was declined.
        """
        found: dict[tuple[str, str], frozenset[str]] = {}
        # by the ids: an older run, resumed, may have freed what a newer reset
        over: set[str] = set()
        for path in self.runs():
            with _reading(path):
                for entry in read(path):
                    key = (entry.get('server', ''), entry.get('volume', ''))
                    if entry['event'] == 'old' and entry.get('cinder_only'):
                        found[key] = frozenset(entry['attachments'])
                    elif entry['event'] != 'outcome':
                        continue
                    elif entry.get('action') == 'free':
                        if entry['status'] == 'done':
                            over.update(entry['attachments'])
                    elif entry.get('action') == 'undo':
                        if entry['status'] == 'done':
                            found.pop(key, None)
                    elif (
                        entry.get('cinder_only') and entry['status'] == 'open'
                    ):
                        found.pop(key, None)
        return {key: ids for key, ids in found.items() if ids - over}

    def unanswered_reboots(
        self,
    ) -> dict[str, dict[str | None, frozenset[str]]]:
        """Tell the hard reboots of ours of which nobody heard.

        By server and the request id that was newest right before, the
        attachments that nova was to forget.
        """
        found: dict[str, dict[str | None, frozenset[str]]] = {}
        for path in self.runs():
            with _reading(path):
                for entry in read(path):
                    if entry.get('action') != 'reboot':
                        continue
                    if entry['event'] == 'before':
                        before = found.setdefault(entry['server'], {})
                        before[entry['newest']] = frozenset(
                            entry['attachments']
                        )
                    elif entry['event'] == 'sent':
                        found.pop(entry['server'], None)
        return found

    def wished_off(self) -> frozenset[tuple[str, str]]:
        """Tell which users' detaches our repairs have finished (R3a).

        The wish may be older than the map, which then has the attachment. A
        repair that was declined does not count; one that was killed does, as
        nobody knows which of its halves are done.
        """
        found: set[tuple[str, str]] = set()
        for path in self.runs():
            with _reading(path):
                for entry in read(path):
                    key = (entry.get('server', ''), entry.get('volume', ''))
                    event, status = entry['event'], entry.get('status')
                    if entry.get('rule') == 'R3a':
                        if event == 'old':
                            found.add(key)
                        elif event == 'outcome' and status == 'open':
                            found.discard(key)
                    elif entry.get('action') == 'reset' and event == 'old':
                        # attached again since
                        found.discard(key)
                    elif entry.get('action') == 'undo' and status == 'done':
                        found.discard(key)
        return frozenset(found)

    def stops(self) -> dict[str, list[str | None]]:
        """Tell after which action of each server we sent a stop.

        By server id, the request ids that were newest right before: the
        stop that follows one of them may be ours (a killed restart).
        """
        found: dict[str, list[str | None]] = {}
        for path in self.runs():
            with _reading(path):
                for entry in read(path):
                    if (
                        entry['event'] == 'before'
                        and entry['action'] == 'stop'
                    ):
                        found.setdefault(entry['server'], []).append(
                            entry['newest']
                        )
        return found

    def locks(self) -> dict[str, str]:
        """Tell which servers a run of ours locked and did not unlock.

        By server id, the run's id, which the lock's reason in nova carries.
        A run that was killed leaves some.
        """
        found: dict[str, str] = {}
        for path in self.runs():
            with _reading(path):
                for entry in read(path):
                    if entry['event'] == 'lock':
                        found[entry['server']] = path.name
                    elif (
                        entry['event'] == 'unlocked'
                        and found.get(entry['server']) == path.name
                    ):
                        del found[entry['server']]
        return found

    def failing(self) -> frozenset[str]:
        """Tell which servers failed when they were tried last.

        By the newest outcome of the server's start, and of each attach.
        """
        newest: dict[tuple[str, str], str] = {}
        for path in self.runs():
            with _reading(path):
                for entry in read(path):
                    if entry['event'] == 'outcome' and entry.get('action') in (
                        'restart',
                        'attach',
                    ):
                        key = entry['server'], entry.get('volume', '')
                        newest[key] = entry['status']
        return frozenset(
            server_id
            for (server_id, _volume), status in newest.items()
            if status == 'failed'
        )

    def undone(self, run_id: str) -> frozenset[int]:
        """Tell which entries of a run were put back by undo runs."""
        found = set()
        for path in self.runs():
            with _reading(path):
                entries = read(path)
                if (
                    entries
                    and entries[0].get('subject', {}).get('run') == run_id
                ):
                    found |= {
                        e['number']
                        for e in entries
                        if e.get('action') == 'undo'
                        and e['event'] == 'outcome'
                        and e['status'] == 'done'
                    }
        return frozenset(found)
