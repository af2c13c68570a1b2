"""APIs that fail (faultproxy.py) and services that are down.

Always the same four questions: did it end in time, is what the table says true, did the next run finish the work, and did nova
hear of nothing twice.
"""
import json
import signal
import subprocess
import time

import faultproxy
import labkit
import pytest
from faultproxy import (Rule, after, cut, empty, error, garbage, html, passing, reset_after, reset_before, short, slow, timeout_after,
                        timeout_before)
from procedure import APPROVED, RAN, RESET, RESTART, RESTORE, RUNS, all_off, recovered, results, rows, starts, true, twice
import procedure

#: Seconds that the client waits for an answer (impatient.py).
PATIENCE = 8


@pytest.fixture(scope='module')
def proxy(cloud):
    """Keystone, nova and cinder, ready to fail."""
    with faultproxy.Proxy() as started:
        yield started


class Told:
    """What a run of the client through the proxy said, and how long it took."""

    def __init__(self, proxy, *args, timeout=300):
        began = time.monotonic()
        result = labkit.client('impatient.py', str(PATIENCE), 'drp', *args, *(() if 'save' in args else ('-f', 'json')),
                               env=proxy.env, timeout=timeout)
        self.seconds = time.monotonic() - began
        self.rc, self.out, self.err = result.rc, result.out, result.err
        assert 'Traceback' not in self.err, self.err

    @property
    def rows(self):
        """The table."""
        return json.loads(self.out)

    @property
    def results(self):
        """{server: result}."""
        return {r['Server']: r['Result'] for r in self.rows}

    @property
    def row(self):
        """The only row."""
        [row] = self.rows
        return row


# ---- reading


def everything(path):
    """A map without its head (time and checksum)."""
    found = json.loads(path.read_text())
    return found['servers'], found['attachments']


@pytest.fixture(scope='module')
def undisturbed(the_map, tmp_path_factory):
    """The map that a save without faults gives."""
    labkit.restore_snapshot('seeded')
    path = tmp_path_factory.mktemp('undisturbed') / 'map'
    labkit.drp('attachments', 'save', str(path))
    return everything(path)


@pytest.mark.parametrize('rule, words', [
    # passes: read again, and the map is whole
    (Rule(error(500), 'nova', 'GET', 'servers/detail'), ''),
    (Rule(error(503, Retry_After='1'), 'cinder', 'GET', 'volumes/detail', times=2), ''),
    (Rule(error(429, Retry_After='1'), 'nova', 'GET', 'os-volume_attachments', times=3), ''),
    (Rule(html(502), 'cinder', 'GET', '/attachments'), ''),
    (Rule(html(504), 'nova', 'GET', 'os-services', nth=2), ''),
    (Rule(reset_before, 'nova', 'GET', 'os-volume_attachments', nth=3), ''),
    (Rule(cut, 'cinder', 'GET', 'volumes/detail'), ''),
    (Rule(timeout_before, 'nova', 'GET', 'servers/detail'), ''),
    (Rule(error(401), 'cinder', 'GET', '/attachments'), ''),                    # the token expired: a new one
    (Rule(slow(1), 'keystone', times=None), ''),
    # a page that lacks its end and its link: the next page has it
    (Rule(short('servers'), 'nova', 'GET', 'servers/detail'), ''),
    (Rule(short('volumes'), 'cinder', 'GET', 'volumes/detail'), ''),
    (Rule(short('attachments'), 'cinder', 'GET', '/attachments'), ''),
    (Rule(short('volumeAttachments'), 'nova', 'GET', 'os-volume_attachments', nth=2), ''),
    # and a listing that lacks it for good is not believed
    (Rule(short('servers'), 'nova', 'GET', 'servers/detail', times=None), "nova's listing lacks server"),
    (Rule(short('volumes'), 'cinder', 'GET', 'volumes/detail', times=None), "cinder's listing lacks volume"),
    # does not pass: one sentence, and no file
    (Rule(error(500), 'nova', 'GET', 'servers/detail', times=None), 'compute answers 500 to GET'),
    (Rule(error(503, Retry_After='1'), 'cinder', 'GET', '', times=None), 'block-storage'),
    (Rule(timeout_before, 'cinder', 'GET', 'volumes/detail', times=None), 'timed out'),
    (Rule(error(401), 'nova', 'GET', 'servers', times=None), '401'),
    (Rule(error(403), 'nova', 'GET', 'os-services', times=None), 'not an administrator'),
    (Rule(garbage, 'nova', 'GET', 'servers/detail'), 'no JSON object'),
    (Rule(html(200), 'cinder', 'GET', 'volumes/detail'), 'no JSON object'),
    (Rule(empty, 'cinder', 'GET', '/attachments'), 'right end point'),
    (Rule(timeout_before, 'keystone', times=None), 'keystone'),
    (Rule(error(503), 'keystone', 'POST', times=None), 'keystone'),
    (Rule(html(200), 'keystone', 'POST', times=None), 'keystone'),
    (Rule(reset_before, 'nova', times=None), 'compute'),
], ids=lambda x: f'{x.service}-{getattr(x.fault, "__qualname__", "").split(".")[0]}-{x.times}' if isinstance(x, Rule) else '')
def test_saving_the_map(undisturbed, proxy, tmp_path, rule, words):
    """The whole map or none."""
    path = tmp_path / 'map'
    with proxy.failing(rule):
        told = Told(proxy, 'attachments', 'save', str(path))
    assert rule.struck
    if not words:
        assert told.rc == 0, told.err
        assert everything(path) == undisturbed
    else:
        assert told.rc == 1 and words in told.err and len(told.err.splitlines()) == 1, told.err
        assert list(tmp_path.iterdir()) == []


