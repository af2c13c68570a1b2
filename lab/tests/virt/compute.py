"""The way into compute1, which is this machine: an sshd on loopback, and an ssh configuration that knows it by nova's name."""
import contextlib
import os
import shutil
import socket
import subprocess

import labkit

#: nova's name of the host, and cinder's of the one that has its cinder-volume: the same machine here.
NAMES = ('compute1', 'lab')


def _free_port():
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


def _answers(port):
    with contextlib.suppress(OSError):
        socket.create_connection(('127.0.0.1', port), 1).close()
        return True
    return False


@contextlib.contextmanager
def sshd(where, fstab=None):
    """The ssh options that lead to compute1, to the guests, and (refused) to compute2.

    :param fstab: what the host has as its /etc/fstab, so that this machine's own stays as it is
    """
    port = _free_port()
    key, config, known_hosts = where / 'host_key', where / 'ssh_config', where / 'known_hosts'
    labkit.run(('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', str(key)), check=True)
    (where / 'sshd_config').write_text(
        f'ListenAddress 127.0.0.1:{port}\nHostKey {key}\nAuthorizedKeysFile {labkit.LAB_HOME}/var/guest/id_ed25519.pub\n'
        'AuthenticationMethods publickey\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n')
    known_hosts.write_text(f'[127.0.0.1]:{port} {key.with_suffix(".pub").read_text()}')
    config.write_text(
        f'Host {" ".join(NAMES)}\n    HostName 127.0.0.1\n    Port {port}\n    User root\n    UserKnownHostsFile {known_hosts}\n'
        f'Host compute2\n    HostName 127.0.0.1\n    Port {_free_port()}\n{(labkit.ETC / "ssh_config").read_text()}')
    os.makedirs('/run/sshd', 0o755, exist_ok=True)
    argv = [shutil.which('sshd', path='/usr/sbin'), '-D', '-e', '-f', str(where / 'sshd_config')]
    if fstab:
        argv = ['unshare', '-m', 'sh', '-c', 'mount --bind "$0" /etc/fstab && exec "$@"', str(fstab), *argv]
    with open(where / 'sshd.log', 'wb') as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        labkit.wait_until(lambda: _answers(port), 20, f'an sshd on compute1 (see {where}/sshd.log)')
        yield '--ssh-config', str(config)
    finally:
        process.terminate()
        process.wait(10)
