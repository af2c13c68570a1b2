"""`db reset --cinder-only`: nova's databases untouched, the shield holds, and a hard reboot as the cleaner ends it."""
import labkit
from labkit import db
import pytest
from procedure import APPROVED, MAP, OFF, RAN, RESTART, RESTORE, ROOTS, all_off, recovered, results, rows, starts
import procedure
from test_killed import killed_at

#: nothing of nova's
CINDER = ('--cinder-config-file', str(labkit.ETC / 'cinder.conf'), '--config-file', str(labkit.ETC / 'osc-drp.conf'))
RESET = ('db', 'reset', str(MAP), '--cinder-only', *CINDER)
REVIEWED = ('*.updated_at', *labkit.service_columns())


def named(told):
    """Results of a table by names."""
    names = {r['id']: r['display_name'] for r in db('SELECT id, display_name FROM cinder.volumes')}
    return {(server, names.get(v, v)): result for (server, v), result in told.items()}


def statuses(keys):
    states = labkit.volumes()
    return {states[volume]['status'] for _server, volume in keys}


def mapped(keys):
    return {key for key in keys if db(
        'SELECT 1 FROM lab.mappings WHERE instance_uuid = %s AND volume_id = %s', labkit.server_id(key[0]), labkit.volume_id(key[1]))}


@pytest.fixture
def data(the_map):
    """The data disks that a restart would bring back."""
    return {key for key in the_map.nova if key[0] in RAN and key not in ROOTS}


def test_the_whole_way(the_map, lost, data):
    """Reset, undone, reset again; the shield; cleaner reboots; attached: everything is back."""
    all_off()
    before = labkit.dump_all()
    assert named(results(*RESET, '--dry-run'))['web1', 'web1-data'] == 'would reset'
    assert labkit.diff_dumps(before, labkit.dump_all(), REVIEWED) == []
    told = rows(*RESET, '--dry-run', '--server', 'cl1', rc=3)       # G10: its other server is not selected
    assert [r['Result'] for r in told] == ['open'] and 'has the volume too' in told[0]['Reason']
    with labkit.statements() as sent:
        result = labkit.drp(*RESET, *APPROVED)
    assert 'hard reboot' in result.err and 'nova' not in ' '.join(s for s in sent if s.startswith('UPDATE'))
    changed = labkit.diff_dumps(before, labkit.dump_all(), REVIEWED)
    assert {c.table for c in changed} <= {'cinder.volumes', 'cinder.volume_attachment', 'cinder.volume_admin_metadata'}
    assert statuses(data) == {'reserved'} and statuses(ROOTS) == {'in-use'}
    run = result.err.split('run ', 1)[1].split()[0].rpartition('/')[2]
    # run again: nothing is left to do
    assert set(named(results(*RESET, *APPROVED)).values()) == {'ok', 'left'}
    # undone with cinder's database only: as if it had never been
    undo = ('db', 'undo', run, *CINDER, *APPROVED)
    assert set(results(*undo).values()) == {'done'}
    assert labkit.diff_dumps(before, labkit.dump_all(), REVIEWED) == []

    result = labkit.drp(*RESET, *APPROVED)
    run = result.err.split('run ', 1)[1].split()[0].rpartition('/')[2]
    # the shield: no user takes it
    web = labkit.volume_id('web1-data')
    assert labkit.api('cinder', 'DELETE', f'/volumes/{web}', cloud='lab-blue').status == 400
    assert labkit.attach('idle1', 'web1-data', 'lab-blue').status == 400
    before = labkit.attachments()
    since = procedure.now()
    dry = {s: r for (s, _v), r in results(*RESTART, '--dry-run').items()}
    assert dry['web1'] == 'would clean' and dry['idle1'] == 'would start' and dry['off1'] == 'left'
    assert labkit.attachments() == before
    assert {s: r for (s, _v), r in results(*RESTART, *APPROVED).items()} == dict.fromkeys(RAN, 'done') | dict.fromkeys(OFF, 'left')
    assert mapped(data) == set() and statuses(data) == {'available'}
    assert mapped(ROOTS) == ROOTS
    labkit.judged()
    told = labkit.servers()
    assert not any(told[s]['locked'] for s in RAN)
    for server in RAN:
        wanted = 'reboot' if any(key[0] == server for key in data) else 'start'
        assert starts(server, since) == [wanted], server
    # nova forgot: what is gone there is not put back at cinder
    dumped = labkit.dump_all()
    assert set(results('db', 'undo', run, *CINDER, *APPROVED, rc=3).values()) == {'open'}
    assert labkit.diff_dumps(dumped, labkit.dump_all(), REVIEWED) == []
    assert set(results(*RESTART, *APPROVED, '--settle', '12').values()) <= {'ok', 'left'}       # and no second reboot
    rows(*RESTORE, *APPROVED)
    recovered(the_map, labkit.attachments())


def test_the_cleaner_killed(the_map, lost):
    """Killed after the lock, after the hard reboot was sent, after the volume was freed: run again, one reboot, no lock."""
    all_off()
    one = ('--server', 'web1')
    for point in 'post-after:1', 'post-after:2', 'post-after:3':
        rows(*RESET, *APPROVED, *one)
        since = procedure.now()
        assert killed_at(point, *RESTART, *APPROVED, *one) == -9, point
        assert labkit.servers()['web1']['locked'], point
        told = rows(*RESTART, *APPROVED, *one, '--settle', '12')
        assert [r['Result'] for r in told] == ['done'], (point, told)
        web = labkit.servers()['web1']
        assert (web['status'], web['locked']) == ('ACTIVE', False), point
        assert starts('web1', since) == ['reboot'], point
        assert statuses({('web1', 'web1-data')}) == {'available'}, point
        labkit.judged()
        rows(*RESTORE, *APPROVED, *one)
        assert labkit.guest_def('web1')['volumes'], point
        labkit.guest_off('web1')
        all_off(['web1'])
    procedure.agree(labkit.attachments())
