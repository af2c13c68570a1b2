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

"""SSH to guests and hosts: the ``ssh`` program, as the operator set it up.

What works as ``ssh web1`` works here: the same configuration, keys, agent,
jump hosts and known_hosts. No option of ours weakens the check of a host
key; nothing here can answer a question (BatchMode), and every run has a time
limit after which its process group is killed.

What runs on the other side is a script for ``sh``, sent on standard input:
so no name ever meets a login shell's quoting, and a script that was cut off
on its way is a syntax error, not half a script.
"""

import collections.abc
import contextlib
import dataclasses
import os
import re
import secrets
import selectors
import shlex
import signal
import subprocess
import time
import typing as ty

from osc_drp import exceptions
from osc_drp.i18n import _
from osc_drp import text

#: Seconds for the TCP connection and the first words of the other side.
CONNECT = 15
#: Seconds without a sign of life after which ssh gives up, and how often.
ALIVE, ALIVE_COUNT = 5, 3
#: Seconds that a run may take from beginning to end.
LIMIT = 60.0
#: Bytes of output that are kept; more ends the run.
OUTPUT = 1 << 20

#: Where administrators' commands lie; many logins lack it.
PATH = '/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin'

_HOST = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.:%-]{0,254}')
_USER = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.@+\\-]{0,254}\$?')


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where to go, and why there."""

    host: str
    #: Whether the operator's ssh configuration names it, or its id.
    named: bool = False

    def __post_init__(self) -> None:
        if not valid(self.host):
            raise exceptions.SshError(
                _("'%s' is no host name or address") % text.one_line(self.host)
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a script said.

    Bytes that are no UTF-8 are kept in it (surrogateescape, PEP 383): names
    of files are bytes.
    """

    code: int
    out: str
    err: str

    def sections(self, exact: bool = False) -> dict[str, list[str]]:
        """Give the lines of each section, without empty ones.

        :param exact: with the bytes that are no UTF-8, which no terminal
            can show; else each of them is replaced
        """
        found: dict[str, list[str]] = {}
        lines: list[str] = []
        # not splitlines(): a name may have a \r or a U+0085 in it
        for line in (self.out if exact else shown(self.out)).split('\n'):
            if line.startswith(MARK):
                lines = found.setdefault(line.removeprefix(MARK), [])
            elif line.strip():
                lines.append(line)
        return found

    def words(self) -> str:
        """Give the last thing it said about a failure."""
        lines = shown(self.err or self.out).strip().splitlines()
        return (
            text.one_line(lines[-1])
            if lines
            else _('exit code %d') % self.code
        )


#: Begins a line that names what follows it in a script's output.
MARK = '@osc-drp '
#: ``section NAME`` prints it; what came before may not end its last line.
_SECTION = f"section() {{ printf '\\n{MARK}%s\\n' \"$1\"; }}\n"


def shown(said: str) -> str:
    """Replace the bytes that are no UTF-8, for whoever prints it."""
    return said.encode(errors='surrogateescape').decode(errors='replace')


def valid(host: str) -> bool:
    """Whether ssh can be given this as a host, and as nothing else.

    No option (``-o...``), no user (``@``), no URL and no character that
    means something in an operator's ``ProxyCommand``.
    """
    return _HOST.fullmatch(host) is not None


