"""What tests on the lab are written with. Standard library and pymysql; run by the client venv's python.

A test names things (web1, db1-data); ids appear only inside. Every command's output is kept in $LAB_HOME/tests/out, where the
end of the run looks for secrets (conftest.py).
"""
from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import time
import typing as ty
import urllib.error
import urllib.parse
import urllib.request

import pymysql
import pymysql.cursors

LAB_HOME = pathlib.Path(os.environ.get('LAB_HOME', '/opt/osc-drp-lab'))
LAB = pathlib.Path(__file__).resolve().parents[1]
ETC = LAB_HOME / 'etc'
TESTS = LAB_HOME / 'tests'
OUT = TESTS / 'out'
#: the hypervisor of compute1: fake, or libvirt with real guests; as in lab/lib.sh
VIRT = os.environ.get('LAB_VIRT') or ((LAB_HOME / 'virt').read_text().strip() if (LAB_HOME / 'virt').exists() else 'fake')
CELLS = ('nova_cell0', 'nova_cell1', 'nova_cell2')
POWER = {0: 'nostate', 1: 'running', 3: 'paused', 4: 'shutdown', 6: 'crashed', 7: 'suspended'}

#: what a drp command that reads or writes databases needs to be told in this lab
DATABASES = ('--nova-config-file', str(ETC / 'nova.conf'), '--cinder-config-file', str(ETC / 'cinder.conf'),
             '--config-file', str(ETC / 'osc-drp.conf'))


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended."""

    rc: int
    out: str
    err: str


def wait_until(cond: ty.Callable[[], ty.Any], seconds: float, what: str, every: float = 0.3) -> ty.Any:
    """Ask again until the answer is true, and give it."""
    end = time.monotonic() + seconds
    while not (answer := cond()):
        assert time.monotonic() < end, f'not within {seconds} s: {what}'
        time.sleep(every)
    return answer


# ---- commands


def run(argv: ty.Sequence[str], check: bool, env: ty.Mapping[str, str] | None = None, stdin: str | None = None,
        timeout: float = 600) -> Result:
    """Run a command; what it said is kept."""
    began = time.monotonic()
    try:
        p = subprocess.run(argv, env=env, input=stdin, text=True, capture_output=True, timeout=timeout,
                           **({} if stdin is not None else {'stdin': subprocess.DEVNULL}))
    except subprocess.TimeoutExpired as e:
        # what it said so far tells what it waits for
        said = ''.join(text.decode(errors='replace') for text in (e.stdout, e.stderr) if isinstance(text, bytes))
        p = subprocess.CompletedProcess(argv, 'not over', said, '')
        check = True
    OUT.mkdir(parents=True, exist_ok=True)
    test = os.environ.get('PYTEST_CURRENT_TEST', 'none').split(' ')[0].rpartition('::')[2]
    with open(OUT / f'{"".join(c if c.isalnum() or c in "_-" else "_" for c in test)}.txt', 'a') as f:
        f.write(f'$ {shlex.join(argv)}\n# {p.returncode} after {time.monotonic() - began:.1f} s\n{p.stdout}{p.stderr}\n')
    assert not check or p.returncode == 0, f'{shlex.join(argv)} ended with {p.returncode}:\n{p.stdout}{p.stderr}'
    return Result(p.returncode, p.stdout, p.stderr)


def client_env(cloud: str = 'lab', **more: str) -> dict[str, str]:
    """The operator's environment: as after `. lab/env.sh`, and nothing of the caller's clouds."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(('OS_', 'OSC_DRP_', 'PYTHON'))}
    return {**env, 'PATH': f'{LAB_HOME}/client/bin:{os.environ["PATH"]}', 'LAB_HOME': str(LAB_HOME),
            'OS_CLIENT_CONFIG_FILE': str(ETC / 'clouds.yaml'), 'OS_CLOUD': cloud,
            'XDG_STATE_HOME': str(TESTS / 'state'), **more}


def openstack(*args: str, check: bool = True, env: ty.Mapping[str, str] | None = None, stdin: str | None = None,
              timeout: float = 600, cloud: str = 'lab') -> Result:
    """Run the operator's `openstack`; `env` adds to its environment."""
    return run([f'{LAB_HOME}/client/bin/openstack', *args], check, client_env(cloud, **(env or {})), stdin, timeout)


