"""`drp drill` on real guests: one consenting server loses its power and is recovered; what it was told to be safe is there."""
import compute
import guests
from guests import REAL
import labkit
import procedure
from procedure import APPROVED
import pytest


def touched(server):
    """What nova has done with a server, and which boot it is."""
    return len(labkit.actions(server)), guests.boot_id(server)


def drilled(before, server, others, records, rows):
    """The table says that nothing was lost, and it is so; nobody else was touched."""
    found = {row['What']: (row['Before'], row['After'], row['Result']) for row in rows}
    assert found.pop(f'server {server}') == ('running', 'start: started', 'ok'), rows
    kept = found.pop('files')
    assert kept == (kept[0], kept[0], 'ok') and int(kept[0]) >= len(guests.WRITES[server]), rows
    assert float(found.pop('minutes until it answered')[1]) < 10, rows
    places = {f'disk {labkit.volume_id(v)[:20]}': f'/vol/{labkit.volume_id(v)[:20]}' for v in guests.WRITES[server]}
    assert {name: row for name, row in found.items() if name in places} == {
        name: (place, place, 'ok') for name, place in places.items()}, rows
    assert {row[2] for row in found.values()} == {'ok'}, rows

    guests.survived(before, booted={server: 1})
    assert {name: touched(name) for name in others} == others
    assert labkit.attachments() == records


def test_without_consent(running, tmp_path):
    """A server whose owner did not agree is refused, and nothing is changed."""
    before = {name: touched(name) for name in REAL}
    with compute.sshd(tmp_path) as ssh:
        result = labkit.drp('drill', '--server', 'web1', *labkit.DATABASES, *ssh, *APPROVED, check=False)
    assert result.rc == 4 and "'web1' does not consent" in result.err, result
    assert {name: touched(name) for name in REAL} == before


@pytest.mark.parametrize('server, way', [('web1', 'ssh'), ('bfv1', 'command')])
def test_drill(running, tmp_path, server, way):
    """On its host, over SSH, by virsh; and by the lab's own cut command."""
    labkit.openstack('server', 'set', '--property', 'drp_drill=true', labkit.server_id(server))
    before, records = guests.picture(), labkit.attachments()
    others = {name: touched(name) for name in REAL if name != server}
    since = procedure.now()
    with compute.sshd(tmp_path) as ssh:
        drill = ('drill', '--server', server, *labkit.DATABASES, *ssh)
        cuts = f'the guest on compute1 (virsh destroy {labkit.server_id(server)})'
        if way == 'command':
            # its root is a volume too, which a boot writes to
            drill += ('--cut-command', str(labkit.LAB / 'guest-cut'), '--path', f'/vol/{labkit.volume_id("bfv1-data")[:20]}')
            cuts = f'whatever {labkit.LAB}/guest-cut {labkit.server_id(server)} compute1 cuts'
        assert [(r['What'], r['Result']) for r in procedure.rows(*drill, '--dry-run')] == [(cuts, 'would be cut')]
        rows = procedure.rows(*drill, *APPROVED, timeout=600)
    drilled(before, server, others, records, rows)
    assert procedure.starts(server, since) == ['start']