class Ssh:
    """Runs scripts on other machines."""

    def __init__(
        self,
        config: str | None = None,
        user: str | None = None,
        program: str = 'ssh',
    ) -> None:
        """Prepare; nothing is run yet.

        :param config: instead of the operator's ~/.ssh/config
        :param user: instead of whom the configuration names
        :raises Usage: an option that ssh would not understand
        """
        if user is not None and not _USER.fullmatch(user):
            raise exceptions.Usage(_("--ssh-user: '%s' is no user") % user)
        if config is not None:
            try:
                with open(config, 'rb'):
                    pass
            except OSError as error:
                raise exceptions.ConfigError(
                    _("ssh configuration '%(path)s': %(reason)s")
                    % {'path': config, 'reason': error.strerror}
                ) from error
        self._program = program
        self._common = ['-F', config] if config else []
        self._login = ['-l', user] if user else []
        self._nobody: list[str] | None = None

    def entry(self, name: str) -> bool:
        """Whether the ssh configuration has something for just this name.

        It has if ``ssh -G`` answers otherwise than for a name that nobody
        could mean.

        :raises SshError: ssh cannot read its configuration
        """
        if not valid(name):
            return False
        if self._nobody is None:
            self._nobody = self._effective(f'nobody-{secrets.token_hex(8)}')
        return self._effective(name) != self._nobody

    def _effective(self, name: str) -> list[str]:
        """Ask ssh what it would do, with the name itself taken out."""
        args = ['-G', *self._common, '--', name]
        answer = self._call(args, b'', LIMIT, name)
        if answer.code:
            raise exceptions.SshError(
                _('ssh cannot read its configuration: %s') % answer.words()
            )
        # 'host' is not told by older ones; HostName may be made of the name
        return [
            line.lower().replace(name.lower(), '%h')
            if line.startswith('hostname ')
            else line
            for line in shown(answer.out).splitlines()
            if not line.startswith('host ')
        ]

    def run(
        self,
        target: Target,
        script: str,
        limit: float = LIMIT,
        values: collections.abc.Mapping[str, str] | None = None,
    ) -> Answer:
        """Run a script for sh on another machine.

        :param limit: seconds for all of it
        :param script: may begin a part of its output by ``section NAME``
        :param values: variables for the script, whatever is in them
        :raises SshError: nothing ran there
        :raises SshBroken: the connection broke, or it took too long: what
            was sent may have run or not
        """
        variables = ''.join(
            f'{name}={shlex.quote(value)}\n'
            for name, value in (values or {}).items()
        )
        wrapped = (
            f'(\n{_SECTION}section begin\n'
            f'PATH={PATH}:$PATH\nLC_ALL=C\nexport PATH LC_ALL\n'
            f'{variables}{script}\n'
            f') < /dev/null\nprintf "\\n{MARK}exit %s\\n" $?\n'
        )
        answer = self._call(
            [*self._options(), '--', target.host, 'exec sh -s'],
            wrapped.encode(errors='surrogateescape'),
            limit,
            target.host,
        )
        begun, left = _unwrap(answer.out)
        if not begun:
            raise _unbegun(target.host, answer, self._login)
        if left is None:
            raise exceptions.SshBroken(
                _('%(host)s: the connection broke: %(words)s')
                % {'host': target.host, 'words': answer.words()}
            )
        return Answer(left[1], left[0], answer.err)

    def _options(self) -> list[str]:
        return [
            *('-T', '-x', '-a'),
            *('-o', 'BatchMode=yes'),
            *('-o', f'ConnectTimeout={CONNECT}'),
            *('-o', f'ServerAliveInterval={ALIVE}'),
            *('-o', f'ServerAliveCountMax={ALIVE_COUNT}'),
            # what goes wrong must be told, whatever the configuration says
            *('-o', 'LogLevel=ERROR'),
            # not of ours: a shell that somebody else needs
            *('-o', 'RemoteCommand=none', '-o', 'ClearAllForwardings=yes'),
            # known_hosts is the operator's: a server may not have its other
            # keys written there either
            *('-o', 'UpdateHostKeys=no'),
            # a shared connection may be dead since the loss, and would not
            # survive a reboot
            *('-o', 'ControlPath=none'),
            *self._common,
            *self._login,
        ]

    def _call(
        self, args: list[str], script: bytes, limit: float, host: str
    ) -> Answer:
        command = [self._program, *args]
        environment = {
            **os.environ,
            'LC_ALL': 'C',
            'SSH_ASKPASS_REQUIRE': 'never',
        }
        try:
            # of its own session: an interrupt of ours must not reach it, and
            # all of it, jump hosts too, can be ended at once
            process = subprocess.Popen(  # noqa: S603 - a list, and no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise exceptions.SshError(
                _('cannot run %(program)s: %(reason)s')
                % {'program': self._program, 'reason': error.strerror}
            ) from error
        try:
            out, err, ended = _talk(process, script, limit)
        finally:
            _end(process)
        if ended:
            raise exceptions.SshBroken(
                _('%(host)s: %(what)s') % {'host': host, 'what': ended}
            )
        return Answer(
            process.returncode,
            out.decode(errors='surrogateescape'),
            err.decode(errors='replace'),
        )


