"""The oldest tables that nova and cinder themselves still know how to make: reset, undo and repair work on them.

These are the first revisions of their alembic migrations; the rows are copies of the lab's. An unknown schema is refused.
"""
import subprocess

import labkit
from osc_drp.db import tables
import pytest
from procedure import APPROVED, MAP, RAN, ROOTS, all_off, results

SOCKET = f'{labkit.LAB_HOME}/run/mysqld.sock'
REVISIONS = {'cinder': ('cinder.db', '921e1a36b076'), 'nova_api': ('nova.db.api', 'd67eeaabee36'),
             'nova_cell1': ('nova.db.main', '8f2f1571d55b')}
METADATA = {'cinder': tables.CINDER, 'nova_api': tables.API} | dict.fromkeys(labkit.CELLS, tables.CELL)


def client(*args, program='mariadb', **kw):
    return subprocess.run([program, '--no-defaults', '-uroot', f'--socket={SOCKET}', *args], check=True, timeout=120, **kw)


def make(schema):
    labkit.db(f'CREATE DATABASE old_{schema} CHARACTER SET utf8mb3')
    package, revision = REVISIONS[schema]
    subprocess.run([f'{labkit.LAB_HOME}/venv/bin/python', str(labkit.LAB / 'python/old_schema.py'), package, revision,
                    f'mysql+pymysql://root@localhost/old_{schema}?unix_socket={SOCKET}'],
                   check=True, capture_output=True, timeout=300)


def columns(schema, table):
    return {r['c'] for r in labkit.db('SELECT column_name c FROM information_schema.columns WHERE table_schema = %s'
                                      ' AND table_name = %s', schema, table)}


def fill(schema):
    """Copy the rows of the tables that osc-drp knows, as far as the old columns go."""
    with labkit.connection() as c, c.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = '', foreign_key_checks = 0")
        for table in METADATA[schema].sorted_tables:
            names = ', '.join(f'`{n}`' for n in sorted(columns(schema, table.name) & columns(f'old_{schema}', table.name)))
            cursor.execute(f'DELETE FROM old_{schema}.{table.name}')
            cursor.execute(f'INSERT INTO old_{schema}.{table.name} ({names}) SELECT {names} FROM {schema}.{table.name}')
        c.commit()


@pytest.fixture
def old(lost, tmp_path):
    """Both services' databases in their oldest form, with the rows of a cloud that lost its power; the options for them."""
    all_off()
    url = f'mysql+pymysql://old:secret@127.0.0.1:{labkit.db("SELECT @@port p")[0]["p"]}/old_'
    try:
        labkit.db("CREATE OR REPLACE USER old@'%%' IDENTIFIED BY 'secret'")
        labkit.db(r"GRANT ALL ON `old\_%%`.* TO old@'%%'")
        for schema in REVISIONS:
            make(schema)
        structure = client('--no-data', 'old_nova_cell1', program='mariadb-dump', capture_output=True).stdout
        for cell in 'nova_cell0', 'nova_cell2':
            labkit.db(f'CREATE DATABASE old_{cell} CHARACTER SET utf8mb3')
            client(f'old_{cell}', input=structure)
        for schema in METADATA:
            fill(schema)
        for cell in labkit.CELLS:
            labkit.db('UPDATE old_nova_api.cell_mappings SET database_connection = %s WHERE name = %s',
                      f'{url}{cell}', cell.removeprefix('nova_'))
        files = {'nova': f'[api_database]\nconnection = {url}nova_api\n', 'cinder': f'[database]\nconnection = {url}cinder\n'}
        for name, text in files.items():
            (tmp_path / f'{name}.conf').write_text(text)
        yield tuple(f'--{name}-config-file={tmp_path / name}.conf' for name in files)
    finally:
        for schema in METADATA:
            labkit.db(f'DROP DATABASE IF EXISTS old_{schema}')
        labkit.db("DROP USER IF EXISTS old@'%%'")


def alive():
    """The copies of the services' signs of life do not age."""
    for cell in labkit.CELLS:
        labkit.db(f'UPDATE old_{cell}.services SET last_seen_up = UTC_TIMESTAMP() + INTERVAL 1 HOUR')
    labkit.db('UPDATE old_cinder.services SET updated_at = UTC_TIMESTAMP() + INTERVAL 1 HOUR')


def dump():
    return {t: labkit.db(f'SELECT * FROM old_{t} ORDER BY id') for t in (
        'cinder.volumes', 'cinder.volume_attachment', *(f'{cell}.block_device_mapping' for cell in labkit.CELLS))}


def test_reset_undo_and_repair(the_map, old):
    data = {key for key in the_map.nova if key[0] in RAN and key not in ROOTS}
    ids = {labkit.volume_id(volume) for _server, volume in data}
    before, real = dump(), labkit.dump_all()
    alive()
    result = labkit.drp('db', 'reset', str(MAP), *old, *APPROVED)
    run = result.err.split('run ', 1)[1].split()[0].rpartition('/')[2]
    states = {r['id']: r['status'] for r in labkit.db('SELECT id, status FROM old_cinder.volumes')}
    assert {states[i] for i in ids} == {'available'}
    mapped = {r['volume_id'] for cell in labkit.CELLS for r in labkit.db(
        f'SELECT volume_id FROM old_{cell}.block_device_mapping WHERE deleted = 0 AND volume_id IS NOT NULL')}
    assert not mapped & ids
    assert set(results('db', 'undo', run, *old, *APPROVED).values()) == {'done'}
    assert dump() == before

    labkit.db("UPDATE old_cinder.volumes SET status = 'available', attach_status = 'detached' WHERE deleted = 0 AND status = 'in-use'")
    alive()
    assert set(results('db', 'repair', *old, *APPROVED, '--volume', 'bfv1-root', '--volume', 'web1-data').values()) == {'done'}
    states = {r['id']: r['status'] for r in labkit.db('SELECT id, status FROM old_cinder.volumes')}
    assert states[labkit.volume_id('bfv1-root')] == states[labkit.volume_id('web1-data')] == 'in-use'

    labkit.db('ALTER TABLE old_nova_cell2.block_device_mapping CHANGE attachment_id attachment varchar(36)')
    before = dump()
    for command in ('repair',), ('reset', str(MAP)):
        result = labkit.drp('db', *command, *old, *APPROVED, check=False)
        assert result.rc == 4, result
        assert "cell 'cell2' has no block_device_mapping.attachment_id" in result.err and len(result.err.splitlines()) == 1
    assert dump() == before
    # and nothing of all that went to the lab's own databases
    assert labkit.diff_dumps(real, labkit.dump_all(), ('*.updated_at', *labkit.service_columns())) == []
