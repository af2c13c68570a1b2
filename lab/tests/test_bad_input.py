"""Bad input: one sentence, the right exit code, nothing changed."""
import json
import os
import pty
import re
import select
import shutil
import subprocess

import labkit
import pytest
from procedure import APPROVED, MAP, RESET, RESTART, RESTORE, RUNS, all_off, rows


@pytest.fixture(scope='module', autouse=True)
def off(the_map):
    labkit.restore_snapshot('lost')
    all_off()


@pytest.fixture(autouse=True)
def nothing_changes(off):
    """Neither record, nor the list of runs."""
    before, runs = labkit.attachments(), sorted(os.listdir(RUNS)) if RUNS.exists() else []
    yield
    assert labkit.attachments() == before
    assert (sorted(os.listdir(RUNS)) if RUNS.exists() else []) in (runs, sorted({*runs, 'lock'}))


def refused(rc, *words, command, **kw):
    """It ended with rc, no table, and one line that has all the words."""
    result = labkit.drp(*command, check=False, **kw)
    lines = result.err.splitlines()
    assert (result.rc, result.out) == (rc, ''), result
    assert len(lines) == 1, lines
    missing = [w for w in words if w not in lines[0]]
    assert not missing, lines
    return lines[0]


# ---- the map


def broken_maps(tmp_path):
    good = MAP.read_text()
    some_id = json.loads(good)['attachments'][0]['volume_id' if 'volume_id' in good else 'volume']
    return {
        'missing': (None, ['No such file']),
        'empty': ('', ['empty']),
        'truncated': (good[:len(good) // 2], ['line']),
        'altered': (good.replace('"locked": false', '"locked": true', 1), ['sha256']),
        'newer': (good.replace('"version": 1', '"version": 2', 1), ['version 2']),
        'bad-id': (good.replace(some_id, 'x' + some_id[1:], 1), ['line']),
        'other': ('{"format": "something else"}', []),
    }


@pytest.mark.parametrize('kind', ['missing', 'empty', 'truncated', 'altered', 'newer', 'bad-id', 'other'])
@pytest.mark.parametrize('command', [RESET, RESTART, RESTORE], ids=lambda c: ' '.join(c[:2]))
def test_broken_map(kind, command, tmp_path):
    content, words = broken_maps(tmp_path)[kind]
    path = tmp_path / 'broken.json'
    if content is not None:
        path.write_text(content)
    refused(1, str(path), *words, command=[str(path) if a == str(MAP) else a for a in (*command, *APPROVED)])


def test_save_does_not_overwrite(tmp_path):
    path = tmp_path / 'map'
    path.write_text('precious')
    refused(1, str(path), 'exists', command=('attachments', 'save', str(path)))
    assert path.read_text() == 'precious'


def test_unknown_names():
    refused(1, 'nosuch', command=(*RESET, *APPROVED, '--server', 'nosuch'))
    refused(1, 'nosuch', command=(*RESTART, *APPROVED, '--server', 'nosuch'))
    refused(1, 'nosuch', command=(*RESTORE, *APPROVED, '--volume', 'nosuch'))


def test_usage():
    for command in (('db', 'reset'), (*RESTART, '--dry-run', '--auto-approve'), (*RESTORE, '--parallel', '0'),
                    (*RESTART, '--lost-at', 'yesterday')):
        result = labkit.drp(*command, check=False)
        assert result.rc == 2 and 'usage' in result.err, result


# ---- the configuration and the databases


def changed(tmp_path, name, old, new):
    text = (labkit.ETC / name).read_text()
    assert old in text, (old, text)
    path = tmp_path / name
    path.write_text(text.replace(old, new))
    return str(path)


def with_file(path):
    """The reset with one of its three configuration files replaced."""
    name = os.path.basename(path)
    return [path if a.endswith('/' + name) else a for a in (*RESET, *APPROVED)]


def section(name, option):
    return next(line for line in (labkit.ETC / name).read_text().splitlines() if line.replace(' ', '').startswith(option + '='))


def test_configuration(tmp_path):
    refused(1, 'nova.conf', command=with_file(str(tmp_path / 'nova.conf')))
    line = section('cinder.conf', 'connection')
    refused(1, 'connection', 'cinder.conf', command=with_file(changed(tmp_path, 'cinder.conf', line, '')))
    line = section('osc-drp.conf', 'password_file')
    refused(1, 'nosuch', command=with_file(changed(tmp_path, 'osc-drp.conf', line, 'password_file = /nosuch/password')))


def test_databases(tmp_path):
    line = section('cinder.conf', 'connection')
    port = line.rpartition('127.0.0.1:')[2].split('/')[0]
    path = changed(tmp_path, 'cinder.conf', f'127.0.0.1:{port}', '127.0.0.1:1')
    refused(1, 'cinder', '127.0.0.1', command=with_file(path))
    path = changed(tmp_path, 'cinder.conf', '/cinder?', '/nosuch?')
    refused(1, 'nosuch', command=with_file(path))
    wrong = tmp_path / 'password'
    wrong.write_text('wrong')
    path = changed(tmp_path, 'osc-drp.conf', section('osc-drp.conf', 'password_file'), f'password_file = {wrong}')
    refused(1, 'osc_drp', command=with_file(path))


@pytest.mark.parametrize('privilege,where,words', [
    ('SELECT', 'nova_cell2.instances', ['SELECT', 'instances']),
    ('UPDATE (status, attach_status)', 'cinder.volumes', ['UPDATE', 'volumes']),
    ('UPDATE (deleted, deleted_at, updated_at)', 'nova_cell1.block_device_mapping', ['UPDATE', 'block_device_mapping']),
])
def test_missing_grant(privilege, where, words):
    [user] = labkit.db("SELECT CONCAT('`', user, '`@`', host, '`') u FROM mysql.user WHERE user = 'osc_drp'")
    before, who = grants(user['u']), user['u'].replace('%', '%%')
    labkit.db(f'REVOKE {privilege} ON {where} FROM {who}')
    try:
        refused(1, *words, command=(*RESET, *APPROVED))
        refused(1, *words, command=(*RESET, '--dry-run'))
    finally:
        labkit.db(f'GRANT {privilege} ON {where} TO {who}')
    assert grants(user['u']) == before


def grants(user):
    # columns come in any order
    return sorted(sorted(re.findall(r'[^\s,()]+', str(*row.values()))) for row in labkit.db(f'SHOW GRANTS FOR {user.replace("%", "%%")}'))


def test_unknown_schema():
    """A column that is gone is named, before anything is written."""
    labkit.db('ALTER TABLE cinder.volume_attachment RENAME COLUMN connector TO elsewhere')
    try:
        refused(4, 'connector', command=(*RESET, *APPROVED))
    finally:
        labkit.db('ALTER TABLE cinder.volume_attachment RENAME COLUMN elsewhere TO connector')


# ---- the cloud


def test_no_such_cloud(tmp_path):
    result = labkit.openstack('--os-cloud', 'nosuch', 'drp', 'attachments', 'save', str(tmp_path / 'map'), check=False)
    assert result.rc == 1 and 'nosuch' in result.err, result


def test_not_an_administrator(tmp_path):
    line = refused(1, 'administrator', command=('attachments', 'save', str(tmp_path / 'map')), cloud='lab-blue')
    assert 'lab-blue' in line
    refused(1, 'administrator', command=(*RESTART, *APPROVED), cloud='lab-blue')
    assert not (tmp_path / 'map').exists()


# ---- the question


@pytest.mark.parametrize('command', [RESET, RESTART], ids=lambda c: ' '.join(c[:2]))
def test_no_terminal_without_approval(command):
    result = subprocess.run(
        [f'{labkit.LAB_HOME}/client/bin/openstack', 'drp', *command], env=labkit.client_env(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, start_new_session=True, timeout=300)
    assert result.returncode == 4 and result.stdout == '', result
    assert '--auto-approve' in result.stderr.splitlines()[-1]


def on_a_terminal(argv, answer, stdin=None):
    """Run on a terminal of its own (a real pty), answer its question, give exit status and what the screen showed."""
    env = labkit.client_env()
    pid, fd = pty.fork()
    if pid == 0:
        try:
            if stdin:
                os.dup2(os.open(stdin, os.O_RDONLY), 0)
            os.execve(argv[0], argv, env)
        finally:
            os._exit(99)                    # never a second pytest
    screen, asked = b'', False
    while True:
        ready, _w, _x = select.select([fd], [], [], 120)
        assert ready, screen
        try:
            data = os.read(fd, 4096)
        except OSError:
            break
        if not data:
            break
        screen += data
        if b'to go on: ' in screen and not asked:
            asked = True
            os.write(fd, answer.encode() + b'\n')
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), screen.decode(), asked


def test_question_on_a_terminal():
    """It asks with the numbers; another answer changes nothing."""
    argv = [f'{labkit.LAB_HOME}/client/bin/openstack', 'drp', *RESET, '--server', 'db1']
    rc, screen, asked = on_a_terminal(argv, 'yes')
    assert (rc, asked) == (4, True) and "type 'reset 3' to go on" in screen, screen
    assert labkit.volumes()['db1-data']['status'] == 'in-use'


def test_lock_names_its_owner():
    script = ('import fcntl, sys, time; f = open(sys.argv[1], "a+"); fcntl.flock(f, fcntl.LOCK_EX);'
              ' f.truncate(0); f.write("db reset by somebody on elsewhere"); f.flush(); print("held", flush=True); time.sleep(600)')
    RUNS.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen([f'{labkit.LAB_HOME}/client/bin/python', '-c', script, str(RUNS / 'lock')],
                              stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == 'held\n'
        refused(4, 'somebody on elsewhere', command=(*RESET, *APPROVED))
        rows(*RESET, '--dry-run')
    finally:
        holder.kill()
        holder.wait()


def test_service_not_ready():
    """What is not up after --wait is named, and nothing is started."""
    labkit.lab('stop', 'nova-compute2')
    try:
        labkit.wait_until(lambda: any(s['state'] == 'down' for s in labkit.api(
            'nova', 'GET', '/os-services?binary=nova-compute').json['services']), 60, 'nova notices')
        result = labkit.drp(*RESTART, *APPROVED, '--wait', '3', check=False)
        assert result.rc == 4 and result.out == '', result
        assert 'nova-compute on compute2' in result.err.splitlines()[-1]
    finally:
        labkit.lab('start', 'nova-compute2')
    assert labkit.servers()['web1']['status'] == 'SHUTOFF'


def test_map_taken_too_late(tmp_path):
    """A map in which nothing runs tells nobody what to start."""
    late = tmp_path / 'late.json'
    labkit.drp('attachments', 'save', str(late))
    for command in (RESET, RESTART):
        refused(4, '--lost-at', command=[str(late) if a == str(MAP) else a for a in (*command, *APPROVED)])
    told = rows('servers', 'restart', str(late), '--dry-run', '--lost-at', '2020-01-01T00:00:00Z')
    assert {r['Server'] for r in told if r['Result'] == 'would start'} >= {'web1', 'db1', 'far1'}
    assert {r['Server'] for r in told if r['Result'] == 'left'} == {'off1', 'shelf1'}


def test_map_on_standard_input(tmp_path):
    """The map may come by a pipe; the question is still asked on the terminal."""
    path = shutil.copy(MAP, tmp_path / 'map')
    argv = [f'{labkit.LAB_HOME}/client/bin/openstack', 'drp', *('-' if a == str(MAP) else a for a in RESET),
            '--server', 'db1']
    rc, screen, asked = on_a_terminal(argv, 'no', stdin=path)
    assert (rc, asked) == (4, True), screen