# ---- starting


#: Faults of a request that changes something: (fault, whether the service does it).
POSTS = {
    '500': (error(500), False),
    '500 after the effect': (error(500, after=True), True),
    '503': (error(503, Retry_After='1'), False),
    '409': (error(409, 'Cannot do it while it is in task_state migrating'), False),
    '502 page': (html(502), False),
    '504 page after the effect': (html(504, after=True), True),
    'time-out': (timeout_before, False),
    'time-out after the effect': (timeout_after, True),
    'reset': (reset_before, False),
    'reset after the effect': (reset_after, True),
    'cut after the effect': (cut, True),
    'garbage after the effect': (garbage, True),
    'token expired': (error(401), True),                        # a new one is got, and the request sent again
}


def test_start(the_map, lost, proxy):
    """Whatever becomes of the request: it is told as it is, and nova starts each server once."""
    all_off()
    cases = list(POSTS.items())
    while cases:
        now, cases = cases[:len(RAN)], cases[len(RAN):]
        servers = dict(zip(RAN, now))
        since = procedure.now()
        for server, (name, (fault, done)) in servers.items():
            rule = Rule(fault, 'nova', 'POST', f'{labkit.server_id(server)}/action')
            with proxy.failing(rule):
                told = Told(proxy, *RESTART, *APPROVED, '--server', server)
            state = labkit.servers()[server]
            assert rule.struck and told.seconds < 90, name
            assert (told.rc, told.row['Result'], state['status']) == (
                (0, 'done', 'ACTIVE') if done else (3, 'failed', 'SHUTOFF')), (name, told.row, state)
            assert starts(server, since) == (['start'] if done else []), name
        # the next run does what is left, and only that
        result = rows(*RESTART, *APPROVED, '--settle', '5', *[f'--server={s}' for s in servers])
        assert {r['Server']: r['Result'] for r in result} == {s: 'ok' if done else 'done' for s, (_n, (_f, done)) in servers.items()}
        assert {s: starts(s, since) for s in servers} == {s: ['start'] for s in servers}
        if cases:
            labkit.guest_off(*servers)
            all_off(servers)