def client(program: str, *args: str, env: ty.Mapping[str, str] | None = None, timeout: float = 600) -> Result:
    """Run a program of lab/tests with the operator's python: killed.py, impatient.py. It may fail."""
    return run([f'{LAB_HOME}/client/bin/python', str(LAB / 'tests' / program), *args], False, client_env(**(env or {})),
                timeout=timeout)


def drp(*args: str, **kw: ty.Any) -> Result:
    """Run `openstack drp ...`."""
    return openstack('drp', *args, **kw)


def drp_json(*args: str, **kw: ty.Any) -> ty.Any:
    """Run `openstack drp ... -f json` and parse its answer."""
    return json.loads(drp(*args, '-f', 'json', **kw).out)


def user_osc(cloud: str) -> ty.Callable[..., Result]:
    """`openstack` as somebody else: user_osc('lab-blue')('server', 'list')."""
    return lambda *args, **kw: openstack(*args, cloud=cloud, **kw)


def lab(name: str, *args: str, check: bool = True, timeout: float = 600, **env: str) -> Result:
    """Run a script of the lab; keywords are its environment: lab('power-on', LAB_WITHOUT='keystone')."""
    return run([str(LAB / name), *args], check, {**os.environ, 'LAB_HOME': str(LAB_HOME), **env}, timeout=timeout)


# ---- the APIs, raw


class Answer(ty.NamedTuple):
    """An HTTP answer."""

    status: int
    json: ty.Any
    headers: ty.Any


_tokens: dict[str, tuple[str, str, float]] = {}


def _http(method: str, url: str, body: ty.Any, headers: dict[str, str]) -> Answer:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers, method=method)
    if body is not None:
        request.add_header('Content-Type', 'application/json')
    try:
        with urllib.request.urlopen(request, timeout=120) as r:
            text, status, got = r.read(), r.status, r.headers
    except urllib.error.HTTPError as e:
        text, status, got = e.read(), e.code, e.headers
    try:
        return Answer(status, json.loads(text) if text else None, got)
    except ValueError:
        return Answer(status, text.decode(errors='replace'), got)


def token(cloud: str = 'lab') -> tuple[str, str]:
    """(token, project id) of a cloud: lab, lab-blue, lab-green, or `service` for nova's service user."""
    cached = _tokens.get(cloud)
    if cached and cached[2] > time.monotonic():
        return cached[:2]
    settings = json.loads((ETC / 'lab.json').read_text())
    user, project = {'lab': ('admin', 'admin'), 'service': ('nova', 'service')}.get(cloud) or (cloud[4:], cloud[4:])
    domain = {'id': 'default'}
    a = _http('POST', settings['auth_url'] + '/auth/tokens', {'auth': {
        'identity': {'methods': ['password'], 'password': {'user': {
            'name': user, 'domain': domain, 'password': settings['password']}}},
        'scope': {'project': {'name': project, 'domain': domain}}}}, {})
    assert a.status == 201, a
    _tokens[cloud] = a.headers['X-Subject-Token'], a.json['token']['project']['id'], time.monotonic() + 3600
    return _tokens[cloud][:2]


def api(service: str, method: str, path: str, body: ty.Any = None, microversion: str | None = None, cloud: str = 'lab',
        service_token: bool = False) -> Answer:
    """One request to nova or cinder; no answer is an error here."""
    tok, project = token(cloud)
    base = json.loads((ETC / 'lab.json').read_text())[service] + (f'/{project}' if service == 'cinder' else '')
    headers = {'X-Auth-Token': tok, 'Accept': 'application/json'}
    if microversion:
        headers['OpenStack-API-Version'] = f'{dict(nova="compute", cinder="volume")[service]} {microversion}'
    if service_token:
        headers['X-Service-Token'] = token('service')[0]
    return _http(method, base + path, body, headers)


def _get(service: str, path: str, microversion: str) -> ty.Any:
    a = api(service, 'GET', path, microversion=microversion)
    assert a.status == 200, (service, path, a)
    return a.json


def _all(service: str, path: str, key: str, microversion: str) -> list[dict[str, ty.Any]]:
    """All pages of a list (the lab's pages may be tiny: LAB_MAX_LIMIT)."""
    objects: list[dict[str, ty.Any]] = []
    while True:
        page = _get(service, path + (f'&marker={objects[-1]["id"]}' if objects else ''), microversion)
        objects += page[key]
        if not page[key] or f'{key}_links' not in page:
            return objects


