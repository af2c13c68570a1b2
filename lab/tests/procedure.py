"""What the tests of the procedure share: the map of the seeded cloud, and what must be true of a recovered one."""
import contextlib
import json
import pathlib

import labkit

#: The servers of the seed that run, and the two that do not.
RAN = ('app1', 'bfv1', 'cl1', 'cl2', 'db1', 'far1', 'far2', 'idle1', 'web1')
OFF = ('off1', 'shelf1')
ROOTS = {('bfv1', 'bfv1-root')}
MAP = labkit.TESTS / 'map.json'
RUNS = labkit.TESTS / 'state/osc-drp/lab'
APPROVED = ('--auto-approve',)
RESET = ('db', 'reset', str(MAP), *labkit.DATABASES)
RESTART = ('servers', 'restart', str(MAP))
RESTORE = ('attachments', 'restore', str(MAP))
#: The lab's guests are processes without SSH and without a boot that may hang.
OPTIONS = (*labkit.DATABASES, '--skip-guests', '--console-after', '0')
RECOVER = ('recover', str(MAP), *OPTIONS)


def rows(*args, rc=0, **kw):
    """Run `drp ... -f json`; its rows, after the exit code was as expected."""
    result = labkit.drp(*args, '-f', 'json', check=False, **kw)
    assert result.rc == rc, f'{args} ended with {result.rc}, not {rc}:\n{result.out}{result.err}'
    return json.loads(result.out)


def results(*args, rc=0, **kw):
    """{(server, volume id or ''): result} of a command's table."""
    return {(r['Server'], r.get('Volume ID', '')): r['Result'] for r in rows(*args, rc=rc, **kw)}


def all_off(names=RAN):
    labkit.wait_status(90, **dict.fromkeys(names, 'SHUTOFF'))
    # nova writes down that a stop has ended after the new status: a change of its own to who compares dumps. One that was under way
    # when the power went never ends
    with contextlib.suppress(AssertionError):
        labkit.wait_until(lambda: not labkit.db(' UNION ALL '.join(
            f"SELECT id FROM {cell}.instance_actions_events WHERE event = 'compute_stop_instance' AND finish_time IS NULL"
            for cell in labkit.CELLS)), 10, 'all stops have ended')


def starts(name, since):
    """How often the server was started since: nova's own log."""
    return [a['action'] for a in labkit.actions(name) if a['start_time'] > since and a['action'] in ('start', 'reboot')]


def now():
    """The cloud's clock."""
    return labkit.db('SELECT UTC_TIMESTAMP() t')[0]['t'].isoformat()


def signature(records):
    """What must come back: per attachment its device, tag and flag; ids may be new."""
    return {key: (a['device'], a['tag'], a['delete_on_termination']) for key, a in records.nova.items()}


def agree(records):
    """Cinder's row is the one that nova names, and attached."""
    assert records.nova.keys() == records.cinder.keys()
    for key, a in records.nova.items():
        if key[0] != 'shelf1':
            assert (a['attachment_id'], 'attached') == (records.cinder[key]['id'], records.cinder[key]['status']), key


def witnessed(records):
    """The hypervisor, the third witness, has the same disks in the same places."""
    names = {v['id']: name for name, v in labkit.volumes().items()}
    for server in RAN:
        stored = {(server, names[v['volume_id']]): v['device'] for v in labkit.guest_def(server)['volumes']}
        told = {key: a['device'] for key, a in records.nova.items() if key[0] == server}
        assert stored == told, server


def recovered(before, records):
    """Everything of the map is back, in its order, with its tags and flags; roots and what was off untouched."""
    agree(records)
    assert signature(records) == signature(before)
    for key in records.nova:
        if key in ROOTS or key[0] in OFF:
            assert records.nova[key] == before.nova[key], key
    witnessed(records)
    states = labkit.servers()
    assert {n: states[n]['status'] for n in RAN} == dict.fromkeys(RAN, 'ACTIVE')
    assert {n: states[n]['power_state'] for n in RAN} == dict.fromkeys(RAN, 'running')
    assert (states['off1']['status'], states['shelf1']['status']) == ('SHUTOFF', 'SHELVED_OFFLOADED')


def twice():
    """Pairs that cinder has more than one live row of."""
    return labkit.db('SELECT volume_id, instance_uuid FROM cinder.volume_attachment WHERE deleted = 0'
                     ' GROUP BY volume_id, instance_uuid HAVING COUNT(*) > 1')


def true(told):
    """What the table says is so: by nova's and cinder's own words."""
    states, records = labkit.servers(), labkit.attachments()
    names = {v['id']: name for name, v in labkit.volumes().items()}
    for row in told:
        if row['Result'] not in ('done', 'ok'):
            assert row['Reason'], row
        elif row['Step'] == 'start':
            assert states[row['Server']]['status'] == 'ACTIVE', row
        elif row['Step'] == 'attach':
            key = row['Server'], names[row['Volume ID']]
            assert records.nova[key]['attachment_id'] == records.cinder[key]['id'], row
            assert records.cinder[key]['status'] == 'attached', row


def own_ids(*servers):
    """Ids of the servers and of their volumes: what a test mode run may touch."""
    ids = {labkit.server_id(s) for s in servers}
    for server in list(ids):
        ids |= {r['volume_id'] for r in labkit.db('SELECT volume_id FROM lab.mappings WHERE instance_uuid = %s', server)}
    return ids


def three_columns(path, *servers):
    """The procedure's own file for some servers: volume, server, device."""
    wanted = {labkit.server_id(s) for s in servers}
    lines = labkit.drp('attachments', 'show', str(MAP), '-f', 'value', '-c', 'Volume', '-c', 'Server', '-c', 'Device').out
    path = pathlib.Path(path)
    path.write_text(''.join(f'{line}\n' for line in lines.splitlines() if line.split()[1] in wanted))
    return str(path)
