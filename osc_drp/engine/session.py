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

"""One invocation of a command that changes something."""

import collections.abc
import contextlib
import getpass
import os
import pathlib
import socket
import typing as ty

from osc_drp.engine import journal
from osc_drp.engine import ports
from osc_drp.i18n import _


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # a container without a name for the uid
        return f'uid {os.getuid()}'


class Session:
    """Holds the run directory; opens the journal when acting begins."""

    def __init__(
        self,
        directory: pathlib.Path,
        command: str,
        subject: dict[str, ty.Any],
        say: ports.Say,
    ) -> None:
        self.runs = journal.RunDirectory(directory)
        self._command = command
        self._subject = subject
        self.say = say

    @contextlib.contextmanager
    def held(self, dry_run: bool = False) -> collections.abc.Iterator[None]:
        """Keep other runs on this cloud out; a dry run takes no lock.

        :raises Refused: another run is under way
        """
        if dry_run:
            yield
            return
        owner = f'{self._command} by {_user()} on {socket.gethostname()}'
        self.runs.lock(owner)
        try:
            yield
        finally:
            self.runs.unlock()

    def earlier(self) -> list[journal.Entry]:
        """Read the journal of the run that this invocation goes on with."""
        unfinished = self.runs.unfinished(self._command, self._subject)
        return journal.read(unfinished) if unfinished else []

    @contextlib.contextmanager
    def journal(self) -> collections.abc.Iterator[journal.Run]:
        """Open the journal: of the newest unfinished run, or a new one.

        A run that is left by an error or an interrupt stays unfinished.
        """
        unfinished = self.runs.unfinished(self._command, self._subject)
        if unfinished:
            run = journal.Run(unfinished)
            run.write('resume')
            self.say(_('going on with run %s') % run.id)
        else:
            run = self.runs.begin(self._command, self._subject)
            self.say(_('run %s') % run.path)
        try:
            yield run
            run.write('end')
        finally:
            run.close()