def test_while_it_starts(the_map, lost, proxy):
    """What is read between the request and the report: passing troubles are outlasted, others are told."""
    all_off()
    since = procedure.now()

    def run(server, *rules):
        path = f'servers/{labkit.server_id(server)}'
        sent = Rule(passing, 'nova', 'POST', f'{path}/action')
        for rule in rules:
            rule.path, rule.then = rule.path or f'{path}$', sent
        with proxy.failing(*rules, sent):
            told = Told(proxy, *RESTART, *APPROVED, '--server', server)
        assert all(rule.struck for rule in rules)
        return told

    told = run('web1', Rule(error(500), 'nova', 'GET', times=2), Rule(error(503), 'keystone', 'POST', path='tokens'),
               Rule(error(401), 'nova', 'GET', nth=3))
    assert (told.rc, told.row['Result']) == (0, 'done'), told.rows

    told = run('app1', Rule(error(500), 'nova', 'GET', times=None))
    assert (told.rc, told.row['Result']) == (3, 'failed')
    assert 'the start was sent' in told.row['Reason'] and 'answers 500' in told.row['Reason']       # for it runs

    # all else: nova refuses every start, so only the first is tried
    others = [s for s in RAN if s not in ('web1', 'app1')]
    with proxy.failing(Rule(error(500), 'nova', 'POST', times=None)) as seen:
        told = Told(proxy, *RESTART, *APPROVED, '--settle', '5')
    assert told.rc == 3 and 'the first one failed' in told.err
    assert len([r for r in seen if r[0] == 'nova' and r[1] == 'POST']) == 1
    assert {s: told.results[s] for s in others} == {s: 'failed' if s == others[0] else 'untried' for s in others}
    assert {s: labkit.servers()[s]['status'] for s in others} == dict.fromkeys(others, 'SHUTOFF')

    assert set(results(*RESTART, *APPROVED, '--settle', '5').values()) == {'ok', 'done', 'left'}
    assert {s: starts(s, since) for s in RAN} == {s: ['start'] for s in RAN}
    recovered(the_map, labkit.attachments())


# ---- attaching


def test_attach(the_map, lost, proxy):
    """The same for the attach of a volume; what failed is the last of its server, lest another take its name."""
    all_off()
    rows(*RESET, *APPROVED)
    rows(*RESTART, *APPROVED)
    first = [('db1', 'db1-data'), ('db1', 'db1-log'), ('app1', 'app1-data'), ('far1', 'far1-data'), ('cl1', 'cluster-shared'),
             ('web1', 'web1-data')]
    last = [('bfv1', 'bfv1-data'), ('far2', 'far2-data'), ('db1', 'db1-backup'), ('app1', 'app1-scratch'), ('far1', 'far1-log'),
            ('cl2', 'cluster-shared')]
    cases = {name: case for name, case in POSTS.items() if name != 'token expired'}
    done = [c for c in cases.items() if c[1][1]]
    failed = [c for c in cases.items() if not c[1][1]]
    for (server, volume), (name, (fault, effect)) in [*zip(first, done, strict=True), *zip(last, failed, strict=True)]:
        rule = Rule(fault, 'nova', 'POST', 'os-volume_attachments')
        with proxy.failing(rule):
            told = Told(proxy, *RESTORE, *APPROVED, '--server', server, '--volume', volume)
        assert rule.struck and told.seconds < 90, name
        assert (told.rc, told.row['Result']) == ((0, 'done') if effect else (3, 'failed')), (name, told.row)
        records = labkit.attachments()
        assert ((server, volume) in records.nova, (server, volume) in records.cinder) == (effect, effect), name
    told = results(*RESTORE, *APPROVED)
    volume_ids = {v: labkit.volume_id(v) for _s, v in last}
    assert {key for key, result in told.items() if result == 'done'} == {(s, volume_ids[v]) for s, v in last}
    recovered(the_map, labkit.attachments())
    assert twice() == []


# ---- the whole recovery


def told(rows, step):
    """{server, or (server, volume): result} of one step of a recovery."""
    names = {v['id']: name for name, v in labkit.volumes().items()}
    return {(r['Server'], names[r['Volume ID']]) if r['Volume ID'] else r['Server']: r['Result'] for r in rows if r['Step'] == step}


def unlocked():
    """No server is locked: all were ours."""
    return not any(s['locked'] for s in labkit.servers().values())


