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

"""Step 5 of the procedure: reboot guests from the inside, each once.

A boot has an id, which the kernel makes anew each time
(/proc/sys/kernel/random/boot_id). The journal holds the id of the boot that
is to end before anything is sent, and the guest itself compares it once more
before it shuts down: so no boot is ended that began after ours was decided,
however often a run is killed and repeated. Another id is the proof that the
guest came back.
"""

import collections.abc
import dataclasses
import functools

from osc_drp import exceptions
from osc_drp.engine import apply
from osc_drp.engine import facts
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.engine import restore
from osc_drp.i18n import _
from osc_drp import text

#: Seconds between two attempts to reach a guest that reboots.
POLL = 3.0

#: What a boot that hangs leaves at the end of the console, and what it is.
HANGING: tuple[tuple[str, collections.abc.Callable[[], str]], ...] = (
    ('emergency mode', lambda: _('it waits in the emergency shell')),
    ('emergency shell', lambda: _('it waits in the emergency shell')),
    ('give root password for maintenance', lambda: _('it waits for root')),
    ('(initramfs)', lambda: _('it waits in the shell of its initramfs')),
    ('dropping to a shell', lambda: _('it waits in a shell')),
    ('kernel panic', lambda: _('its kernel panicked')),
    ('a start job is running', lambda: _('it waits for something to start')),
    ('timed out waiting for device', lambda: _('it waited for a disk')),
    ('no bootable device', lambda: _('it finds no disk to boot from')),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The options of `drp guests reboot`."""

    #: Seconds for a guest to come back.
    wait: float = 300.0
    limits: apply.Limits = dataclasses.field(default_factory=apply.Limits)


def why_hanging(console: collections.abc.Sequence[str]) -> str:
    """Read from the end of a console why a guest does not come; '' if not.

    The last line that tells something is the one that counts.
    """
    for line in reversed(console):
        for words, meaning in HANGING:
            if words in line.lower():
                return _('%(why)s (console: "%(line)s")') % {
                    'why': meaning(),
                    'line': text.one_line(line, 120),
                }
    return ''


class Reboot:
    """Plans and carries out `drp guests reboot`."""

    def __init__(
        self,
        cloud: ports.Cloud,
        guests: ports.Guests,
        cloud_map: facts.CloudMap,
        selection: plan.Selection,
        settings: Settings,
        say: ports.Say,
        *,
        boot_ids: collections.abc.Mapping[str, str],
        resets: collections.abc.Mapping[tuple[str, str], str],
        wished_off: collections.abc.Container[tuple[str, str]] = (),
        needing: collections.abc.Container[str] | None = None,
        clock: ports.Clock | None = None,
    ) -> None:
        """Prepare a reboot.

        :param boot_ids: by server, the boot that this run meant to end
            before it was killed (journal.boot_ids)
        :param resets: what resets of ours took off, and when
        :param wished_off: users' detaches that a repair of ours finished
        :param needing: servers to which a volume came after their boot;
            None: all are rebooted
        """
        self._cloud = cloud
        self._guests = guests
        self._map = cloud_map
        self._selection = selection
        self._settings = settings
        self._say = say
        self._boot_ids = dict(boot_ids)
        self._needing = needing
        self._clock = clock or ports.RealClock()
        self._disks = restore.Restore(
            cloud,
            cloud_map,
            selection,
            say,
            resets=resets,
            wished_off=wished_off,
            limits=settings.limits,
        )

    def propose(self) -> tuple[plan.Item, ...]:
        """Observe once and plan; asks no guest, changes nothing."""
        return self.plan_on(self._cloud.observe())

    def plan_on(self, seen: facts.Observation) -> tuple[plan.Item, ...]:
        """Plan on an observation of the APIs."""
        self.seen = seen
        server_ids = plan.select(self._map, self._selection, seen).server_ids
        # all of their disks, whatever --volume says: all are in fstab
        disks = self._disks.judge(
            seen,
            plan.Selected(
                server_ids,
                tuple(
                    a
                    for a in self._map.attachments
                    if a.server_id in server_ids
                ),
            ),
        )
        by_server = facts.group(disks, lambda i: i.server_id)
        return tuple(
            plan.decide_reboot(
                server_id,
                self._map.server(server_id),
                seen.servers.get(server_id),
                by_server.get(server_id, []),
                self._needing is None or server_id in self._needing,
            )
            for server_id in sorted(
                server_ids, key=lambda s: (seen.name_of(s), s)
            )
        )

    def carry_out(
        self,
        items: collections.abc.Iterable[plan.Item],
        run: journal.Run,
        step: ports.Step | None = None,
    ) -> list[apply.Outcome]:
        """Reboot what the plan says, in lanes, each proven.

        A guest that cannot be reached is a person's case and keeps nobody
        waiting; one that does not come back counts as a failure, and after
        some of these in a row (or the very first) no other is rebooted.
        """
        lanes = []
        for item in items:
            if item.do is not plan.Do.REBOOT:
                continue
            untried = apply.Outcome(
                item.server_id, '', apply.UNTRIED, _('not tried')
            )
            lanes.append(
                apply.Lane.of_server(
                    self.seen,
                    item.server_id,
                    functools.partial(self._reboot_one, item, run),
                    [untried],
                )
            )
        return apply.run(lanes, self._settings.limits, self._say, step=step)

    def _reboot_one(
        self, item: plan.Item, run: journal.Run
    ) -> list[apply.Outcome]:
        server_id = item.server_id
        try:
            status, what = self._reboot(server_id, run)
        except exceptions.NotFound:
            status, what = apply.LEFT, _('the server was deleted since')
        except exceptions.DrpError as error:
            status, what = apply.FAILED, str(error)
        run.write(
            'outcome',
            action='guest reboot',
            server=server_id,
            status=status,
            what=what,
        )
        if status in apply.NOT_WELL:
            self._say(f'{self.seen.name_of(server_id)}: {what}')
        return [apply.Outcome(server_id, '', status, what)]

    def _reboot(self, server_id: str, run: journal.Run) -> tuple[str, str]:
        # the question may have waited for its answer for an hour
        server = self._cloud.server(server_id)
        if not server.ran or server.task_state is not None:
            return apply.OPEN, _('changed meanwhile: the server is %s') % (
                server.task_state or server.vm_state
            )
        before = self._boot_ids.get(server_id)
        try:
            boot_id = self._present_boot(server, before is not None)
        except exceptions.SshError as error:
            return apply.OPEN, self._unreached(server_id, before, error)
        if before is not None and before != boot_id:
            return apply.DONE, _('it was rebooted already, in this run')
        run.write(
            'before', action='guest reboot', server=server_id, boot_id=boot_id
        )
        self._boot_ids[server_id] = boot_id
        try:
            self._guests.reboot(server, boot_id)
        except (exceptions.Changed, exceptions.SshBroken):
            # another boot by now, or a shutdown that cut the connection:
            # the next boot id tells
            pass
        except exceptions.SshError as error:
            return apply.OPEN, str(error)
        run.write('sent', action='guest reboot', server=server_id)
        return self._until_back(server, boot_id)

    def _present_boot(self, server: facts.Server, rebooting: bool) -> str:
        """Ask for the boot id; who may be rebooting is waited for.

        :param rebooting: a killed run may just have sent the reboot
        :raises SshError: it cannot be reached
        """
        begun = self._clock.monotonic()
        while True:
            try:
                return self._guests.boot_id(server)
            except exceptions.SshError:
                waited = self._clock.monotonic() - begun
                if not rebooting or waited >= self._settings.wait:
                    raise
            self._clock.sleep(POLL)

    def _until_back(
        self, server: facts.Server, boot_id: str
    ) -> tuple[str, str]:
        """Wait for another boot id, the only proof."""
        begun = self._clock.monotonic()
        why = _('it still says that it is the same boot')
        while self._clock.monotonic() - begun < self._settings.wait:
            self._clock.sleep(POLL)
            try:
                now = self._guests.boot_id(server)
            except exceptions.SshError as error:
                why = str(error)
                continue
            if now != boot_id:
                seconds = self._clock.monotonic() - begun
                return apply.DONE, _('rebooted, back after %d s') % seconds
            why = _('it still says that it is the same boot')
        return apply.FAILED, _(
            'not back %(wait)d s after its reboot: %(why)s'
        ) % {
            'wait': self._settings.wait,
            'why': why_hanging(self._cloud.console(server.id)) or why,
        }

    def _unreached(
        self,
        server_id: str,
        before: str | None,
        error: exceptions.SshError,
    ) -> str:
        """Say why a guest cannot be asked for its boot."""
        hanging = why_hanging(self._cloud.console(server_id))
        why = f'{error}; {hanging}' if hanging else str(error)
        if before is None:
            return why
        return _('not back since its reboot in this run: %s') % why
