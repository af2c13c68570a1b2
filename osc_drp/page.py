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

"""One run as one HTML page, to look at, to print, to hand on.

Self-contained: no script, and nothing is loaded from anywhere. What comes
from the cloud (names, reasons) is escaped by the template engine, and the
page's own policy lets no script run even so.
"""

import collections.abc
import dataclasses
import datetime
import shlex

import jinja2

from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import timeline
from osc_drp.engine import waves

#: How much of the width a long gap between two sittings takes.
_GAP = 0.06
#: A gap of more than this part of the working time is cut short.
_LONG = 0.15
#: How much of the width is between two marks of the axis, at least.
_APART = 0.09
#: How many places for a mark are tried in one sitting.
_MARKS = 1000
#: Seconds between two marks of the axis.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


#: The actions that have a colour of their own.
KINDS = {
    'repair': 'repair',
    'reset': 'reset',
    'restart': 'restart',
    'attach': 'attach',
    'guest reboot': 'reboot',
    'undo': 'undo',
}


#: And what does not end well.
STATUSES = (apply.FAILED, apply.OPEN, apply.UNTRIED, timeline.UNFINISHED)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the axis, in seconds since the begin and in percent."""

    begun: float
    until: float
    left: float
    width: float
    #: Nobody worked, and it is drawn shorter than it was.
    gap: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A time on the axis."""

    left: float
    text: str