def test_recovery_through_noise(the_map, lost, proxy):
    """Reads that fail now and then, a slow keystone, lost answers: it comes to its end at once."""
    since = procedure.now()
    rules = [
        Rule(error(500), 'nova', 'GET', times=None, every=25),
        Rule(reset_before, 'cinder', 'GET', nth=7, times=None, every=25),
        Rule(cut, 'nova', 'GET', nth=12, times=None, every=50),
        Rule(error(401), 'nova', 'GET', nth=30, times=None, every=60),
        Rule(slow(2), 'keystone', times=None),
        # of a server's actions the first locks it, the second starts it, the third unlocks it
        Rule(reset_after, 'nova', 'POST', f'{labkit.server_id("app1")}/action', nth=2),
        Rule(timeout_after, 'nova', 'POST', f'{labkit.server_id("db1")}/action', nth=2),
        Rule(html(504, after=True), 'nova', 'POST', f'{labkit.server_id("web1")}/os-volume_attachments'),
    ]
    with proxy.failing(*rules):
        run = Told(proxy, *procedure.RECOVER, '--classic', '--settle', '12', *APPROVED, timeout=400)
    assert all(rule.struck for rule in rules)
    assert run.rc == 0, (run.rows, run.err)
    true(run.rows)
    assert {s: told(run.rows, 'start')[s] for s in RAN} == dict.fromkeys(RAN, 'done')
    assert {s: starts(s, since) for s in RAN} == {s: ['start'] for s in RAN}
    recovered(the_map, labkit.attachments())
    assert twice() == [] and unlocked()


# ---- services that are down


ON_CELL2 = ('cl2', 'far1', 'far2', 'idle1')
ON_CELL1 = tuple(s for s in RAN if s not in ON_CELL2)
#: nova looks at its guests each 10 s here, so that is soon settled.
RECOVER = (*procedure.RECOVER, *APPROVED, '--settle', '12')


def finished(before, since, *args, servers=RAN):
    """The same command once more does all that is left: each server was started once, and no lock of ours is left."""
    run = rows(*RECOVER, *args)
    true(run)
    assert {told(run, 'start')[s] for s in servers} <= {'ok', 'done'}, run
    assert {s: starts(s, since) for s in servers} == {s: ['start'] for s in servers}
    records = labkit.attachments()
    assert twice() == [] and unlocked()
    if servers == RAN:
        recovered(before, records)
    else:
        procedure.agree(records)
        assert procedure.signature(records) == procedure.signature(before)
    return run


