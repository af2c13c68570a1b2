"""The lab itself: what the other tests rely on is true here. In the order written, from one power loss."""
import labkit
import pymysql
import pytest

RUNNING = ('app1', 'bfv1', 'cl1', 'cl2', 'db1', 'far1', 'far2', 'idle1', 'web1')


@pytest.fixture(scope='module', autouse=True)
def without_computes(cloud):
    """The power is back, but not yet on the compute nodes."""
    labkit.restore_snapshot('lost', without=('nova-compute1', 'nova-compute2'))


def devices(server):
    """[(device, volume name)] as the hypervisor has them."""
    names = {v['id']: name for name, v in labkit.volumes().items()}
    return [(v['device'], names[v['volume_id']]) for v in labkit.guest_def(server)['volumes']]


def mappings(volume):
    """Live mappings of a volume in any cell."""
    return labkit.db('SELECT * FROM lab.mappings WHERE volume_id = %s', labkit.volume_id(volume))


def reset_both_records(volume):
    """What the old procedure asks for, in both databases, nova first (as root, whom the judge does not watch)."""
    v = labkit.volume_id(volume)
    for cell in labkit.CELLS:
        labkit.db('UPDATE block_device_mapping SET deleted = id, deleted_at = UTC_TIMESTAMP() WHERE deleted = 0 AND volume_id = %s',
                  v, database=cell)
    labkit.db("UPDATE cinder.volume_attachment SET deleted = 1, deleted_at = UTC_TIMESTAMP(), attach_status = 'detached'"
              ' WHERE deleted = 0 AND volume_id = %s', v)
    labkit.db("UPDATE cinder.volumes SET status = 'available', attach_status = 'detached' WHERE id = %s", v)


def test_after_the_loss_servers_are_active_until_nova_looks():
    before = labkit.servers()
    assert {before[name]['status'] for name in RUNNING} == {'ACTIVE'}
    assert before['off1']['status'] == 'SHUTOFF' and before['shelf1']['status'] == 'SHELVED_OFFLOADED'
    assert labkit.guest_def('web1')['state'] == 'shutdown'
    records = labkit.attachments()

    labkit.lab('start', 'nova-compute1', 'nova-compute2')
    labkit.wait_status(60, **dict.fromkeys(RUNNING, 'SHUTOFF'))

    for name in RUNNING:
        newest = labkit.actions(name)[0]
        assert (newest['action'], newest['user_id'], newest['project_id']) == ('stop', None, None), name
    stop = labkit.actions('off1')[0]
    assert stop['action'] == 'stop' and stop['user_id'] and stop['project_id']
    assert labkit.attachments() == records


def test_volumes_are_where_the_seed_put_them():
    records = labkit.attachments()
    assert records.nova.keys() == records.cinder.keys()
    assert {k: a['attachment_id'] for k, a in records.nova.items()} == {k: a['id'] for k, a in records.cinder.items()}
    assert devices('db1') == [('/dev/vdb', 'db1-data'), ('/dev/vdc', 'db1-log'), ('/dev/vdd', 'db1-backup')]
    assert devices('bfv1') == [('/dev/vda', 'bfv1-root'), ('/dev/vdb', 'bfv1-data')]
    scratch = records.nova['app1', 'app1-scratch']
    assert (scratch['tag'], scratch['delete_on_termination']) == ('scratch', True)
    assert labkit.volumes()['shelf1-data']['status'] == 'reserved'
    assert labkit.guest_def('shelf1') is None
    hosts = {name: s['host'] for name, s in labkit.servers().items()}
    assert {n for n, host in hosts.items() if host == 'compute2'} == {'cl2', 'far1', 'far2', 'idle1'}


def test_a_start_brings_the_server_back_with_its_volumes():
    assert labkit.user_osc('lab-green')('server', 'start', 'app1').rc == 0
    labkit.wait_status(30, app1='ACTIVE')
    assert labkit.guest_def('app1')['state'] == 'running'
    assert devices('app1') == [('/dev/vdb', 'app1-data'), ('/dev/vdc', 'app1-scratch')]


def test_attach_fails_later_while_the_stopped_guest_still_has_the_disk():
    reset_both_records('web1-data')
    answer = labkit.attach('web1', 'web1-data', cloud='lab-blue')
    assert answer.status == 200
    labkit.wait_until(lambda: not mappings('web1-data'), 30, 'the mapping is gone again')
    labkit.wait_volume(30, web1_data='available')
    assert 'non unique alias detected: ua-' in (labkit.LAB_HOME / 'log/nova-compute1.log').read_text(errors='replace')


