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

"""Cutting one server off its storage and its power, as a loss would.

Each way is proven to be of that server before anything is cut: a session by
what it carries (iscsi.py), a guest by its UUID, which is the server's id.
"""

import collections.abc
import subprocess
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.hosts import guests
from osc_drp.hosts import iscsi
from osc_drp.hosts import ssh
from osc_drp.i18n import _
from osc_drp import text

#: Seconds for an operator's own program.
LIMIT = 300.0

STATE = """
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
section state
as_root virsh -c qemu:///system domstate "$uuid" 2>&1
echo "code $?"
"""

#: Not 'shutdown': a loss asks nobody.
DESTROY = """
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
section destroy
as_root virsh -c qemu:///system destroy "$uuid" 2>&1
echo "code $?"
"""


class Cut(ty.Protocol):
    """A way to cut a server off."""

    def prove(self) -> list[str]:
        """Say what would be cut, one line each; changes nothing.

        :raises Refused: it is not proven to be that server's alone
        """

    def cut(self) -> None:
        """Do it."""


class Sessions:
    """The iSCSI sessions that carry the server's volumes."""

    def __init__(
        self,
        host: iscsi.Host,
        read: collections.abc.Callable[[], list[iscsi.Carried]],
        server: facts.Server,
        seen: facts.Observation,
    ) -> None:
        self._host = host
        self._read = read
        self._server = server
        self._seen = seen
        self._found: list[iscsi.Carried] = []

    def prove(self) -> list[str]:
        mine = {
            p.volume_id
            for p in facts.pairs(self._seen)
            if p.server_id == self._server.id
        }
        self._found = [c for c in self._read() if c.volume_ids & mine]
        for one in self._found:
            iscsi.prove(
                one,
                self._server,
                self._seen,
                self._server.host or '',
                even_if_running=True,
            )
        return [
            _('iSCSI session %(id)d of %(host)s (volume %(volume)s)')
            % {
                'id': one.session.id,
                'host': self._server.host,
                'volume': ', '.join(sorted(one.volume_ids)),
            }
            for one in self._found
        ]

    def cut(self) -> None:
        for one in self._found:
            self._host.logout(one.session)


class Guest:
    """The guest's process: its power, and what it did not write yet."""

    def __init__(self, shell: ssh.Ssh, server: facts.Server) -> None:
        self._shell = shell
        self._server = server

    def prove(self) -> list[str]:
        state = self._virsh('state', STATE)
        if state.strip() != 'running':
            raise exceptions.Refused(
                _('on %(host)s the guest is not running, but: %(state)s')
                % {
                    'host': self._server.host,
                    'state': text.one_line(state),
                }
            )
        return [
            _('the guest on %(host)s (virsh destroy %(id)s)')
            % {'host': self._server.host, 'id': self._server.id}
        ]

    def cut(self) -> None:
        self._virsh('destroy', DESTROY)

    def _virsh(self, name: str, script: str) -> str:
        answer = self._shell.run(
            ssh.Target(self._server.host or ''),
            script,
            values={'uuid': self._server.id},
        )
        *lines, last = answer.sections().get(name) or ['code 127']
        said = ' '.join(lines)
        code = guests.code_of(last, said)
        if code:
            why = guests.sudo_refused(said)
            if code == guests.NOT_FOUND:
                why = why or _('it has no virsh')
            raise exceptions.SshError(
                f'{self._server.host}: virsh: {why or text.one_line(said)}'
            )
        return said


class Program:
    """An operator's own way: a program, given the server's id and host."""

    def __init__(self, program: str, server: facts.Server) -> None:
        self._program = program
        self._server = server

    def prove(self) -> list[str]:
        return [
            _('whatever %(program)s %(id)s %(host)s cuts')
            % {
                'program': self._program,
                'id': self._server.id,
                'host': self._server.host,
            }
        ]

    def cut(self) -> None:
        command = [self._program, self._server.id, self._server.host or '']
        try:
            done = subprocess.run(  # noqa: S603 - a list, and no shell
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LIMIT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise exceptions.DrpError(
                _('%(program)s: %(reason)s')
                % {'program': self._program, 'reason': error}
            ) from error
        if done.returncode:
            said = done.stderr or done.stdout
            raise exceptions.DrpError(
                _('%(program)s ended with %(code)d: %(said)s')
                % {
                    'program': self._program,
                    'code': done.returncode,
                    'said': text.one_line(said.decode(errors='replace')),
                }
            )