def test_apis_down(the_map, lost, tmp_path):
    """Keystone, nova and cinder are waited for, by name, one after the other; then it goes on. Not for a wrong password."""
    since = procedure.now()
    apis = {'keystone': 'keystone', 'nova-api': 'compute', 'cinder-api': 'block-storage'}
    labkit.lab('stop', *apis)
    end = labkit.drp(*RECOVER, '--wait', '3', check=False)
    first, last = end.err.splitlines()
    assert (end.rc, end.out) == (4, '') and first.startswith('waiting for keystone at http://'), end
    assert last.startswith('not ready after 3 s: keystone at http://') and last.endswith(': Connection refused'), end
    for command in ((*procedure.RECOVER, '--dry-run'), RESTART, RESTORE):
        end = labkit.drp(*command, '--wait', '0', check=False)
        assert end.rc == 4 and end.err.startswith('not ready after 0 s: keystone at http://') and end.out == '', end

    log = tmp_path / 'stderr'
    with open(log, 'w') as f, open(tmp_path / 'stdout', 'w') as out:
        run = subprocess.Popen([f'{labkit.LAB_HOME}/client/bin/openstack', 'drp', *RECOVER, '--wait', '240', '-f', 'json'],
                               env=labkit.client_env(), stdin=subprocess.DEVNULL, stdout=out, stderr=f)
        for api, name in apis.items():
            labkit.wait_until(lambda: f'waiting for {name} at http://' in log.read_text(), 60, f'it waits for {name}')
            if api == 'cinder-api':
                wrong = labkit.drp(*RECOVER, check=False, env={'OS_PASSWORD': 'wrong'})
                assert wrong.rc == 1 and 'refuses user or password' in wrong.err and 'waiting' not in wrong.err, wrong
                ctrl_c = subprocess.Popen(run.args, env=labkit.client_env(), stdin=subprocess.DEVNULL, text=True,
                                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                assert 'waiting for block-storage' in ctrl_c.stderr.readline()
                ctrl_c.send_signal(signal.SIGINT)
                assert 'interrupted' in ctrl_c.communicate(timeout=20)[1] and ctrl_c.returncode == 130
            assert list(RUNS.glob('*/journal.jsonl')) == []
            labkit.lab('start', api)
        assert run.wait(300) == 0, log.read_text()
    true(json.loads((tmp_path / 'stdout').read_text()))
    assert {s: starts(s, since) for s in RAN} == {s: ['start'] for s in RAN}
    recovered(the_map, labkit.attachments())
    assert unlocked()


def test_hosts_down(the_map, proxy):
    """A nova-compute and the cinder-volume that are not up: waited for, named; a nova-compute that dies in the middle."""
    labkit.restore_snapshot('lost', without=('nova-compute2', 'cinder-volume'))
    since = procedure.now()
    all_off(ON_CELL1)
    with proxy.failing() as seen:
        run = Told(proxy, *RECOVER, '--wait', '15')
    assert run.rc == 4 and 'waiting for cinder-volume on ' in run.err, run.err
    assert 'nova-compute on compute2' in run.err.splitlines()[-1] and 'cinder-volume on ' in run.err.splitlines()[-1]
    assert run.out == '' and not [r for r in seen if r[0] != 'keystone' and r[1] != 'GET']

    labkit.lab('start', 'cinder-volume')
    labkit.wait_until(lambda: 'down' not in {s['state'] for s in labkit.api('cinder', 'GET', '/os-services').json['services']},
                      60, 'cinder-volume is up')
    run = rows(*RECOVER, '--wait', '3', '--skip-not-ready', rc=3)
    true(run)
    assert {s: told(run, 'start')[s] for s in RAN} == {s: 'open' if s in ON_CELL2 else 'done' for s in RAN}
    assert all(labkit.servers()[s]['status'] == 'ACTIVE' for s in ON_CELL1)

    labkit.lab('start', 'nova-compute2')
    all_off(ON_CELL2)
    # of a server's actions the first locks it, the second starts it
    died = Rule(after(lambda: labkit.lab('stop', '--kill', 'nova-compute2')), 'nova', 'POST',
                f'{labkit.server_id("far1")}/action', nth=2)
    with proxy.failing(died):
        run = Told(proxy, *RECOVER, '--server', 'far1')
    assert died.struck and run.rc == 3 and told(run.rows, 'start') == {'far1': 'failed'}, run.rows
    assert any('the start was sent' in r['Reason'] for r in run.rows) and unlocked()
    assert labkit.servers()['far1']['task_state'] == 'powering-on'
    true(run.rows)
    labkit.lab('start', 'nova-compute2')
    finished(the_map, since)


def test_cell_database_down(the_map, lost, proxy):
    """In the middle: the other cell's servers go on, this one's are told; then nothing until it is back."""
    all_off()
    since = procedure.now()
    user = "'nova_cell2'@'127.0.0.1'"

    def down():
        labkit.db(f'ALTER USER {user} ACCOUNT LOCK')
        labkit.db(f'KILL USER {user}')

    died = Rule(after(down), 'nova', 'POST', f'{labkit.server_id("far1")}/action', nth=2)
    some = ('db1', 'far1', 'web1')
    command = ('--classic', *[f'--server={s}' for s in some])
    try:
        with proxy.failing(died):
            run = Told(proxy, *RECOVER, *command, '--parallel', '1', timeout=300)
        assert died.struck and run.rc == 3, (run.out, run.err)
        # what nobody can look at once more is not told as done
        assert told(run.rows, 'start') == {'db1': 'open', 'far1': 'failed', 'web1': 'open'}, run.rows
        assert set(told(run.rows, 'attach').values()) == {'open', 'untried'}
        assert {r['Reason'].partition(', ')[0] for r in run.rows if r['Result'] == 'open'} == {'started', 'attached'}
        assert 'is still locked' in run.err
        with proxy.failing() as seen:
            run = Told(proxy, *RECOVER, *command, '--wait', '8')
        assert run.rc == 4 and 'the database of a cell' in run.err.splitlines()[-1] and run.out == '', run.err
        assert not [r for r in seen if r[0] != 'keystone' and r[1] != 'GET']
    finally:
        labkit.db(f'ALTER USER {user} ACCOUNT UNLOCK')
    run = finished(the_map, since, *command, servers=some)
    assert [told(run, 'start')[s] for s in some] == ['ok', 'done', 'ok']


def test_rabbitmq_down(the_map, lost, proxy):
    """In the middle: bounded, told, and finished once it is back; what was reset is kept for its server."""
    all_off()
    since = procedure.now()
    first = sorted(RAN)[0]
    died = Rule(after(lambda: labkit.lab('stop', '--kill', 'rabbitmq')), 'nova', 'POST', 'action', nth=2)
    with proxy.failing(died):
        run = Told(proxy, *RECOVER, '--classic', timeout=300)
    assert died.struck and run.rc == 3, run.rows
    true(run.rows)
    assert {s: told(run.rows, 'start')[s] for s in RAN} == {s: 'failed' if s == first else 'untried' for s in RAN}
    assert {v['status'] for n, v in labkit.volumes().items() if n.startswith(('web1', 'app1', 'db1'))} == {'reserved'}
    assert unlocked()
    # its services are down for nova soon: the next run waits for them, and says so
    run = Told(proxy, *RECOVER, '--classic', '--wait', '40', timeout=300)
    assert run.rc == 4 and 'nova-compute on compute1' in run.err.splitlines()[-1], (run.err, run.out)
    labkit.lab('start', 'rabbitmq')
    # the start may have died with the queues: then its server is busy until nova-compute is restarted, and does it
    try:
        labkit.wait_until(lambda: not labkit.servers()[first]['task_state'], 120, 'nova-compute has the request')
    except AssertionError:
        [row] = rows(*RESTART, *APPROVED, '--server', first, '--wait', '5', '--settle', '5', rc=3)
        assert 'a restart of nova-compute on compute1 repeats it' in row['Reason'], row
        labkit.lab('restart', '--kill', 'nova-compute1')
        labkit.wait_status(60, **{first: 'ACTIVE'})
    finished(the_map, since, '--classic')


def test_recovery_that_fails_in_places(the_map, lost, proxy):
    """A lock, an unlock, a start, an attach, and a cinder-volume that dies: all told, and the next run does the rest."""
    all_off()
    since = procedure.now()
    action = {s: f'{labkit.server_id(s)}/action' for s in RAN}
    rules = [
        Rule(error(500, after=True), 'nova', 'POST', action['db1']),                    # the lock
        Rule(error(500), 'nova', 'POST', action['bfv1'], nth=3),                        # the unlock
        Rule(reset_before, 'nova', 'POST', action['far1'], nth=2),                      # the start
        Rule(error(409, 'no'), 'nova', 'POST', f'{labkit.server_id("far2")}/os-volume_attachments'),
    ]
    some = ('app1', 'bfv1', 'db1', 'far1', 'far2')
    command = ('--classic', *[f'--server={s}' for s in some], '--parallel', '1')
    with proxy.failing(*rules):
        run = Told(proxy, *RECOVER, *command, timeout=400)
    assert run.rc == 3 and all(rule.struck for rule in rules)
    true(run.rows)
    start, attach = told(run.rows, 'start'), told(run.rows, 'attach')
    assert start == {'app1': 'done', 'bfv1': 'done', 'db1': 'failed', 'far1': 'failed', 'far2': 'done'}, run.rows
    assert attach['app1', 'app1-data'] == attach['bfv1', 'bfv1-data'] == 'done'
    assert attach['db1', 'db1-log'] == attach['far2', 'far2-data'] == 'failed' and attach['far1', 'far1-log'] == 'untried'
    # bfv1's lock was released in the end: one answer was a 500, the next was not
    assert unlocked()

    died = Rule(after(lambda: labkit.lab('stop', '--kill', 'cinder-volume')), 'nova', 'POST',
                f'{labkit.server_id("far2")}/os-volume_attachments')
    with proxy.failing(died):
        run = Told(proxy, *RECOVER, *command, '--wait', '20', timeout=400)
    assert died.struck and run.rc == 3
    true(run.rows)
    assert told(run.rows, 'start') == {'app1': 'ok', 'bfv1': 'ok', 'db1': 'done', 'far1': 'done', 'far2': 'ok'}, run.rows
    assert told(run.rows, 'attach')['far2', 'far2-data'] == 'failed' and unlocked()
    labkit.lab('start', 'cinder-volume')
    # it answers nova's request of then, or was too late (60 s) and nova gives up: not in the middle of the next run
    labkit.wait_until(lambda: labkit.volumes()['far2-data']['status'] in ('in-use', 'available'), 120, 'the attach has ended')
    finished(the_map, since, *command, servers=some)