def servers() -> dict[str, dict[str, ty.Any]]:
    """Every server as nova says: {name: {id, status, vm_state, task_state, power_state, host, locked, project_id}}."""
    return {s['name']: {
        'id': s['id'], 'status': s['status'], 'vm_state': s['OS-EXT-STS:vm_state'], 'task_state': s['OS-EXT-STS:task_state'],
        'power_state': POWER[s['OS-EXT-STS:power_state']], 'host': s['OS-EXT-SRV-ATTR:host'], 'locked': s['locked'],
        'project_id': s['tenant_id'], 'fault': (s.get('fault') or {}).get('message'),
    } for s in _all('nova', '/servers/detail?all_tenants=1', 'servers', '2.96')}


def volumes() -> dict[str, dict[str, ty.Any]]:
    """Every volume as cinder says (3.70), by name."""
    return {v['name'] or v['id']: v for v in _all('cinder', '/volumes/detail?all_tenants=1', 'volumes', '3.70')}


def server_id(name: str) -> str:
    """The id of the server of that name (by the database, so without any API); an id is given back."""
    rows = db('SELECT uuid FROM (SELECT uuid, display_name, created_at FROM nova_cell1.instances WHERE deleted = 0 UNION ALL'
              ' SELECT uuid, display_name, created_at FROM nova_cell2.instances WHERE deleted = 0) i'
              ' WHERE display_name = %s OR uuid = %s ORDER BY created_at DESC LIMIT 1', name, name)
    assert rows, f'no server {name}'
    return rows[0]['uuid']


def volume_id(name: str) -> str:
    """The id of the volume of that name (by the database); an id is given back."""
    rows = db('SELECT id FROM cinder.volumes WHERE deleted = 0 AND (display_name = %s OR id = %s)', name, name)
    assert rows, f'no volume {name}'
    return rows[0]['id']


class Attachments(ty.NamedTuple):
    """Both records, each by (server, volume)."""

    nova: dict[tuple[str, str], dict[str, ty.Any]]
    cinder: dict[tuple[str, str], dict[str, ty.Any]]


def attachments() -> Attachments:
    """What nova (os-volume_attachments, 2.89) and cinder (attachments, 3.27) say, keyed by (server, volume) names."""
    names = {v['id']: name for name, v in volumes().items()}
    nova: dict[tuple[str, str], dict[str, ty.Any]] = {}
    cinder: dict[tuple[str, str], dict[str, ty.Any]] = {}
    for name, s in servers().items():
        names[s['id']] = name
        for a in _get('nova', f'/servers/{s["id"]}/os-volume_attachments', '2.89')['volumeAttachments']:
            nova[name, names.get(a['volume_id' if 'volume_id' in a else 'volumeId'], '?')] = {
                k: a[k] for k in ('device', 'attachment_id', 'bdm_uuid', 'tag', 'delete_on_termination')}
    for a in _all('cinder', '/attachments/detail?all_tenants=1', 'attachments', '3.27'):
        cinder[names.get(a['instance'], a['instance']), names.get(a['volume_id'], a['volume_id'])] = {
            k: a[k] for k in ('id', 'status', 'attach_mode', 'attached_at', 'detached_at')}
    return Attachments(nova, cinder)


def actions(server: str) -> list[dict[str, ty.Any]]:
    """The server's action log, newest first: action, user_id, project_id, start_time, message, request_id."""
    return _get('nova', f'/servers/{server_id(server)}/os-instance-actions', '2.100')['instanceActions']


def act(server: str, action: str, body: ty.Any = None, cloud: str = 'lab', microversion: str = '2.1') -> Answer:
    """POST /servers/ID/action, for example act('web1', 'reboot', {'type': 'HARD'})."""
    return api('nova', 'POST', f'/servers/{server_id(server)}/action', {action: body}, microversion, cloud)


def attach(server: str, volume: str, cloud: str = 'lab', microversion: str = '2.89', **more: ty.Any) -> Answer:
    """POST os-volume_attachments."""
    return api('nova', 'POST', f'/servers/{server_id(server)}/os-volume_attachments',
               {'volumeAttachment': {'volumeId': volume_id(volume), **more}}, microversion, cloud)


def detach(server: str, volume: str, cloud: str = 'lab') -> Answer:
    """DELETE os-volume_attachments."""
    return api('nova', 'DELETE', f'/servers/{server_id(server)}/os-volume_attachments/{volume_id(volume)}', cloud=cloud)


