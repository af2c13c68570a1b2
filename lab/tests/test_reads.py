"""Reads and dry runs write nothing; parts of the cloud that are down make errors, never short answers."""
import json

import labkit
import pytest
from procedure import MAP, RAN, RESET, RESTART, RESTORE, all_off, results, rows


@pytest.fixture(scope='module', autouse=True)
def off(the_map):
    labkit.restore_snapshot('lost')
    all_off()


def content(path):
    """A map without what may differ between two of the same cloud."""
    with open(path) as f:
        m = json.load(f)
    for server in m['servers']:
        del server['vm_state'], server['power_state']
    return {k: m[k] for k in ('counts', 'servers', 'attachments')}


@pytest.mark.parametrize('command', [RESET, RESTART, RESTORE], ids=lambda c: ' '.join(c[:2]))
def test_dry_run_writes_nothing(command):
    with labkit.statements() as sent, labkit.requests('nova') as nova, labkit.requests('cinder') as cinder:
        rows(*command, '--dry-run')
    writing = ('UPDATE', 'INSERT', 'DELETE', 'REPLACE', 'LOCK', 'ALTER', 'DROP', 'CREATE')
    assert [s for s in sent if s.lstrip().upper().startswith(writing) or 'FOR UPDATE' in s.upper()] == []
    assert bool(sent) == (command is RESET)
    assert {method for method, _p, _s in nova + cinder} <= {'GET'}
    assert bool(nova) == (command is not RESET)


def test_dry_run_shows_what_would_be_done():
    assert {r['Result'] for r in rows(*RESET, '--dry-run')} == {'would reset', 'left'}
    told = results(*RESTART, '--dry-run')
    assert {n for (n, _v), r in told.items() if r == 'would start'} == set(RAN)
    assert set(results(*RESTORE, '--dry-run').values()) == {'ok', 'left'}


def test_save_is_a_read_and_repeatable(tmp_path):
    with labkit.requests('nova') as nova, labkit.requests('cinder') as cinder:
        labkit.drp('attachments', 'save', str(tmp_path / 'map'))
    assert {method for method, _p, _s in nova + cinder} == {'GET'}
    with_volumes = 10
    assert len([p for _m, p, _s in nova if '/os-volume_attachments' in p]) == with_volumes
    # and a constant number besides, however large the cloud (until its listings need a second page)
    assert len(nova) + len(cinder) <= with_volumes + 30, nova + cinder
    assert content(tmp_path / 'map') == content(MAP)


def test_a_users_pinned_version_changes_nothing(tmp_path):
    labkit.drp('attachments', 'save', str(tmp_path / 'map'),
               env={'OS_COMPUTE_API_VERSION': '2.1', 'OS_VOLUME_API_VERSION': '3.0'})
    assert content(tmp_path / 'map') == content(MAP)


def test_small_pages_lose_nothing(tmp_path):
    try:
        labkit.lab('restart', 'nova-api', 'cinder-api', LAB_MAX_LIMIT='5')
        labkit.drp('attachments', 'save', str(tmp_path / 'map'))
        assert {n for (n, _v), r in results(*RESTART, '--dry-run').items() if r == 'would start'} == set(RAN)
    finally:
        labkit.lab('restart', 'nova-api', 'cinder-api')
    assert content(tmp_path / 'map') == content(MAP)


def test_keystone_down(tmp_path):
    labkit.lab('stop', 'keystone')
    try:
        assert len(rows('attachments', 'show', str(MAP))) == 15
        assert {r['Result'] for r in rows(*RESET, '--dry-run')} == {'would reset', 'left'}
        result = labkit.drp('attachments', 'save', str(tmp_path / 'map'), check=False)
        assert result.rc == 1 and result.err.count('\n') == 1 and 'keystone' in result.err.lower(), result
        for command in (RESTART, RESTORE):
            result = labkit.drp(*command, '--wait', '3', check=False)
            assert result.rc == 4 and 'not ready after 3 s: keystone at ' in result.err and result.out == '', result
    finally:
        labkit.lab('start', 'keystone')
    assert not (tmp_path / 'map').exists()


def test_one_cell_down(tmp_path):
    """A cell whose database refuses is an error by every way, never a short map."""
    where = "name = 'cell2'"
    [old] = labkit.db(f'SELECT database_connection c FROM nova_api.cell_mappings WHERE {where}')
    labkit.db(f'UPDATE nova_api.cell_mappings SET database_connection = %s WHERE {where}',
              'mysql+pymysql://nobody:x@127.0.0.1:1/nova_cell2')
    try:
        labkit.lab('restart', 'nova-api')
        result = labkit.drp('attachments', 'save', str(tmp_path / 'map'), check=False, timeout=400)
        assert result.rc == 1 and 'cell' in result.err, result
        assert not (tmp_path / 'map').exists() and list(tmp_path.iterdir()) == []
        for command in (RESTART, RESTORE):
            result = labkit.drp(*command, '--dry-run', '--wait', '3', check=False, timeout=400)
            assert result.rc == 4 and 'the database of a cell' in result.err and result.out == '', result
        result = labkit.drp(*RESET, '--dry-run', check=False)
        assert result.rc == 1 and 'cell2' in result.err and result.out == '', result
    finally:
        labkit.db(f'UPDATE nova_api.cell_mappings SET database_connection = %s WHERE {where}', old['c'])
        labkit.lab('restart', 'nova-api')


def test_debug_shows_no_secret(tmp_path):
    """Not the planted ones, not the databases' password, not a token: --debug included."""
    for command in (('attachments', 'save', str(tmp_path / 'map')), (*RESET, '--dry-run'), (*RESTART, '--dry-run'),
                    (*RESTORE, '--dry-run')):
        result = labkit.openstack('--debug', 'drp', *command)
        assert 'DEBUG' in result.err or 'REQ' in result.err or len(result.err) > 500
        assert 'gAAAA' not in result.out + result.err                  # a fernet token
    assert labkit.leaks(labkit.OUT, tmp_path) == []