def test_start_defines_the_guest_anew_and_then_attach_works_on_the_next_free_device():
    assert devices('web1') == [('/dev/vdb', 'web1-data')]
    assert labkit.act('web1', 'os-start').status == 202
    labkit.wait_status(30, web1='ACTIVE')
    assert devices('web1') == []
    answer = labkit.attach('web1', 'web1-data', cloud='lab-blue', device='/dev/vdx')
    assert answer.status == 200 and answer.json['volumeAttachment']['device'] == '/dev/vdb'
    labkit.wait_volume(30, web1_data='in-use')
    assert devices('web1') == [('/dev/vdb', 'web1-data')]


def test_attach_to_a_running_guest_that_still_has_the_disk_fails_later_too():
    reset_both_records('web1-data')
    assert labkit.attach('web1', 'web1-data', cloud='lab-blue').status == 200
    labkit.wait_until(lambda: not mappings('web1-data'), 30, 'the mapping is gone again')
    labkit.wait_volume(30, web1_data='available')
    assert labkit.act('web1', 'reboot', {'type': 'HARD'}).status == 202
    labkit.wait_until(lambda: devices('web1') == [], 30, 'the hard reboot defined the guest anew')
    labkit.wait_status(30, web1='ACTIVE')
    assert labkit.attach('web1', 'web1-data', cloud='lab-blue').status == 200
    labkit.wait_volume(30, web1_data='in-use')


def test_detached_and_attached_through_nova_while_stopped():
    assert labkit.detach('far2', 'far2-data', cloud='lab-green').status == 202
    labkit.wait_volume(30, far2_data='available')
    labkit.wait_until(lambda: not mappings('far2-data'), 10, 'nova forgot it')
    assert devices('far2') == []
    assert labkit.attach('far2', 'far2-data', cloud='lab-green').status == 200
    labkit.wait_volume(30, far2_data='in-use')
    assert labkit.act('far2', 'os-start').status == 202
    labkit.wait_status(30, far2='ACTIVE')
    assert devices('far2') == [('/dev/vdb', 'far2-data')]


def test_a_mapping_without_connection_info_is_left_out_of_the_guest():
    log = labkit.volume_id('db1-log')
    old = labkit.db('SELECT id, connection_info FROM block_device_mapping WHERE volume_id = %s AND deleted = 0', log,
                    database='nova_cell1')[0]
    labkit.db('UPDATE block_device_mapping SET connection_info = NULL WHERE id = %s', old['id'], database='nova_cell1')
    assert labkit.act('db1', 'os-start').status == 202
    labkit.wait_status(30, db1='ACTIVE')
    assert devices('db1') == [('/dev/vdb', 'db1-data'), ('/dev/vdd', 'db1-backup')]
    labkit.db('UPDATE block_device_mapping SET connection_info = %s WHERE id = %s', old['connection_info'], old['id'],
              database='nova_cell1')
    assert labkit.act('db1', 'reboot', {'type': 'HARD'}).status == 202
    labkit.wait_until(lambda: len(devices('db1')) == 3, 30, 'the hard reboot defined the guest anew')


def test_a_guest_that_ends_by_itself_is_stopped_without_a_user():
    labkit.wait_status(30, db1='ACTIVE', app1='ACTIVE')

    def diagnostics(name):
        return labkit.api('nova', 'GET', f'/servers/{labkit.server_id(name)}/diagnostics', microversion='2.48')

    assert (diagnostics('db1').status, diagnostics('db1').json['state']) == (200, 'running')
    labkit.guest_off('db1')
    labkit.guest_off('app1', undefine=True)
    assert labkit.guest_def('db1')['state'] == 'shutdown' and labkit.guest_def('app1') is None
    labkit.wait_status(30, db1='SHUTOFF')
    assert diagnostics('db1').status == 409
    newest = labkit.actions('db1')[0]
    assert (newest['action'], newest['user_id']) == ('stop', None)
    # lost with its definition: nova says ACTIVE without power until somebody stops and starts it
    labkit.wait_until(lambda: labkit.servers()['app1']['power_state'] == 'nostate', 30, 'nova looked for app1')
    assert labkit.servers()['app1']['status'] == 'ACTIVE'
    assert labkit.act('app1', 'os-stop').status == 202
    labkit.wait_status(30, app1='SHUTOFF')
    assert labkit.act('app1', 'os-start').status == 202
    labkit.wait_status(30, app1='ACTIVE')
    assert devices('app1') == [('/dev/vdb', 'app1-data'), ('/dev/vdc', 'app1-scratch')]


def test_the_judge_sees_a_mapped_volume_made_available():
    v = labkit.volume_id('far1-data')
    free = "UPDATE volumes SET status = 'available', attach_status = 'detached' WHERE id = %s"
    with labkit.connection('cinder', 'osc_drp') as c:
        c.cursor().execute(free, (v,))
        c.rollback()                    # what was not committed never happened
        assert labkit.violations() == []
        c.cursor().execute(free, (v,))
        c.commit()
    found = labkit.violations()
    assert len(found) == 2 and 'made available while mapped' in found[0] and v in found[0] and found[1].startswith('now: ')
    assert 'nova_cell2' in found[0]
    labkit.db("UPDATE cinder.volumes SET status = 'in-use', attach_status = 'attached' WHERE id = %s", v)
    assert len(labkit.violations(clear=True)) == 1
    assert labkit.violations() == []


