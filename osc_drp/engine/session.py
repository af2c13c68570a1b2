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
import datetime
import getpass
import os
import pathlib
import signal
import socket
import threading
import typing as ty

from osc_drp import exceptions
from osc_drp.engine import journal
from osc_drp.engine import plan
from osc_drp.engine import ports
from osc_drp.i18n import _


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # a container without a name for the uid
        return f'uid {os.getuid()}'


@contextlib.contextmanager
def _signals_interrupt() -> collections.abc.Iterator[None]:
    """Take the end of the terminal, and SIGTERM, as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP)
        # nohup stays what it is
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Session:
    """Holds the run directory; opens the journal when acting begins."""

    def __init__(
        self,
        directory: pathlib.Path,
        command: str,
        subject: dict[str, ty.Any],
        say: ports.Say,
        again: collections.abc.Sequence[str] = (),
    ) -> None:
        """Prepare.

        :param again: the command, in words, for who reads the journal
        """
        self.runs = journal.RunDirectory(directory)
        self._command = command
        self._subject = subject
        self._resumed: pathlib.Path | None = None
        #: Leave the run unfinished, for the same command to go on with it.
        self.keep_open = False
        self.say = say
        self._again = again

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
        unfinished = self.unfinished()
        return journal.read(unfinished) if unfinished else []

    def idle(self) -> datetime.timedelta:
        """Tell how long nobody has gone on with the unfinished run."""
        return journal.idle(self.earlier())

    def unfinished(self) -> pathlib.Path | None:
        """Find the run that ``journal`` would go on with."""
        return self._resumed or self.runs.unfinished(
            self._command, self._subject
        )

    def resume(self, name: str) -> journal.Entry:
        """Go on with this run, and no other; gives what it began with.

        :raises DrpError: there is none, or it is another command's
        :raises Refused: it is finished
        """
        path = self.runs.find(name)
        entries = journal.read(path)
        if not entries or entries[0].get('command') != self._command:
            raise exceptions.DrpError(
                _("run %(run)s is none of 'openstack drp %(command)s'")
                % {'run': path.name, 'command': self._command}
            )
        if any(e['event'] == 'end' for e in entries):
            raise exceptions.Refused(
                _('run %s is finished: there is nothing to go on with')
                % path.name
            )
        self._resumed = path
        subject: journal.Entry = entries[0]['subject']
        return subject

    @contextlib.contextmanager
    def journal(self) -> collections.abc.Iterator[journal.Run]:
        """Open the journal: of the newest unfinished run, or a new one.

        A run that is left by an error or an interrupt stays unfinished. A
        hangup or a SIGTERM is taken as an interrupt: what is under way is
        finished.
        """
        unfinished = self.unfinished()
        if unfinished:
            run = journal.Run(unfinished)
            run.write('resume', again=list(self._again))
            self.say(_('going on with run %s') % run.id)
        else:
            run = self.runs.begin(self._command, self._subject, self._again)
            self.say(_('run %s') % run.path)
        try:
            with _signals_interrupt():
                yield run
            if not self.keep_open:
                run.write('end')
        finally:
            run.close()


def announce(
    run: journal.Run,
    step: str,
    items: collections.abc.Iterable[plan.Item],
    names: collections.abc.Mapping[str, str],
    does: collections.abc.Container[plan.Do] = plan.ACTING,
) -> None:
    """Write down what is planned, for who reads the journal (runs show).

    :param step: the action that the outcomes will have
    :param does: what counts as planned
    """
    items = list(items)
    acting = [i for i in items if i.do in does]
    run.write('plan', steps={step: len(acting)})
    ids = {i.server_id for i in items}
    run.write('names', servers={s: n for s, n in names.items() if s in ids})
    list_open(run, (i for i in items if i.do not in does))


def list_open(
    run: journal.Run, items: collections.abc.Iterable[plan.Item]
) -> None:
    """Write down what needs a person and is not acted on."""
    unsure = (plan.Do.FLAG, plan.Do.WAIT, plan.Do.PROVE)
    run.write(
        'open',
        items=[
            {'server': i.server_id, 'volume': i.volume_id, 'what': i.reason}
            for i in items
            if i.do in unsure
        ],
    )
