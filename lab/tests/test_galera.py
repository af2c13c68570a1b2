"""A real Galera node (Debian's galera-4) that is not part of its cluster: 1047, waited for with a message, and not for ever; and TLS.

The node is a mariadbd of the test's own, on a copy of the lab's databases. It leaves its cluster by joining one that nobody
answers for, and comes back as operators do it: pc.bootstrap. That takes its clients' connections; where they must stay, as when
the network splits, wsrep_reject_queries answers the same 1047.
"""
import json
import os
import pathlib
import shutil
import subprocess
import threading
import time
from unittest import mock

import labkit
from osc_drp import exceptions
from osc_drp.db import config
from osc_drp.db import engines
from osc_drp.db import read
from osc_drp.db import write
from osc_drp.engine import facts
import pytest

# below 32768, where Linux begins to give out ports to connections
PORT, GROUP, TRANSFER, NOBODY = 23871, 23872, 23873, 23874
SCHEMAS = ('cinder', 'nova_api', *labkit.CELLS)
PROVIDER = pathlib.Path('/usr/lib/galera/libgalera_smm.so')


class Node:
    """One node of a cluster of one."""

    def __init__(self, home):
        self.home = home
        self.socket = home / 'socket'

    def certify(self):
        """A CA of its own, and a certificate for 127.0.0.1."""
        for command in (
                'req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca',
                'req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=node',
                'x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names',
                'req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.pem -days 2 -subj /CN=ca'):
            (self.home / 'names').write_text('subjectAltName=IP:127.0.0.1\n')
            subprocess.run(['openssl', *command.split()], cwd=self.home, check=True, capture_output=True, timeout=60)

    def start(self):
        self.certify()
        subprocess.run(['mariadb-install-db', '--no-defaults', f'--datadir={self.home}/data', '--user=root', '--skip-test-db',
                        '--auth-root-authentication-method=normal'], check=True, capture_output=True, timeout=120)
        options = f'base_port={GROUP};gmcast.listen_addr=tcp://127.0.0.1:{GROUP};ist.recv_addr=127.0.0.1:{TRANSFER}'
        with open(self.home / 'log', 'wb') as log:
            self.process = subprocess.Popen([
                'mariadbd', '--no-defaults', '--user=root', f'--datadir={self.home}/data', f'--socket={self.socket}',
                f'--port={PORT}', '--bind-address=127.0.0.1', f'--pid-file={self.home}/pid', '--skip-name-resolve',
                '--binlog-format=ROW', '--innodb-autoinc-lock-mode=2', '--innodb-buffer-pool-size=32M',
                f'--ssl-ca={self.home}/ca.pem', f'--ssl-cert={self.home}/cert.pem', f'--ssl-key={self.home}/key.pem',
                '--wsrep-on=ON', f'--wsrep-provider={PROVIDER}', '--wsrep-cluster-address=gcomm://', '--wsrep-cluster-name=test',
                f'--wsrep-node-address=127.0.0.1:{GROUP}', f'--wsrep-provider-options={options}'],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        labkit.wait_until(self.ready, 60, 'the node is ready')

    def ready(self):
        assert self.process.poll() is None, (self.home / 'log').read_text()[-2000:]
        done = self.sql("SHOW STATUS LIKE 'wsrep_ready'", check=False)
        return 'ON' in done

    def sql(self, statement, check=True):
        p = subprocess.run(['mariadb', '--no-defaults', '-uroot', f'--socket={self.socket}', '-N'], input=statement, text=True,
                           capture_output=True, timeout=60)
        assert not check or p.returncode == 0, p.stderr
        return p.stdout

    def leave(self):
        self.sql(f"SET GLOBAL wsrep_cluster_address = 'gcomm://127.0.0.1:{NOBODY}?pc.wait_prim=no'")
        assert not self.ready()

    def come_back(self):
        self.sql("SET GLOBAL wsrep_provider_options = 'pc.bootstrap=YES'")
        labkit.wait_until(self.ready, 30, 'the node is ready')

    def reject(self, what='ALL'):
        self.sql(f'SET GLOBAL wsrep_reject_queries = {what}')

    def load(self):
        """Take the lab's databases, without the judge."""
        dump = subprocess.run(['mariadb-dump', '--no-defaults', '-uroot', f'--socket={labkit.LAB_HOME}/run/mysqld.sock',
                               '--skip-triggers', '--single-transaction', '--databases', *SCHEMAS],
                              check=True, capture_output=True, timeout=120)
        subprocess.run(['mariadb', '--no-defaults', '-uroot', f'--socket={self.socket}'], input=dump.stdout, check=True,
                       timeout=120)
        url = f'mysql+pymysql://drp:secret@127.0.0.1:{PORT}'
        self.sql("CREATE USER drp@'%' IDENTIFIED BY 'secret'; GRANT ALL ON *.* TO drp@'%';" + ''.join(
            f"UPDATE nova_api.cell_mappings SET database_connection = '{url}/{cell}' WHERE name = '{cell.removeprefix('nova_')}';"
            for cell in labkit.CELLS))
        for name, text in (('nova.conf', f'[api_database]\nconnection = {url}/nova_api\n'),
                           ('cinder.conf', f'[database]\nconnection = {url}/cinder\n')):
            (self.home / name).write_text(text)
        self.nova, self.cinder = (str(self.home / f'{name}.conf') for name in ('nova', 'cinder'))
        self.volume = labkit.volume_id('bfv1-root')

    def break_it(self):
        """A state that a repair knows (R2)."""
        self.sql(f"UPDATE cinder.volumes SET status = 'detaching' WHERE id = '{self.volume}'")

    def status(self):
        return self.sql(f"SELECT status FROM cinder.volumes WHERE id = '{self.volume}'").strip()


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    if not PROVIDER.exists():
        for step in (['update', '-q'], ['install', '-yq', '--no-install-recommends', 'galera-4']):
            subprocess.run(['apt-get', *step], capture_output=True, timeout=300)
    if not PROVIDER.exists():
        # who has no root or another distribution goes without; CI must not be green without it
        (pytest.fail if os.environ.get('CI') else pytest.skip)('galera-4 cannot be installed here')
    labkit.restore_snapshot('seeded')
    one = Node(tmp_path_factory.mktemp('galera'))
    one.start()
    try:
        one.load()
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        shutil.rmtree(one.home)


def test_the_command_waits_for_the_node(node):
    """Not ready when the command begins: it says so, and goes on when the operator has bootstrapped the node."""
    node.break_it()
    node.leave()
    p = subprocess.Popen([f'{labkit.LAB_HOME}/client/bin/openstack', 'drp', 'db', 'repair', '--auto-approve', '--volume', 'bfv1-root',
                          '--nova-config-file', node.nova, '--cinder-config-file', node.cinder, '--run-dir',
                          str(node.home / 'runs'), '-f', 'json'], env=labkit.client_env(), stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = p.stderr.readline()
    try:
        assert f'The Galera node at 127.0.0.1:{PORT} is not ready' in said and 'waiting for it' in said
        assert p.poll() is None
    finally:
        node.come_back()
        out, err = p.communicate(timeout=100)
    assert p.returncode == 0, said + err
    assert [r['Result'] for r in json.loads(out)] == ['done']
    assert node.status() == 'in-use'


def repair(node, confirm):
    """Repair bfv1's root, as the command does; confirm() is called with the rows locked."""
    with engines.open_databases(config.load([node.nova], [node.cinder])) as dbs:
        [pair] = [p for p in facts.pairs(read.observe(dbs)) if p.volume_id == node.volume]
        write.repair(dbs, pair, pair.mapping.attachment_id, confirm, lambda old: None)


def test_the_node_leaves_in_the_middle_of_a_write(node, caplog):
    """Between the locks and the first UPDATE: the unit is done anew when the node is back."""
    node.break_it()
    asked = []

    def confirm(seen):
        asked.append(time.monotonic())
        if len(asked) == 1:
            node.reject()
            threading.Timer(5, node.reject, ['NONE']).start()

    repair(node, confirm)
    assert len(asked) == 2 and node.status() == 'in-use'
    assert 'is not ready' in caplog.text and 'waiting for it' in caplog.text


def test_it_is_not_waited_for_for_ever(node):
    node.break_it()
    began = time.monotonic()
    with mock.patch.object(write, '_PATIENCE', 6), pytest.raises(engines.NotReady) as e:
        repair(node, lambda seen: node.reject())
    assert str(e.value).startswith('The Galera node at 127.0.0.1') and time.monotonic() - began < 60
    node.reject('NONE')
    assert node.status() == 'detaching'


def test_tls_of_the_url(node):
    """ssl_ca in a URL: encrypted, and refused where another CA signed the server's certificate."""
    def cipher(parameters):
        (node.home / 'tls.conf').write_text(pathlib.Path(node.cinder).read_text().rstrip() + parameters + '\n')
        with engines.open_databases(config.load_cinder([str(node.home / 'tls.conf')])) as dbs, dbs.cinder.connect() as c:
            return c.exec_driver_sql("SHOW STATUS LIKE 'Ssl_cipher'").one()[1]

    assert cipher('?ssl_disabled=true') == ''
    assert cipher(f'?ssl_ca={node.home}/ca.pem') != ''
    with pytest.raises(exceptions.DatabaseError) as e:
        cipher(f'?ssl_ca={node.home}/other.pem')
    assert 'the cinder database' in str(e.value) and 'secret' not in str(e.value), e.value
    # a server that wants TLS, and a URL that forbids it
    node.sql("ALTER USER drp@'%' REQUIRE SSL")
    try:
        assert cipher(f'?ssl_ca={node.home}/ca.pem') != ''
        with pytest.raises(exceptions.DatabaseError) as e:
            cipher('?ssl_disabled=true')
        assert 'refuses' in str(e.value), e.value
    finally:
        node.sql("ALTER USER drp@'%' REQUIRE NONE")