def test_the_judge_sees_a_mapping_made_live_while_the_volume_is_available():
    reset_both_records('far1-log')
    v = labkit.volume_id('far1-log')
    live = 'UPDATE block_device_mapping SET deleted = 0, deleted_at = NULL WHERE volume_id = %s AND deleted = id'
    assert labkit.db(live, v, database='nova_cell2', user='osc_drp') == [{'rowcount': 1}]
    found = labkit.violations()
    assert 'mapping made live while the volume is available' in found[0] and v in found[0]
    labkit.db("UPDATE cinder.volume_attachment SET deleted = 0, deleted_at = NULL, attach_status = 'attached' WHERE volume_id = %s", v)
    labkit.db("UPDATE cinder.volumes SET status = 'in-use', attach_status = 'attached' WHERE id = %s", v)
    labkit.violations(clear=True)


@pytest.mark.parametrize(('database', 'statement'), [
    ('cinder', "UPDATE volumes SET host = 'x'"), ('cinder', 'DELETE FROM volume_attachment'), ('cinder', 'SELECT * FROM snapshots'),
    ('cinder', "INSERT INTO volumes (id) VALUES ('x')"), ('cinder', 'LOCK TABLES volumes WRITE'),
    ('cinder', 'UPDATE volume_attachment SET connection_info = NULL'), ('nova_api', "UPDATE cell_mappings SET name = 'x'"),
    ('nova_cell0', 'UPDATE instances SET task_state = NULL'), ('nova_cell1', 'SELECT * FROM instance_extra'),
    ('nova_cell2', 'UPDATE block_device_mapping SET boot_index = 0'), ('lab', 'SELECT 1'),
])
def test_the_user_may_not(database, statement):
    with pytest.raises(pymysql.Error):
        labkit.db(statement, database=database, user='osc_drp')


@pytest.mark.parametrize(('database', 'table'), [
    ('cinder', 'volumes'), ('cinder', 'volume_attachment'), ('nova_cell0', 'instances'), ('nova_cell2', 'instances'),
    ('nova_cell1', 'block_device_mapping'),
])
def test_the_user_may_lock_rows(database, table):
    labkit.db(f'SELECT * FROM {table} FOR UPDATE', database=database, user='osc_drp')


def test_dumps_statements_and_requests_show_what_happened():
    v = labkit.volume_id('spare')
    before = labkit.dump_all()
    with labkit.statements() as sent, labkit.requests('cinder') as seen:
        labkit.db("UPDATE volumes SET status = 'error' WHERE id = %s", v, database='cinder', user='osc_drp')
        assert labkit.api('cinder', 'GET', f'/volumes/{v}').json['volume']['status'] == 'error'
    assert any(s.startswith("UPDATE volumes SET status = 'error'") for s in sent)
    assert [(m, s) for m, path, s in seen if path.endswith(f'/volumes/{v}')] == [('GET', 200)]
    assert labkit.diff_dumps(before, labkit.dump_all()) == [labkit.Change('cinder.volumes', (v,), 'status', 'available', 'error')]
    labkit.db("UPDATE cinder.volumes SET status = 'available' WHERE id = %s", v)


def test_pages_of_the_apis_can_be_made_tiny():
    everything = set(labkit.servers()), set(labkit.volumes())
    labkit.lab('restart', '--kill', 'nova-api', 'cinder-api', LAB_MAX_LIMIT='4')
    try:
        with labkit.requests('nova') as nova, labkit.requests('cinder') as cinder:
            assert (set(labkit.servers()), set(labkit.volumes())) == everything
        assert len([r for r in nova if '/servers/detail' in r[1]]) == 3
        assert len([r for r in cinder if '/volumes/detail' in r[1]]) >= 4
    finally:
        labkit.lab('restart', '--kill', 'nova-api', 'cinder-api')


def test_a_leaked_secret_is_found():
    where = labkit.TESTS / 'leak'
    where.mkdir(parents=True, exist_ok=True)
    try:
        for secret in labkit.secrets():
            (where / 'file').write_text(f'x{secret}x')
            assert labkit.leaks(where)
        (where / 'file').write_text('nothing')
        assert labkit.leaks(where) == []
        stored = labkit.db("SELECT connection_info FROM nova_cell1.block_device_mapping WHERE connection_info LIKE '%%auth_password%%'")
        assert any(s in row['connection_info'] for s in labkit.secrets() for row in stored)
    finally:
        (where / 'file').unlink()
        where.rmdir()