def wait_status(seconds: float, **wanted: str) -> None:
    """Wait until servers have these states and no task: wait_status(30, web1='ACTIVE', db1='SHUTOFF')."""
    def there() -> bool:
        now = servers()
        return all(now[name]['status'] == status and not now[name]['task_state'] for name, status in wanted.items())
    wait_until(there, seconds, f'{wanted}')


def wait_volume(seconds: float, **wanted: str) -> None:
    """Wait until volumes have these states; dashes in names are given as underscores: wait_volume(9, web1_data='in-use')."""
    def there() -> bool:
        now = volumes()
        return all(now[name.replace('_', '-')]['status'] == status for name, status in wanted.items())
    wait_until(there, seconds, f'{wanted}')


# ---- the databases


@contextlib.contextmanager
def connection(database: str = '', user: str = 'root') -> ty.Iterator[pymysql.connections.Connection]:
    """A connection as root over the socket, or as osc_drp over TCP as the product's own."""
    if user == 'root':
        where: dict[str, ty.Any] = {'unix_socket': str(LAB_HOME / 'run/mysqld.sock')}
    else:
        url = urllib.parse.urlsplit(_cinder_url())
        where = {'host': url.hostname, 'port': url.port, 'password': (ETC / 'osc-drp.password').read_text().rstrip('\n')}
    c = pymysql.connect(user=user, database=database or None, cursorclass=pymysql.cursors.DictCursor, **where)
    try:
        yield c
    finally:
        c.close()


def _cinder_url() -> str:
    for line in (ETC / 'cinder.conf').read_text().splitlines():
        if line.startswith('connection ='):
            return line.partition('=')[2].strip()
    raise AssertionError('no connection in cinder.conf')


def db(sql: str, *args: ty.Any, database: str = '', user: str = 'root') -> list[dict[str, ty.Any]]:
    """One statement, committed; its rows. For a writing one: [{'rowcount': n}]."""
    with connection(database, user) as c, c.cursor() as cursor:
        cursor.execute(sql, args)
        rows = list(cursor.fetchall()) if cursor.description else [{'rowcount': cursor.rowcount}]
        c.commit()
        return rows


Dump = dict[str, dict[tuple[ty.Any, ...], dict[str, ty.Any]]]


def dump_all() -> Dump:
    """Every row of cinder, nova_api and all cells, of one moment: {'cinder.volumes': {(primary key): {column: value}}}."""
    schemas = ('cinder', 'nova_api', *CELLS)
    with connection() as c, c.cursor() as cursor:
        cursor.execute('SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ')
        cursor.execute('START TRANSACTION WITH CONSISTENT SNAPSHOT')
        cursor.execute("SELECT t.table_schema s, t.table_name t, GROUP_CONCAT(k.column_name ORDER BY k.ordinal_position) pk"
                       " FROM information_schema.tables t LEFT JOIN information_schema.key_column_usage k"
                       " ON (k.table_schema, k.table_name, k.constraint_name) = (t.table_schema, t.table_name, 'PRIMARY')"
                       " WHERE t.table_type = 'BASE TABLE' AND t.table_schema IN %s GROUP BY 1, 2", (schemas,))
        dump: Dump = {}
        for table in list(cursor.fetchall()):
            cursor.execute(f'SELECT * FROM `{table["s"]}`.`{table["t"]}`')
            key = (table['pk'] or '').split(',') if table['pk'] else None
            dump[f'{table["s"]}.{table["t"]}'] = {
                tuple(row[k] for k in key) if key else tuple(row.values()): row for row in cursor.fetchall()}
        return dump


class Change(ty.NamedTuple):
    """One column that differs; column '' is a row that came (old None) or went (new None)."""

    table: str
    key: tuple[ty.Any, ...]
    column: str
    old: ty.Any
    new: ty.Any


def service_columns() -> list[str]:
    """The reviewed columns that services write by themselves (service_columns.txt)."""
    lines = (line.split('#')[0].split(None, 1) for line in (LAB / 'tests/service_columns.txt').read_text().splitlines())
    return [words[0] for words in lines if words]


def diff_dumps(a: Dump, b: Dump, ignore: ty.Iterable[str] | None = None) -> list[Change]:
    """What changed, but for columns that match `ignore` (`database.table.column`, with *; default: the reviewed ones)."""
    ignored = list(service_columns() if ignore is None else ignore)
    changes = []
    for table in sorted(a.keys() | b.keys()):
        old, new = a.get(table, {}), b.get(table, {})
        for key in sorted(old.keys() | new.keys(), key=repr):
            if key not in old or key not in new:
                changes.append(Change(table, key, '', old.get(key), new.get(key)))
                continue
            changes += [Change(table, key, column, value, new[key][column]) for column, value in old[key].items()
                        if value != new[key][column]
                        and not any(fnmatch.fnmatchcase(f'{table}.{column}', pattern) for pattern in ignored)]
    return changes


