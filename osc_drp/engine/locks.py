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

"""Nova's locks: while we work on a server, its users do not.

A locked server refuses its users' requests and takes an administrator's
(nova 34.0.0 compute/api.py, check_instance_lock). A lock that was there
before is somebody's will: it stays as it is, and so does one that somebody
set while ours was on. Ours carry the id of the run in their reason, so that
a run that was killed, or the next one, finds and releases them. A nova that
keeps no reasons (before Train, compute API 2.73) is not asked to lock.
"""

import collections.abc
import contextlib

from osc_drp import exceptions
from osc_drp.engine import journal
from osc_drp.engine import ports
from osc_drp.i18n import _


def reason(run_id: str) -> str:
    """Give the reason that users see in the lock of a run."""
    return f'osc-drp {run_id}: is being recovered'


class Locks:
    """Locks servers for one run."""

    def __init__(
        self, cloud: ports.Cloud, run: journal.Run, say: ports.Say
    ) -> None:
        self._cloud = cloud
        self._run = run
        self._say = say
        #: Servers that could not be unlocked.
        self.left: set[str] = set()

    @contextlib.contextmanager
    def held(self, server_id: str) -> collections.abc.Iterator[None]:
        """Keep a server's users out; nothing if it is locked already.

        :raises DrpError: nova did not lock it; nothing was done
        """
        mine = self._take(server_id)
        try:
            yield
        finally:
            if mine:
                self.release(server_id, self._run.id)

    def _take(self, server_id: str) -> bool:
        """Lock it; False: somebody else's lock is on it."""
        if not self._cloud.keeps_lock_reasons:
            return False
        server = self._cloud.server(server_id)
        if server.locked:
            # ours from before a kill, or somebody's
            return server.locked_reason == reason(self._run.id)
        self._run.write('lock', server=server_id)
        try:
            self._cloud.lock(server_id, reason(self._run.id))
        except exceptions.DrpError as error:
            # what became of a request without an answer is not known
            self.release(server_id, self._run.id)
            if isinstance(error, exceptions.NotFound):
                raise
            raise exceptions.ApiError(
                _('not locked, so nothing was done: %s') % error
            ) from error
        return True

    def release(self, server_id: str, run_id: str) -> None:
        """Unlock a server if the lock on it is that run's; never fails.

        What cannot be unlocked is said, and stays in the journal for the
        next run.
        """
        try:
            server = self._cloud.server(server_id)
            if server.locked and server.locked_reason == reason(run_id):
                self._cloud.unlock(server_id)
        except exceptions.NotFound:
            pass
        except exceptions.DrpError as error:
            self.left.add(server_id)
            self._say(
                _(
                    'server %(server)s is still locked (%(error)s): run the '
                    'command again, or "openstack server unlock %(server)s"'
                )
                % {'server': server_id, 'error': error}
            )
            return
        self.left.discard(server_id)
        self._note_release(server_id, run_id)

    def _note_release(self, server_id: str, run_id: str) -> None:
        """Say it where the lock was said, after it.

        That run may be taken up again and lock the server anew: in a journal
        of another name this release would seem to be of that lock, too.
        """
        if run_id == self._run.id:
            self._run.write('unlocked', server=server_id)
            return
        with contextlib.closing(
            journal.Run(self._run.path.parent / run_id)
        ) as earlier:
            earlier.write('unlocked', server=server_id, by=self._run.id)
