"""The procedure after a real power loss: the light way, the literal way, test mode, twice, and what users did since."""
import json
import os

import labkit
from procedure import APPROVED, MAP, OFF, RAN, RESET, RESTART, RESTORE, ROOTS, all_off, own_ids, recovered, results, rows, starts
import procedure


def data_pairs(before, servers=RAN):
    return {key for key in before.nova if key[0] in servers and key not in ROOTS}


def test_light_way(the_map, lost):
    """A loss and nothing else: all agree, the restart brings every server back with its disks, nothing to attach."""
    since = procedure.now()

    told = results(*RESTART, *APPROVED)
    ids = {name: labkit.server_id(name) for name in (*RAN, *OFF)}
    assert told == {**{(n, ''): 'done' for n in RAN}, **{(n, ''): 'left' for n in OFF}}
    assert {n: starts(n, since) for n in ids} == {**{n: ['start'] for n in RAN}, **{n: [] for n in OFF}}
    records = labkit.attachments()
    assert records.nova == the_map.nova                     # the very same attachments
    recovered(the_map, records)

    with labkit.requests('nova') as sent:
        assert set(results(*RESTORE, *APPROVED).values()) == {'ok', 'left'}
        assert set(results(*RESTART, *APPROVED, '--settle', '12').values()) == {'ok', 'left'}
    assert [r for r in sent if r[0] != 'GET'] == []
    assert {n: starts(n, since) for n in RAN} == {n: ['start'] for n in RAN}


def test_literal_procedure(the_map, lost):
    """Reset, restart, restore: every data volume of what ran comes back in order; roots and what was off untouched."""
    all_off()
    since = procedure.now()

    told = results(*RESET, *APPROVED)
    volume = {v: labkit.volume_id(v) for _s, v in the_map.nova}
    expected = {(s, volume[v]): 'done' if (s, v) in data_pairs(the_map) else 'left' for s, v in the_map.nova}
    assert told == expected
    after = labkit.attachments()
    assert after.nova.keys() == after.cinder.keys() == the_map.nova.keys() - data_pairs(the_map)
    states = labkit.volumes()
    assert {states[v]['status'] for _s, v in data_pairs(the_map)} == {'available'}
    assert states['bfv1-root']['status'] == states['off1-data']['status'] == 'in-use'
    labkit.judged()

    # a second reset finds nothing to do, and a restore before the restart attaches nothing to a server that is off
    assert set(results(*RESET, *APPROVED).values()) == {'ok', 'left'}
    assert set(results(*RESTORE, *APPROVED, rc=3).values()) == {'open', 'ok', 'left'}

    assert set(results(*RESTART, *APPROVED).values()) == {'done', 'left'}
    told = results(*RESTORE, *APPROVED)
    assert {key for key, result in told.items() if result == 'done'} == {(s, volume[v]) for s, v in data_pairs(the_map)}
    records = labkit.attachments()
    recovered(the_map, records)
    assert all(records.nova[key]['attachment_id'] != the_map.nova[key]['attachment_id'] for key in data_pairs(the_map))
    assert {n: starts(n, since) for n in (*RAN, *OFF)} == {**{n: ['start'] for n in RAN}, **{n: [] for n in OFF}}

    # nothing the second time
    with labkit.requests('nova') as sent:
        assert set(results(*RESTORE, *APPROVED).values()) == {'ok', 'left'}
    assert [r for r in sent if r[0] != 'GET'] == []
    assert labkit.attachments() == records


def test_old_three_column_file(the_map, lost, tmp_path):
    """`attachments show` prints the procedure's file, and restore takes it."""
    all_off()
    path = procedure.three_columns(tmp_path / 'volumes.txt', 'app1')
    rows(*RESET, *APPROVED, '--server', 'app1')
    rows(*RESTART, *APPROVED, '--server', 'app1')
    told = rows('attachments', 'restore', path, *APPROVED)
    assert [(r['Device'], r['Result']) for r in told] == [('/dev/vdb', 'done'), ('/dev/vdc', 'done')]


