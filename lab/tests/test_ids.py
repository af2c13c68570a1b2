"""IDs as a user may write them: nova keeps a volume's in capitals, cinder a server's without dashes, too."""
import labkit
from procedure import APPROVED, all_off, results, RUNS, rows


def new_volume(name):
    made = labkit.api('cinder', 'POST', '/volumes', {'volume': {'name': name, 'size': 1}}, cloud='lab-blue')
    assert made.status == 202, made
    labkit.wait_volume(60, **{name.replace('-', '_'): 'available'})
    return labkit.volume_id(name)


def new_server(name, volume):
    """A server like web1 that is created with a volume."""
    like = labkit.api('nova', 'GET', f'/servers/{labkit.server_id("web1")}', cloud='lab-blue').json['server']
    image = like['image']['id']
    made = labkit.api('nova', 'POST', '/servers', {'server': {
        'name': name, 'flavorRef': like['flavor']['id'], 'imageRef': image, 'networks': 'none', 'availability_zone': 'cell1',
        'block_device_mapping_v2': [
            {'boot_index': 0, 'uuid': image, 'source_type': 'image', 'destination_type': 'local'},
            {'boot_index': -1, 'uuid': volume, 'source_type': 'volume', 'destination_type': 'volume'}]}},
        microversion='2.37', cloud='lab-blue')
    assert made.status == 202, made
    labkit.wait_status(90, **{name: 'ACTIVE'})


def mapped(volume):
    """The volume's id as nova keeps it."""
    return [r['volume_id'] for r in labkit.db(
        'SELECT volume_id FROM nova_cell1.block_device_mapping WHERE deleted = 0 AND volume_id = %s', volume)]


def test_ids_as_users_write_them(seeded, tmp_path):
    """Such a user keeps nobody from a map, and his server is recovered as all others."""
    volume = new_volume('caps-data')
    new_server('caps1', volume.upper())
    idle = labkit.server_id('idle1')
    own = {}
    for name, written in (('own-capitals', idle.upper()), ('own-dashes', idle.replace('-', ''))):
        own[written] = new_volume(name)
        made = labkit.api('cinder', 'POST', '/attachments', {'attachment': {
            'volume_uuid': own[written], 'instance_uuid': written}}, microversion='3.27', cloud='lab-blue')
        assert made.status == 200, made
    assert mapped(volume) == [volume.upper()]
    kept = labkit.db('SELECT instance_uuid, volume_id FROM cinder.volume_attachment WHERE volume_id IN %s', tuple(own.values()))
    assert {r['instance_uuid']: r['volume_id'] for r in kept} == own

    told = {}
    for name, source in (('api', ()), ('database', labkit.DATABASES)):
        path = str(tmp_path / name)
        labkit.drp('attachments', 'save', '--source', name, *source, path)
        told[name] = {line for line in labkit.drp('attachments', 'show', path).out.splitlines() if 'caps1' in line or idle in line}
    assert told['api'] == told['database'] and len(told['api']) >= 1, told
    found = {(r['Server'], r['Volume ID']): r['Rule'] for r in rows('attachments', 'check', *labkit.DATABASES, rc=3)}
    assert found['caps1', volume] == 'R1'
    assert {found['idle1', v] for v in own.values()} == {'G9'}, found

    labkit.power_loss()
    labkit.power_on()
    all_off(('caps1',))
    path, only = str(tmp_path / 'api'), ('--server', 'caps1')
    reset = ('db', 'reset', path, *labkit.DATABASES, *APPROVED, *only)
    assert results(*reset) == {('caps1', volume): 'done'}
    assert (mapped(volume), labkit.volumes()['caps-data']['status']) == ([], 'available')
    run = max(p.name for p in RUNS.glob('*-reset-*'))
    assert results('db', 'undo', run, *labkit.DATABASES, *APPROVED) == {('caps1', volume): 'done'}
    assert mapped(volume) == [volume.upper()]
    labkit.judged()
    assert results(*reset) == {('caps1', volume): 'done'}
    assert results('servers', 'restart', path, *APPROVED, *only) == {('caps1', ''): 'done'}
    assert results('attachments', 'restore', path, *APPROVED, *only) == {('caps1', volume): 'done'}
    records = labkit.attachments()
    assert records.nova['caps1', 'caps-data']['attachment_id'] == records.cinder['caps1', 'caps-data']['id']
    assert labkit.guest_def('caps1')['volumes'][0]['volume_id'] == volume