def _talk(
    process: 'subprocess.Popen[bytes]', script: bytes, limit: float
) -> tuple[bytes, bytes, str]:
    """Send a script and read what comes back, within bounds.

    :returns: both outputs, and why it must be ended ('': it ended itself)
    """
    assert process.stdin and process.stdout and process.stderr
    deadline = time.monotonic() + limit
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    left = memoryview(script)
    why = ''
    with selectors.DefaultSelector() as ready:
        for stream in kept:
            ready.register(stream, selectors.EVENT_READ)
        os.set_blocking(process.stdin.fileno(), False)
        ready.register(process.stdin, selectors.EVENT_WRITE)
        while ready.get_map() and not why:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                why = _('no end after %d s, so it was ended') % limit
                break
            for key, _mask in ready.select(min(remaining, 0.5)):
                if key.fileobj is process.stdin:
                    left = _write(process.stdin, left)
                    if not left:
                        ready.unregister(process.stdin)
                        with contextlib.suppress(BrokenPipeError):
                            process.stdin.close()
                    continue
                stream = ty.cast(ty.IO[bytes], key.fileobj)
                data = os.read(stream.fileno(), 65536)
                if not data:
                    ready.unregister(stream)
                    continue
                kept[stream] += data
                if len(kept[stream]) > OUTPUT:
                    why = _('more than %d bytes of output') % OUTPUT
            if process.poll() is not None and not ready.select(0):
                # a master connection in the background may hold the pipes
                break
    out, err = (bytes(data) for data in kept.values())
    if not why:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            why = _('no end after %d s, so it was ended') % limit
    return out, err, why


def _write(stream: ty.IO[bytes], data: memoryview) -> memoryview:
    try:
        return data[os.write(stream.fileno(), data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        # it ended without reading; why is in what it said
        return data[len(data) :]


def _end(process: 'subprocess.Popen[bytes]') -> None:
    """Leave nothing of a run behind."""
    if process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            try:
                process.wait(2)
                break
            except subprocess.TimeoutExpired:
                continue
        # its jump hosts, if it went without them
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def _unwrap(out: str) -> tuple[bool, tuple[str, int] | None]:
    """Take off what a run puts around a script's output.

    :returns: whether the script began, and if it ended, what it said and
        its exit code
    """
    # a login shell may have said something before
    _noise, begun, said = f'\n{out}'.rpartition(f'\n{MARK}begin\n')
    if not begun:
        return False, None
    said, ended, code = f'\n{said}'.rpartition(f'\n{MARK}exit ')
    number = text.number(code)
    if not ended or number is None:
        return True, None
    return True, (f'{MARK}begin{said}\n', number)


#: What ssh says, and what that means; the first match wins (OpenSSH 9.2).
_REASONS: tuple[tuple[str, collections.abc.Callable[[], str]], ...] = (
    (
        'REMOTE HOST IDENTIFICATION HAS CHANGED',
        lambda: _(
            'its host key is not the one in known_hosts: find out why, then '
            'correct known_hosts'
        ),
    ),
    (
        'REVOKED',
        lambda: _('its host key was revoked'),
    ),
    (
        'Host key verification failed',
        lambda: _(
            'its host key is not known: check it, then add it to known_hosts'
        ),
    ),
    (
        'Could not resolve hostname',
        lambda: _('its name cannot be resolved'),
    ),
    (
        'banner exchange',
        lambda: _('it takes the connection and says nothing'),
    ),
    # before a key was exchanged: nothing of ours can have begun
    (
        'kex_exchange_identification',
        lambda: _('it takes the connection and ends it at once'),
    ),
    ('Connection refused', lambda: _('it refuses the connection')),
    ('No route to host', lambda: _('there is no route to it')),
    ('Network is unreachable', lambda: _('there is no route to it')),
    ('Connection timed out', lambda: _('it does not answer')),
    ('Operation timed out', lambda: _('it does not answer')),
    ('Too many authentication failures', lambda: _('it refuses our keys')),
)


def _unbegun(
    host: str, answer: Answer, login: list[str]
) -> exceptions.SshError:
    """Say in our words why a script did not tell that it began."""

    def error(why: str) -> exceptions.SshError:
        return exceptions.SshError(
            _('%(host)s: %(why)s') % {'host': host, 'why': why}
        )

    if 'Permission denied' in answer.err:
        if login:
            return error(_('it refuses the key of user %s') % login[1])
        return error(_('it refuses our key (%s)') % answer.words())
    for said, meaning in _REASONS:
        if said in answer.err:
            return error(meaning())
    if answer.code != 255:
        return error(_('no shell that runs our script: %s') % answer.words())
    # it may have begun, and the connection broke before it could say so
    return exceptions.SshBroken(
        _('%(host)s: %(why)s') % {'host': host, 'why': answer.words()}
    )