class Axis:
    """Where a time lies, in percent of the width.

    In proportion, but for the time between two sittings: the hours without
    power would leave no room for the minutes of work.
    """

    def __init__(self, found: timeline.Timeline) -> None:
        self._begun = found.span.begun
        work = sum(s.seconds for s in found.sittings) or 1.0
        spans: list[tuple[float, float, float, bool]] = []
        last = 0.0
        for sitting in found.sittings:
            begun, until = self._at(sitting.begun), self._at(sitting.until)
            if begun > last:
                gap = begun - last
                cut = gap > work * _LONG
                spans.append((last, begun, work * _GAP if cut else gap, cut))
            # a sitting that was killed at once is seen all the same
            spans.append((begun, until, max(until - begun, work / 100), False))
            last = until
        whole = sum(s[2] for s in spans) or 1.0
        self.pieces: list[Piece] = []
        left = 0.0
        for begun, until, size, cut in spans:
            width = size / whole * 100
            self.pieces.append(Piece(begun, until, left, width, cut))
            left += width

    def _at(self, time: datetime.datetime) -> float:
        return (time - self._begun).total_seconds()

    def percent(self, time: datetime.datetime) -> float:
        """Give the place of a time."""
        at = self._at(time)
        for piece in self.pieces:
            if at <= piece.until:
                length = (piece.until - piece.begun) or 1.0
                share = max(0.0, at - piece.begun) / length
                return round(piece.left + piece.width * share, 3)
        return 100.0

    def marks(self) -> list[Mark]:
        """Give the marks: round times, none of them in a gap."""
        found: list[Mark] = []
        scale = min(
            (
                (p.until - p.begun) / p.width * 100
                for p in self.pieces
                if p.until > p.begun and not p.gap
            ),
            default=1.0,
        )
        step = next((s for s in _STEPS if s >= scale * _APART), 0)
        step = step or 3600 * (int(scale * _APART / 3600) + 1)
        for piece in self.pieces:
            if piece.gap or piece.until <= piece.begun:
                continue
            at = -(-piece.begun // step) * step
            # a clock that was set right meanwhile makes years of minutes
            pace = step * max(1, int((piece.until - at) / step / _MARKS))
            while at <= piece.until:
                share = (at - piece.begun) / (piece.until - piece.begun)
                left = round(piece.left + piece.width * share, 3)
                # the text of the last one would not fit
                if left <= 92 and (
                    not found or left - found[-1].left > _APART * 80
                ):
                    found.append(Mark(left, clock(at)))
                at += pace
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """A bar, drawn."""

    left: float
    width: float
    kind: str
    status: str
    title: str


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One server."""

    server_id: str
    name: str
    #: Bars in one lane do not overlap.
    lanes: tuple[tuple[Drawn, ...], ...]
    result: str
    well: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """The servers of one wave."""

    title: str
    rows: tuple[Row, ...]


def clock(seconds: float) -> str:
    """Give a span as h:mm:ss."""
    return str(datetime.timedelta(seconds=int(seconds)))


def duration(seconds: float) -> str:
    """Give a span as people say it."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    if seconds < 3600:
        return f'{int(seconds) // 60} min {int(seconds) % 60} s'
    minutes = int(seconds) // 60
    return f'{minutes // 60} h {minutes % 60} min'


def _lanes(
    bars: collections.abc.Iterable[timeline.Bar],
) -> list[list[timeline.Bar]]:
    """Put bars that overlap below each other."""
    lanes: list[list[timeline.Bar]] = []
    for bar in bars:
        for lane in lanes:
            if lane[-1].span.until <= bar.span.begun:
                lane.append(bar)
                break
        else:
            lanes.append([bar])
    return lanes


def _kind(action: str) -> str:
    action = timeline.ACTION_OF.get(action, action)
    return KINDS.get(action, 'other')


def _status(bar: timeline.Bar) -> str:
    """Give the class of a bar; the journal's word is anybody's."""
    if bar.well:
        return 'well'
    return bar.status if bar.status in STATUSES else 'failed'


class _Painter:
    """Puts the rows together."""

    def __init__(self, found: timeline.Timeline) -> None:
        self._found = found
        self.axis = Axis(found)
        self._bars = facts.group(found.bars, self._owner())
        self._open = facts.group(found.open, self._owner())

    def _owner(self) -> collections.abc.Callable[[timeline.Bar], str]:
        """Tell in whose row a bar is: a volume's, of its only server."""
        users: dict[str, set[str]] = {}
        for bar in self._found.bars:
            if bar.server_id and bar.volume_id:
                users.setdefault(bar.volume_id, set()).add(bar.server_id)

        def owner(bar: timeline.Bar) -> str:
            mine = users.get(bar.volume_id, set())
            if bar.server_id or len(mine) != 1:
                return bar.server_id
            return next(iter(mine))

        return owner

    def _draw(self, bar: timeline.Bar) -> Drawn:
        left = self.axis.percent(bar.span.begun)
        width = self.axis.percent(bar.span.until) - left
        begun = clock(
            (bar.span.begun - self._found.span.begun).total_seconds()
        )
        words = [bar.action, bar.volume_id, bar.status, bar.what]
        title = ' · '.join(w for w in words if w)
        return Drawn(
            left=min(left, 99.6),
            width=round(max(width, 0.4), 3),
            kind=_kind(bar.action),
            status=_status(bar),
            title=f'{title} · {begun} + {duration(bar.span.seconds)}',
        )

    def _row(self, server_id: str) -> Row:
        bars = self._bars[server_id]
        wrong = self._open.get(server_id, [])
        if wrong:
            result = '; '.join(
                f'{b.action}: {b.what or b.status}' for b in wrong
            )
        else:
            until = max(b.span.until for b in bars)
            since = until - self._found.span.begun
            result = clock(since.total_seconds())
        return Row(
            server_id,
            self._found.names.get(server_id, ''),
            tuple(tuple(self._draw(b) for b in lane) for lane in _lanes(bars)),
            result,
            not wrong,
        )

    def groups(self) -> list[Group]:
        """Give the rows, by wave, in the order in which they began."""
        rest = dict.fromkeys(self._bars)
        groups = []
        for wave in self._found.waves:
            mine = [s for s in rest if s in wave.server_ids]
            for server_id in mine:
                del rest[server_id]
            title = f'Wave {wave.number}'
            if wave.number == str(waves.LAST):
                title = f'Last wave: no {waves.PROPERTY}'
            title = f'{title} · servers: {len(wave.server_ids)}'
            groups.append(Group(title, tuple(self._row(s) for s in mine)))
        if rest:
            title = 'In no wave' if groups else ''
            groups.append(Group(title, tuple(self._row(s) for s in rest)))
        return groups

    def steps(self) -> list[Drawn]:
        """Give the steps of a run of several."""
        return [
            Drawn(
                left=(left := self.axis.percent(step.span.begun)),
                width=max(self.axis.percent(step.span.until) - left, 0.4),
                kind=_kind(step.name),
                status='well' if step.span.ended else timeline.UNFINISHED,
                title=f'{step.name} · {duration(step.span.seconds)}',
            )
            for step in self._found.steps
        ]


def render(run_id: str, found: timeline.Timeline, state: str) -> str:
    """Make the page.

    :param state: as timeline.state tells it
    """
    painter = _Painter(found)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('osc_drp'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['duration'] = duration
    environment.filters['stamp'] = stamp
    done, failed, rest = found.counts
    idle = found.span.seconds - sum(s.seconds for s in found.sittings)
    return environment.get_template('run.html.j2').render(
        run_id=run_id,
        run=found,
        state=state,
        idle=idle,
        counts={'done': done, 'failed': failed, 'open': rest},
        servers=len({b.server_id for b in found.bars if b.server_id}),
        again=shlex.join(found.again),
        axis=painter.axis,
        groups=painter.groups(),
        steps=painter.steps(),
        problems=found.problems(),
        statuses={_status(b) for b in found.bars},
        kinds={
            action: kind
            for action, kind in KINDS.items()
            if any(b.action == action for b in found.bars)
        },
    )


def stamp(time: datetime.datetime) -> str:
    """Give a time as people read it."""
    return f'{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC'
