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

"""Machines to log in to: real sshd on loopback ports, an imitated inside.

Each machine is an sshd of its own with a host key of its own. Its forced
command is the only thing that is not as on a real one: it puts the
machine's directory before the paths that our scripts read, and its ``bin``
before the PATH. So ``/proc/sys/kernel/random/boot_id`` is a file that the
machine's ``shutdown`` writes anew.
"""

import os
import pathlib
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import typing as ty
import uuid

import fixtures

SSHD = shutil.which('sshd', path='/usr/sbin:/usr/local/sbin:/usr/bin')

SHELL = r"""#!/bin/sh
# stands between sshd and what the client asked for
machine={machine}
# all of the script first: else the client may die of what it still sends
[ ! -e "$machine/down" ] || { cat > /dev/null; kill $PPID; sleep 5; }
[ ! -e "$machine/hangs" ] || sleep 60
echo "$SSH_ORIGINAL_COMMAND" >> "$machine/commands"
echo $PPID > "$machine/session"
paths='/proc/sys/|/proc/fs/|/proc/mounts|/sys/|/etc/|/dev/disk|/var/lib/cloud'
sed -E -e "s#(^|[^a-z])($paths)#\1$machine\2#g" \
    -e "s#^PATH=#PATH=$machine/bin:#" | sh -c "$SSH_ORIGINAL_COMMAND"
"""

SHUTDOWN = r"""#!/bin/sh
# 'shutdown -r now' of a machine that is away for a second
echo "$0 $*" >> {machine}/reboots
[ ! -e {machine}/never ] || { touch {machine}/down; exit 0; }
[ ! -e {machine}/ignores ] || exit 0
touch {machine}/down
(
    sleep 1
    cat /proc/sys/kernel/random/uuid > {machine}/proc/sys/kernel/random/boot_id
    rm {machine}/down
) > /dev/null 2>&1 < /dev/null &
"""

#: iscsiadm with one session that can be closed and opened again, and says
#: what the real one says (open-iscsi 2.1.8).
ISCSIADM = r"""#!/bin/sh
echo "$*" >> {machine}/iscsiadm
case "$*" in
'-m session -P 3')
    [ -e {machine}/sessions ] && exec cat {machine}/sessions
    echo 'iscsiadm: No active sessions.' >&2
    exit 21 ;;
'-m session -r 15 -u')
    [ ! -e {machine}/stuck ] || exit 0
    rm -r {machine}/sessions {machine}/sys/class/iscsi_session/session15 ;;
*--login)
    cp {machine}/target {machine}/sessions ;;
'-m node'*' -o new' | '-m node'*)
    ;;
*)
    exit 7 ;;
esac
"""

#: What sudo 1.9.13 says to -n where a password is needed, and its code.
SUDO_ASKS = '#!/bin/sh\necho "sudo: a password is required" >&2\nexit 1\n'
SUDO = '#!/bin/sh\n[ "$1" = -n ] || exit 9\nshift\nexec "$@"\n'


def required(test: ty.Any) -> None:
    """Skip where there is no sshd; in CI there must be one."""
    if SSHD:
        return
    if os.environ.get('CI'):
        raise AssertionError('no sshd here: apt-get install openssh-server')
    test.skipTest('no sshd here: install openssh-server to run these')


def hold_port() -> socket.socket:
    """Keep a port: nobody is given it, and who connects to it is refused.

    A program that is told the port (SO_REUSEADDR, as sshd) can listen there.
    """
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(('127.0.0.1', 0))
    return one


