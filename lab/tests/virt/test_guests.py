"""`drp guests reboot` on real guests: who lets us in is rebooted from the inside, once; of the others it is said why not."""
import guests
from guests import OFF, RAN, REAL
import labkit
import procedure
from procedure import APPROVED


def test_reboot(running, tmp_path):
    """bfv1 obeys. cl1 has the host key of another, web1 wants a password for sudo: neither is touched, and no one waits."""
    ids = {name: labkit.server_id(name) for name in RAN}
    config = tmp_path / 'ssh_config'
    config.write_text(f'Host {ids["web1"]}\n    User careful\nHost {ids["cl1"]}\n    HostKeyAlias {ids["web1"]}\n'
                      + (labkit.ETC / 'ssh_config').read_text())
    before, boot_ids = guests.picture(), {name: guests.boot_id(name) for name in REAL}
    since = {name: labkit.actions(name) for name in RAN}
    known_hosts = (labkit.ETC / 'ssh_known_hosts').read_text()

    servers = [word for name in (*RAN, *OFF) for word in ('--server', name)]
    rows = procedure.rows('guests', 'reboot', *servers, '--ssh-config', str(config), *APPROVED, rc=3)
    told = {row['Server']: (row['Result'], row['Reason']) for row in rows}
    assert told['bfv1'][0] == 'done' and told['bfv1'][1].startswith('rebooted, back after'), told
    for name, result, reason in (
        ('cl1', 'open', 'its host key is not the one in known_hosts'),
        ('web1', 'open', 'its sudo asks for a password, and nobody is there to answer'),
        ('cl2', 'open', 'nova knows no address of it'),
        ('far1', 'open', 'nova knows no address of it'),
        ('off1', 'left', ''),
    ):
        assert told[name][0] == result and reason in told[name][1], (name, told)

    guests.survived(before, booted={'bfv1': 1})
    after = {name: guests.boot_id(name) for name in REAL}
    assert {name for name in REAL if after[name] != boot_ids[name]} == {'bfv1'}
    assert {name: labkit.actions(name) for name in RAN} == since                # nova was not asked
    assert (labkit.ETC / 'ssh_known_hosts').read_text() == known_hosts