def test_mode_for_one_server(the_map, lost):
    """--server changes that server and nothing else: full dumps of all databases before and after each step."""
    all_off()
    ours = own_ids('db1')
    for step in (RESET, RESTART, RESTORE):
        before = labkit.dump_all()
        told = rows(*step, *APPROVED, '--server', 'db1')
        assert {r['Server'] for r in told} == {'db1'} and 'done' in {r['Result'] for r in told}
        foreign = strangers(before, labkit.dump_all(), ours)
        assert not foreign, (step, foreign)
    assert {s for s, state in labkit.servers().items() if state['status'] == 'ACTIVE'} == {'db1'}
    records = labkit.attachments()
    procedure.agree(records)
    assert procedure.signature(records) == procedure.signature(the_map)


def strangers(before, after, ours):
    """Changes of rows that have nothing to do with these ids."""
    def mine(change):
        row = {**((before.get(change.table) or {}).get(change.key) or {}), **((after.get(change.table) or {}).get(change.key) or {})}
        if ours & {v for v in row.values() if isinstance(v, str)}:
            return True
        if change.table.endswith('.instance_actions_events'):       # names its server through its action
            actions = after[change.table.replace('_events', '')]
            return any(a['instance_uuid'] in ours for a in actions.values() if a['id'] == row['action_id'])
        return False
    return [c for c in labkit.diff_dumps(before, after) if not mine(c)]


def test_what_users_did_since(the_map, lost):
    """A volume that its user detached is not attached again; a server that its user stopped is not started, nor reset."""
    all_off()
    rows(*RESTART, *APPROVED, '--server', 'db1', '--server', 'web1')
    blue = labkit.user_osc('lab-blue')
    blue('server', 'remove', 'volume', 'db1', 'db1-log')
    labkit.wait_volume(30, db1_log='available')
    blue('server', 'stop', 'web1')
    labkit.wait_status(30, web1='SHUTOFF')

    told = rows(*RESTORE, *APPROVED, '--server', 'db1')
    assert [(r['Result'], r['Reason']) for r in told] == [
        ('ok', 'attached'), ('left', 'a user detached it since'), ('ok', 'attached')]
    assert labkit.volumes()['db1-log']['status'] == 'available'
    told = rows(*RESTART, *APPROVED, '--server', 'web1')
    assert [(r['Result'], r['Reason']) for r in told] == [('left', 'a user stopped it since')]
    told = rows(*RESET, *APPROVED, '--server', 'web1')
    assert [(r['Result'], r['Reason']) for r in told] == [('left', 'a user stopped it since')]
    assert labkit.servers()['web1']['status'] == 'SHUTOFF'


def test_multiattach_needs_all_its_servers(the_map, lost):
    """A shared volume is reset with all of its servers or not at all."""
    all_off()
    told = rows(*RESET, *APPROVED, '--server', 'cl1', rc=3)
    assert [(r['Result'], 'has the volume too' in r['Reason']) for r in told] == [('open', True)]
    assert labkit.attachments() == the_map
    told = rows(*RESET, *APPROVED, '--server', 'cl1', '--server', 'cl2')
    assert [r['Result'] for r in told] == ['done', 'done']


def test_selection(the_map, lost):
    """--project, --host and --volume pick what they say."""
    all_off()
    dry = (*RESET, '--dry-run')
    project = labkit.servers()['app1']['project_id']
    assert {r['Server'] for r in rows(*dry, '--project', project)} == {'app1', 'off1', 'far1', 'far2'}
    assert {r['Server'] for r in rows(*dry, '--host', 'compute2', rc=3)} == {'cl2', 'far1', 'far2'}
    assert [(r['Server'], r['Result']) for r in rows(*dry, '--volume', 'app1-scratch')] == [('app1', 'would reset')]
    assert {r['Server'] for r in rows(*RESTART, '--dry-run', '--project', project, '--host', 'compute2')} == {'far1', 'far2'}


def test_journal_tells_what_was(the_map, lost):
    """The journal of a reset holds the old rows, and no connection_info."""
    all_off()
    result = labkit.drp(*RESET, *APPROVED, '--server', 'web1')
    run = result.err.split('run ', 1)[1].split()[0]
    entries = [json.loads(line) for line in open(os.path.join(run, 'journal.jsonl'))]
    assert entries[0]['event'] == 'begin'
    old, *then = entries[-4:]
    assert old['event'] == 'old' and old['server'] == labkit.server_id('web1') and old['rows']
    assert [e['event'] for e in then] == ['outcome', 'verified', 'end']
    assert 'auth_password' not in json.dumps(entries)
    assert os.stat(run).st_mode & 0o777 == 0o700
    assert MAP.stat().st_mode & 0o777 == 0o600