class Machine:
    """One sshd and the files behind it."""

    def __init__(self, root: pathlib.Path, name: str, key: str) -> None:
        self.name = name
        self.held = hold_port()
        self.port = int(self.held.getsockname()[1])
        self.dir = root / name
        self._log = self.dir / 'sshd.log'
        for part in ('bin', 'etc', 'dev', 'sys/block', 'sys/class/dmi/id'):
            (self.dir / part).mkdir(parents=True)
        self.write('proc/sys/kernel/random/boot_id', f'{uuid.uuid4()}\n')
        self.program('shell', SHELL)
        self.program('bin/shutdown', SHUTDOWN)
        # root, whoever runs the tests
        self.user(0)
        subprocess.run(
            ['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', 'host_key'],
            cwd=self.dir,
            check=True,
            timeout=60,
        )
        self.write('authorized_keys', key)
        self.write(
            'sshd_config',
            f'ListenAddress 127.0.0.1:{self.port}\n'
            f'HostKey {self.dir}/host_key\n'
            f'AuthorizedKeysFile {self.dir}/authorized_keys\n'
            f'PidFile {self.dir}/pid\n'
            'AuthenticationMethods publickey\n'
            'StrictModes no\nUsePAM no\nPermitRootLogin yes\n'
            f'ForceCommand {self.dir}/shell\n',
        )
        self.start()

    def write(self, path: str, content: str) -> None:
        """Write a file of the machine."""
        where = self.dir / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(content)

    def program(self, path: str, content: str) -> None:
        """Write an executable that knows where its machine is."""
        self.write(path, content.replace('{machine}', str(self.dir)))
        (self.dir / path).chmod(0o755)

    def user(self, uid: int) -> None:
        """Say as whom one is logged in."""
        self.program('bin/id', f'#!/bin/sh\necho {uid}\n')

    def is_server(self, server_id: str) -> None:
        """Let the firmware name a server."""
        self.write('sys/class/dmi/id/product_uuid', f'{server_id}\n')

    @property
    def boot_id(self) -> str:
        """The id of its present boot."""
        path = self.dir / 'proc/sys/kernel/random/boot_id'
        return path.read_text().strip()

    def lines(self, path: str) -> list[str]:
        """Read what the machine noted."""
        where = self.dir / path
        return where.read_text().splitlines() if where.exists() else []

    @property
    def reboots(self) -> int:
        """How often it was asked to reboot."""
        return len(self.lines('reboots'))

    def host_key(self) -> str:
        """Give its line for known_hosts."""
        key = (self.dir / 'host_key.pub').read_text()
        return f'[127.0.0.1]:{self.port} {key}'

    def start(self) -> None:
        """Start its sshd and wait for it."""
        assert SSHD
        if os.getuid() == 0:
            os.makedirs('/run/sshd', 0o755, exist_ok=True)
        with open(self._log, 'ab') as log:
            self._process = subprocess.Popen(
                [SSHD, '-D', '-e', '-f', str(self.dir / 'sshd_config')],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(('127.0.0.1', self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(self._log.read_text())

    def stop(self) -> None:
        """End its sshd and all of its sessions."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(10)


class Machines(fixtures.Fixture):
    """Machines, and an ssh configuration that reaches them by name."""

    def _setUp(self) -> None:
        # short: OpenSSH's control sockets and sun_path
        self.root = pathlib.Path(tempfile.mkdtemp(prefix='drp-ssh-'))
        self.addCleanup(shutil.rmtree, self.root, ignore_errors=True)
        self.machines: list[Machine] = []
        self._ports: dict[str, int] = {}
        self._extra: dict[str, str] = {}
        self.known_hosts = self.root / 'known_hosts'
        self.config = self.root / 'config'
        for name in ('key', 'other'):
            subprocess.run(
                ['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', name],
                cwd=self.root,
                check=True,
                timeout=60,
            )
        self.configure()

    def machine(self, name: str) -> Machine:
        """Start a machine that the configuration knows by a name."""
        key = (self.root / 'key.pub').read_text()
        one = Machine(self.root, name, key)
        self.addCleanup(one.held.close)
        self.addCleanup(one.stop)
        self.machines.append(one)
        self.entry(name, one.port)
        return one

    def entry(self, name: str, port: int, extra: str = '') -> None:
        """Add a name to the configuration."""
        self._ports[name] = port
        self._extra[name] = extra
        self.configure()

    def configure(self) -> None:
        """Write the ssh configuration and known_hosts."""
        self.known_hosts.write_text(
            ''.join(m.host_key() for m in self.machines)
        )
        lines = []
        for name, port in self._ports.items():
            lines.append(f'Host {name}\n  Port {port}\n')
            lines.append(f'  HostName 127.0.0.1\n{self._extra[name]}')
        # not getpass: it believes LOGNAME
        me = pwd.getpwuid(os.getuid()).pw_name
        lines.append(
            f'Host *\n  User {me}\n  IdentitiesOnly yes\n'
            f'  IdentityFile {shlex.quote(str(self.root / "key"))}\n'
            f'  UserKnownHostsFile {self.known_hosts}\n'
            '  GlobalKnownHostsFile /dev/null\n'
        )
        self.config.write_text(''.join(lines))
        self.config.chmod(0o600)
