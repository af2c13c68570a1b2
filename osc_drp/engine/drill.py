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

"""A drill: one server loses its power and storage, and is recovered.

The procedure's test mode, judged: what was in the guest before must be in it
afterwards. A drill that was killed goes on where it was; it never cuts twice.
"""

import collections.abc
import dataclasses
import datetime
import json
import os
import pathlib
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import ports
from osc_drp.engine import rules
from osc_drp.i18n import _
from osc_drp import text

#: The server's property by which its owner agrees.
CONSENT = 'drp_drill'
#: The sample of before, in the run's directory.
SAMPLE = 'sample.json'
#: Seconds between two attempts to reach the guest again.
POLL = 3.0

COLUMNS = ('What', 'Before', 'After', 'Result')
Row: ty.TypeAlias = tuple[str, str, str, str]


class Sampler(ty.Protocol):
    """Looks into the guest (hosts/samples.py)."""

    def take(self) -> ty.Any:
        """Look at its files."""

    def compare(self, before: ty.Any) -> ty.Any:
        """Look again; gives the new sample, and the losses."""


class Cut(ty.Protocol):
    """Cuts it off (hosts/cuts.py)."""

    def prove(self) -> list[str]:
        """Say what would be cut."""

    def cut(self) -> None:
        """Do it."""