# ---- the hypervisors, the judge, the log of requests


def guest_def(server: str) -> dict[str, ty.Any] | None:
    """The third witness: what the hypervisor has stored: {name, state, volumes: [{volume_id, device, ...}]}."""
    return json.loads(lab('guest-def', server).out)


def guest_off(*names: str, undefine: bool = False) -> None:
    """The guests die by themselves; nova finds out within its next look (10 s)."""
    lab('guest-off', *(['--undefine'] if undefine else []), *names)


def violations(clear: bool = False) -> list[str]:
    """What the judge has against us: see lab/violations."""
    found = lab('violations', check=False)
    assert found.rc in (0, 1) and bool(found.out) == bool(found.rc), found
    if clear:
        lab('violations', '--clear')
    return found.out.splitlines()


def judged() -> None:
    """No violations. Half of a nova detach looks like one for a moment, so what is only "now" is asked again."""
    if any(v.startswith('now: ') for v in violations()):
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(v.startswith('now: ') for v in violations()), 10, 'both sides agree')
    assert not (found := violations()), found


@contextlib.contextmanager
def statements(user: str = 'osc_drp') -> ty.Iterator[list[str]]:
    """Collects every statement that user's connections send inside the block."""
    sent: list[str] = []
    lab('general-log', 'on')
    try:
        yield sent
    finally:
        lab('general-log', 'off')
        sent += [row['argument'].decode() if isinstance(row['argument'], bytes) else row['argument'] for row in db(
            "SELECT argument FROM mysql.general_log WHERE command_type IN ('Query', 'Execute') AND user_host LIKE %s",
            f'{user}[%')]


@contextlib.contextmanager
def requests(service: str) -> ty.Iterator[list[tuple[str, str, int]]]:
    """Collects (method, path, status) of every request to nova or cinder inside the block."""
    seen: list[tuple[str, str, int]] = []
    time.sleep(0.5)                     # uwsgi logs a request when it has been answered, by way of its master
    mark = lab('requests', 'mark').out.strip()
    try:
        yield seen
    finally:
        time.sleep(0.5)
        for line in lab('requests', service, mark).out.splitlines():
            method, path, status = line.split(' ')
            seen.append((method, path, int(status)))


def secrets() -> list[str]:
    """What must never be seen: planted secrets and the databases' passwords, plain and quoted."""
    found = (ETC / 'planted-secrets').read_text().split()
    found.append((ETC / 'osc-drp.password').read_text().rstrip('\n'))
    for line in (LAB_HOME / 'var/secrets').read_text().splitlines():
        if line.startswith('DB_PASSWORD_'):
            found.append(line.partition('=')[2])
    return found + [urllib.parse.quote(s, safe='') for s in found]


def leaks(*places: str | os.PathLike[str]) -> list[str]:
    """Files below these places (default: all output of the tests) that hold a secret."""
    needles = [s.encode() for s in secrets()] + [b'gAAAAAB']            # how every keystone token begins
    return [f'{path}: {needle.decode()[:4]}...' for place in places or (OUT,)
            for path in sorted(p for p in [pathlib.Path(place), *pathlib.Path(place).rglob('*')] if p.is_file())
            for needle in needles if needle in path.read_bytes()]


# ---- the power


def power_loss() -> None:
    """SIGKILL to everything."""
    lab('power-loss')


def power_on(without: ty.Iterable[str] = ()) -> None:
    """Everything starts again, but not what `without` names (lab('start', ...) brings it later)."""
    lab('power-on', LAB_WITHOUT=' '.join(without))


def restore_snapshot(name: str, without: ty.Iterable[str] = (), cold: bool = False) -> None:
    """Back to a snapshot, powered on: `seeded` (everything runs) or `lost` (the same, right after its power went)."""
    if (LAB_HOME / 'run/mysqld.sock').exists():
        judged()                        # the restore takes the judge's table with it
    # the journals tell of a cloud that never was: looked through, then gone
    assert not (found := leaks(TESTS / 'state')), found
    shutil.rmtree(TESTS / 'state', ignore_errors=True)
    lab('snapshot', 'restore', name, **({'LAB_COLD': '1'} if cold else {}))
    power_on(without)
