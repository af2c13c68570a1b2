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

"""From a journal to what happened, and when: for ``drp runs``.

Pure, and tolerant: journals of older and newer versions are read as well,
and what is not known is kept as a note. Times are of the local clock; they
are good for people, and never compared with those of the cloud.
"""

import collections.abc
import dataclasses
import datetime
import typing as ty

from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.i18n import _

#: What became of a bar that has no outcome: killed, or still at it.
UNFINISHED = 'unfinished'

#: How the requests of a step are called, where the outcome is of the step.
_STEP_OF = {'start': 'restart', 'stop': 'restart', 'reboot': 'restart'}
#: How a plan calls a step, where the outcome has another name.
ACTION_OF = {'start': 'restart', 'guest': 'guest reboot'}

_OF_BARS = frozenset({'intent', 'before', 'old', 'sent', 'outcome'})
_OF_RUNS = frozenset(
    {'begin', 'resume', 'end', 'plan', 'names', 'open', 'wave', 'step'}
)
_LOCKED = frozenset({'lock', 'locked'})

Entry: ty.TypeAlias = collections.abc.Mapping[str, ty.Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time; without an end it was cut short at ``until``."""

    begun: datetime.datetime
    until: datetime.datetime
    ended: bool

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.until - self.begun).total_seconds()


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """One attempt at one step of one object."""

    action: str
    server_id: str
    volume_id: str
    span: Span
    #: As in apply.Outcome, or UNFINISHED.
    status: str
    what: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is an attempt at."""
        return self.action, self.server_id, self.volume_id

    @property
    def well(self) -> bool:
        """Whether nobody needs to look."""
        return self.status in (apply.DONE, apply.LEFT)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A step of a run of several: repair, reset, start, attach."""

    name: str
    span: Span


@dataclasses.dataclass(frozen=True, slots=True)
class Wave:
    """Servers that are begun together."""

    number: str
    server_ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """What the run did not touch, because a person must look first."""

    server_id: str
    volume_id: str
    what: str


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """An entry that belongs to no bar."""

    at: datetime.datetime
    event: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Timeline:
    """All that one journal tells."""

    command: str
    #: From its begin to its end, or to its last entry.
    span: Span
    #: From each begin to the last entry before the next: in between nobody
    #: worked (killed, or the power was gone again).
    sittings: tuple[Span, ...]
    #: All attempts, by their begin.
    bars: tuple[Bar, ...]
    steps: tuple[Step, ...]
    waves: tuple[Wave, ...]
    notes: tuple[Note, ...]
    #: By server id; journals of older versions have none.
    names: collections.abc.Mapping[str, str]
    #: What was planned last and never begun, by action.
    untried: collections.abc.Mapping[str, int]
    #: What was left to a person when it was planned last.
    flags: tuple[Flag, ...]
    #: Attempts that were cut short, and not taken up when the run went on:
    #: it saw nothing to do there any more, or flagged them.
    dropped: tuple[Bar, ...]
    #: Servers that are still locked by this run.
    locked: tuple[str, ...]
    #: The command again, in words; journals of older versions have none.
    again: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether it came to its end, well or not."""
        return self.span.ended

    @property
    def latest(self) -> tuple[Bar, ...]:
        """The last attempt at each step of each object."""
        last = {b.key: b for b in self.bars}
        return tuple(b for b in last.values() if b not in self.dropped)

    @property
    def open(self) -> tuple[Bar, ...]:
        """What is not well, by its last attempt."""
        return tuple(b for b in self.latest if not b.well)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many are done, failed and open."""
        last = self.latest
        done = sum(b.well for b in last)
        failed = sum(b.status == apply.FAILED for b in last)
        rest = len(last) - done - failed
        rest += sum(self.untried.values()) + len(self.flags)
        return done, failed, rest

    def problems(self) -> list[tuple[str, str]]:
        """Say what is open, and of whom."""
        found = [
            (self._whom(b), f'{b.action}: {b.what or b.status}')
            for b in self.open
        ]
        found += [(self._whom(f), f.what) for f in self.flags]
        found += [
            (action, _('%d planned, and never begun') % count)
            for action, count in self.untried.items()
        ]
        found += [
            (self.name(s), _('still locked by this run')) for s in self.locked
        ]
        return found

    def _whom(self, what: Bar | Flag) -> str:
        whom = (self.name(what.server_id), what.volume_id)
        return ', '.join(w for w in whom if w)

    def name(self, server_id: str) -> str:
        """Give a server's name, or its id if the journal has no name."""
        return self.names.get(server_id) or server_id


class _Reader:
    """Goes through a journal, entry by entry."""

    def __init__(self, begun: datetime.datetime) -> None:
        self._now = begun
        self._shift = datetime.timedelta()
        self.begun: datetime.datetime | None = None
        self.command = ''
        self.ended = False
        self.sittings: list[Span] = []
        self.bars: list[Bar] = []
        self.steps: list[Step] = []
        self.waves: dict[str, Wave] = {}
        self.notes: list[Note] = []
        self.names: dict[str, str] = {}
        self.locked: dict[str, None] = {}
        self.again: tuple[str, ...] = ()
        self._open_bars: dict[tuple[str, str, str], datetime.datetime] = {}
        self._open_steps: dict[str, datetime.datetime] = {}
        self._sitting: datetime.datetime | None = None
        self._planned: dict[str, int] = {}
        self._flags: tuple[Flag, ...] = ()
        self._cut_short: list[Bar] = []
        self._dropped: list[Bar] = []
        self._tried: set[tuple[str, str, str]] = set()

    def read(self, entry: Entry) -> None:
        event = _text(entry.get('event'))
        if event == 'resume':
            self._cut()
        if 'by' not in entry:
            # another run's release of a lock is nobody's work here
            self._pass_time(entry, event)
        if self._sitting is None:
            self._sitting = self._now
        if self.begun is None:
            self.begun = self._now
        if event in _OF_RUNS:
            getattr(self, f'_{event}')(entry)
        elif event in _OF_BARS and entry.get('action'):
            self._work(entry, event)
        else:
            self._note(entry, event)

    def _pass_time(self, entry: Entry, event: str) -> None:
        """Take an entry's time, but never go back.

        After a power loss the clock of this machine may be behind: then a
        sitting is taken to begin when the one before ended.
        """
        try:
            at = datetime.datetime.fromisoformat(_text(entry.get('at')))
            if at.tzinfo is None:
                at = at.replace(tzinfo=datetime.UTC)
            at = at.astimezone(datetime.UTC)
        except (ValueError, OverflowError):
            return
        if event == 'resume' and at + self._shift < self._now:
            self._shift = self._now - at
        if self.begun is None:
            self._now = at
        self._now = max(self._now, at + self._shift)

    # -- runs

    def _begin(self, entry: Entry) -> None:
        self.command = _text(entry.get('command'))
        self._resume(entry)

    def _resume(self, entry: Entry) -> None:
        self.ended = False
        words = entry.get('again')
        if isinstance(words, list) and words:
            self.again = tuple(_text(w) for w in words)

    def _end(self, entry: Entry) -> None:
        self.ended = True
        self._dropped = list(self._cut_short)

    def _plan(self, entry: Entry) -> None:
        """Take what is planned; what was planned before is done or in it."""
        steps = _mapping(entry.get('steps') or entry.get('counts'))
        self._tried.clear()
        self._dropped = list(self._cut_short)
        self._planned = {
            ACTION_OF.get(name, name): count
            for name, count in steps.items()
            if isinstance(count, int)
        }

    def _open(self, entry: Entry) -> None:
        items = entry.get('items')
        self._flags = tuple(
            Flag(
                _text(i.get('server')),
                _text(i.get('volume')),
                _text(i.get('what')),
            )
            for i in (items if isinstance(items, list) else ())
            if isinstance(i, dict)
        )

    def _names(self, entry: Entry) -> None:
        for server_id, name in _mapping(entry.get('servers')).items():
            self.names[server_id] = _text(name)

    def _wave(self, entry: Entry) -> None:
        number = _text(entry.get('number'))
        servers = entry.get('servers')
        ids = [_text(s) for s in servers] if isinstance(servers, list) else []
        before = self.waves.get(number)
        known = before.server_ids if before else ()
        self.waves[number] = Wave(number, tuple(dict.fromkeys([*known, *ids])))

    def _step(self, entry: Entry) -> None:
        name = _text(entry.get('step'))
        if entry.get('state') != 'end':
            self._open_steps.setdefault(name, self._now)
            return
        begun = self._open_steps.pop(name, self._now)
        self.steps.append(Step(name, Span(begun, self._now, True)))

    # -- bars

    def _work(self, entry: Entry, event: str) -> None:
        action = _text(entry.get('action'))
        key = (
            _STEP_OF.get(action, action),
            _text(entry.get('server')),
            _text(entry.get('volume')),
        )
        self._tried.add(key)
        begun = self._open_bars.setdefault(key, self._now)
        if event == 'outcome':
            del self._open_bars[key]
            self.bars.append(
                Bar(
                    *key,
                    Span(begun, self._now, True),
                    _text(entry.get('status')),
                    _text(entry.get('what')),
                )
            )

    def _note(self, entry: Entry, event: str) -> None:
        server_id = _text(entry.get('server'))
        if event in _LOCKED:
            self.locked[server_id] = None
        elif event == 'unlocked':
            self.locked.pop(server_id, None)
        elif event == 'console':
            self._doubt(server_id, _text(entry.get('what')))
        else:
            text = ', '.join(
                f'{name}: {_text(value)}'
                for name, value in sorted(entry.items())
                if name not in ('at', 'event')
            )
            self.notes.append(Note(self._now, event, text))

    def _doubt(self, server_id: str, why: str) -> None:
        """Take back that a server is well: its console says otherwise."""
        for number in reversed(range(len(self.bars))):
            bar = self.bars[number]
            if (bar.action, bar.server_id) == ('restart', server_id):
                what = _('%(what)s, but %(why)s') % {
                    'what': bar.what,
                    'why': why,
                }
                self.bars[number] = dataclasses.replace(
                    bar, status=apply.OPEN, what=what
                )
                return

    # -- the end of a sitting, and of all

    def _cut(self) -> None:
        """Close what the last sitting left open."""
        for key, begun in self._open_bars.items():
            span = Span(begun, self._now, False)
            bar = Bar(*key, span, UNFINISHED, '')
            self.bars.append(bar)
            self._cut_short.append(bar)
        for name, begun in self._open_steps.items():
            self.steps.append(Step(name, Span(begun, self._now, False)))
        self._open_bars.clear()
        self._open_steps.clear()
        if self._sitting is not None:
            self.sittings.append(Span(self._sitting, self._now, self.ended))
        self._sitting = None

    def timeline(self) -> Timeline:
        self._cut()
        begun = self.begun or self._now
        bars = sorted(self.bars, key=lambda b: b.span.begun)
        last = {b.key: b for b in bars}
        tried = facts.group(self._tried, lambda k: k[0])
        untried = {
            action: count - len(tried.get(action, ()))
            for action, count in self._planned.items()
        }
        return Timeline(
            command=self.command,
            span=Span(begun, self._now, self.ended),
            sittings=tuple(self.sittings),
            bars=tuple(bars),
            steps=tuple(sorted(self.steps, key=lambda s: s.span.begun)),
            waves=tuple(self.waves.values()),
            notes=tuple(self.notes),
            names=self.names,
            untried={a: n for a, n in untried.items() if n > 0},
            flags=self._flags,
            dropped=tuple(b for b in self._dropped if last[b.key] == b),
            locked=tuple(self.locked),
            again=self.again,
        )


FINISHED = 'finished'
CUT = 'unfinished'
UNDER_WAY = 'under way'


def state(found: Timeline, holder: str) -> str:
    """Tell whether a run is finished, or somebody is at it.

    :param holder: the note of who has the lock (journal.RunDirectory)
    """
    if found.finished:
        return FINISHED
    since = holder.rpartition(', since ')[2]
    try:
        taken = datetime.datetime.fromisoformat(since)
    except ValueError:
        return CUT
    # both by the clock of this machine; the lock comes first. A run that was
    # killed before its first entry has no sitting.
    last = found.sittings[-1:]
    return UNDER_WAY if any(s.begun >= taken for s in last) else CUT


def build(
    entries: collections.abc.Iterable[Entry], made: datetime.datetime
) -> Timeline:
    """Read a journal.

    :param made: when the run was made, for a journal without any entry
    """
    reader = _Reader(made)
    for entry in entries:
        reader.read(entry)
    return reader.timeline()


def _text(value: object) -> str:
    return '' if value is None else str(value)


def _mapping(value: object) -> dict[str, ty.Any]:
    return value if isinstance(value, dict) else {}