def check(server: facts.Server, seen: facts.Observation) -> None:
    """See that a drill on this server is agreed to and harmless to others.

    :raises Refused: it is not
    """
    name = server.name or server.id
    if dict(server.metadata).get(CONSENT, '').lower() != 'true':
        raise exceptions.Refused(
            _(
                "'%(name)s' does not consent to a drill: openstack server "
                'set --property %(property)s=true %(id)s'
            )
            % {'name': name, 'property': CONSENT, 'id': server.id}
        )
    if not server.ran or server.task_state is not None:
        raise exceptions.Refused(
            _("'%(name)s' does not simply run: %(state)s")
            % {'name': name, 'state': server.task_state or server.vm_state}
        )
    for pair in facts.pairs(seen):
        if pair.server_id != server.id:
            continue
        verdict = rules.judge(pair)
        if verdict.rule != 'R1':
            raise exceptions.Refused(
                _("volume %(volume)s of '%(name)s': %(reason)s")
                % {
                    'volume': pair.volume_id,
                    'name': name,
                    'reason': verdict.reason,
                }
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Recovered:
    """What `recover` made of it."""

    #: Whether nothing is left to a person.
    well: bool
    what: str


class Drill:
    """Carries out `drp drill`."""

    def __init__(
        self,
        server: facts.Server,
        sampler: Sampler,
        cuts: collections.abc.Sequence[Cut],
        recover: collections.abc.Callable[[journal.Run], Recovered],
        say: ports.Say,
        *,
        wait: float = 300.0,
        clock: ports.Clock | None = None,
    ) -> None:
        """Prepare.

        :param recover: recovers this server, journalled in the same run
        :param wait: seconds for the guest to answer again
        """
        self._server = server
        self._sampler = sampler
        self._cuts = cuts
        self._recover = recover
        self._say = say
        self._wait = wait
        self._clock = clock or ports.RealClock()

    def propose(self) -> list[str]:
        """Say what would be cut; changes nothing.

        :raises Refused: it is not proven to be this server's alone
        """
        return [line for cut in self._cuts for line in cut.prove()]

    def carry_out(
        self,
        run: journal.Run,
        sample_of: collections.abc.Callable[[ty.Any], ty.Any],
    ) -> tuple[bool, list[Row]]:
        """Look, cut, recover, look again; gives whether all is well.

        :param sample_of: makes a sample of its JSON
        """
        begun, complete = _cut_at(run.entries())
        if begun is None:
            before = self._sampler.take()
            _keep(run.path / SAMPLE, before.as_json())
            begun = _now().isoformat(timespec='seconds')
            self._cut(run, begun, self.propose())
        else:
            told = (run.path / SAMPLE).read_text(encoding='utf-8')
            before = sample_of(json.loads(told))
            self._say(_('cut off already, at %s') % begun)
            if not complete:
                self._cut_rest(run)
        recovered = self._recover(run)
        found = self._look_again(before)
        minutes = (_now() - _time(begun)).total_seconds() / 60
        rows = [_server_row(self._server, recovered)]
        what = _('%.1f minutes') % minutes
        if isinstance(found, str):
            # what a drill looks for: a verdict, and no error of ours
            rows.append((_('guest'), _('answered'), found, 'open'))
            what = _('no answer from the guest: %s') % found
        else:
            rows += _rows(before, *found, minutes)
        well = all(row[3] == 'ok' for row in rows)
        run.write(
            'outcome',
            action='drill',
            server=self._server.id,
            status='done' if well else 'open',
            what=what,
        )
        return well, rows

    def _cut(self, run: journal.Run, begun: str, lines: list[str]) -> None:
        for line in lines:
            self._say(_('cutting off: %s') % line)
        run.write(
            'before',
            action='drill',
            server=self._server.id,
            cut=lines,
            begun=begun,
        )
        for cut in self._cuts:
            cut.cut()
        run.write('sent', action='drill', server=self._server.id)

    def _cut_rest(self, run: journal.Run) -> None:
        """Finish a cut that was killed in the middle."""
        for cut in self._cuts:
            try:
                cut.prove()
            except exceptions.Refused as why:
                self._say(str(why))
                continue
            cut.cut()
        run.write('sent', action='drill', server=self._server.id)

    def _look_again(self, before: ty.Any) -> tuple[ty.Any, ty.Any] | str:
        """Wait for another boot of the guest, and look at it.

        :returns: the new sample and the losses, or why there are none
        """
        deadline = self._clock.monotonic() + self._wait
        while True:
            try:
                after, losses = self._sampler.compare(before)
            except exceptions.SshError as error:
                why = str(error)
            else:
                if after.boot_id != before.boot_id:
                    return after, losses
                why = _('it still says that it is the same boot')
            if self._clock.monotonic() >= deadline:
                return _('no look into it %(wait)d s later: %(why)s') % {
                    'wait': self._wait,
                    'why': why,
                }
            self._clock.sleep(POLL)


def _cut_at(entries: list[journal.Entry]) -> tuple[str | None, bool]:
    """Tell when a run began to cut its server off, and whether it ended."""
    begun = None
    complete = False
    for e in entries:
        if e.get('action') == 'drill':
            begun = e.get('begun', begun)
            complete = complete or e['event'] == 'sent'
    return begun, complete


def _keep(path: pathlib.Path, told: object) -> None:
    """Write a file that a resumed run needs, before anything is cut.

    For its owner alone, like the journal: it has names of a guest's files.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    fd = os.open(path, flags, 0o600)
    with open(fd, 'w', encoding='utf-8') as stream:
        json.dump(told, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _time(said: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(said)


def _shown(path: str) -> str:
    """Make a guest's path fit for a table: its bytes may be anything."""
    plain = path.encode(errors='surrogateescape').decode(errors='replace')
    return text.one_line(plain, 1000)


def _server_row(server: facts.Server, recovered: Recovered) -> Row:
    return (
        _('server %s') % (server.name or server.id),
        _('running'),
        recovered.what,
        'ok' if recovered.well else 'open',
    )


def _rows(
    before: ty.Any, after: ty.Any, losses: ty.Any, minutes: float
) -> list[Row]:
    """Tell what was there before and is afterwards."""

    def verdict(well: bool) -> str:
        return 'ok' if well else 'lost'

    rows: list[Row] = []
    for serial, where in sorted(before.disks.items()):
        now = after.disks.get(serial)
        rows.append(
            (
                _('disk %s') % serial,
                _shown(where) or _('not mounted'),
                _('missing')
                if now is None
                else _shown(now) or _('not mounted'),
                verdict(now == where),
            )
        )
    rows.append(
        (
            _('files'),
            str(len(before.files)),
            str(losses.kept),
            verdict(losses.kept == len(before.files)),
        )
    )
    for path in losses.gone:
        rows.append((_shown(path), _('there'), _('gone'), 'lost'))
    for path in losses.changed:
        rows.append((_shown(path), _('there'), _('other content'), 'lost'))
    rows.append((_('minutes until it answered'), '', f'{minutes:.1f}', 'ok'))
    return rows
