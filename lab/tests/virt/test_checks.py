"""What osc-drp finds in real guests and on their host: each finding with its evidence and the fix, and nothing is changed."""
import compute
import guests
from guests import OFF, REAL
import labkit
import procedure

SSH = ('--ssh-config', str(labkit.ETC / 'ssh_config'))
SERVERS = tuple(word for name in (*REAL, *OFF) for word in ('--server', name))
GOOD = [('', 'good', '', '')]
OFF_GUESTS = {name: [('', 'left', 'the server is stopped', '')] for name in OFF}


def told(*args, rc):
    """A check's rows by the machine's name: [(check, verdict, evidence, fix)]."""
    found = {}
    for row in procedure.rows(*args, rc=rc):
        name = row['Server'] if 'Server' in row else row['Host']
        found.setdefault(name, []).append(tuple(row[c] for c in ('Check', 'Verdict', 'Evidence', 'Fix')))
    return found


def state(server):
    """Every file of the guest's root disk with its checksum and times, its mounts and its boot."""
    return guests.ssh(server, 'cat /proc/sys/kernel/random/boot_id /proc/mounts; find / -xdev -type f | sort |'
                              ' while read -r f; do stat -c "%n %s %a %U %Y %Z" "$f"; done;'
                              ' find /etc /home /root /var -xdev -type f -exec md5sum {} +').out


def test_guests_check(running):
    """The guests of the lab follow the advice; one that does not is told so."""
    before = state('web1')
    check = ('guests', 'check', *SERVERS, *SSH)
    assert told(*check, rc=0) == {**{name: GOOD for name in REAL}, **OFF_GUESTS}
    assert state('web1') == before

    data = f'/vol/{labkit.volume_id("web1-data")[:20]}'
    entry = '/dev/vdc /srv ext4 defaults'
    guests.ssh('web1', f'cp -p /etc/fstab /etc/fstab.kept && echo "{entry} 0 2" >> /etc/fstab &&'
                       f' until mount -o remount,ro {data}; do sleep 0.2; done')         # busy while a line is written
    try:
        before = state('web1')
        found = told(*check, rc=3)
        assert state('web1') == before
        assert found.pop('web1') == [
            ('errors=', 'bad', f'"{entry}": writes go on after an I/O error',
             'add errors=remount-ro in /etc/fstab (or see that "tune2fs -l" says: Errors behavior: Remount read-only)'),
            ('nofail', 'bad', f'"{entry}": without its disk the guest does not boot', 'add nofail in /etc/fstab'),
            ('device names', 'bad', f'"{entry}": device names change from boot to boot',
             'UUID=... instead, in /etc/fstab (lsblk -o +UUID)'),
            ('read-only', 'bad', f'{data} (/dev/vdb) is mounted read-only',
             'see dmesg for I/O errors; once its disk is well: umount, fsck, mount'),
        ]
        assert found == {**{name: GOOD for name in REAL if name != 'web1'}, **OFF_GUESTS}
    finally:
        guests.ssh('web1', f'mv /etc/fstab.kept /etc/fstab && mount -o remount,rw {data}')
    assert told('guests', 'check', '--server', 'web1', *SSH, rc=0) == {'web1': GOOD}


def test_hosts_check_and_iscsi(running, tmp_path):
    """compute1 as it is, then with a disk of a SAN in its fstab; compute2 has no sshd. Nobody logs out of what is not there."""
    fstab = tmp_path / 'fstab'
    fstab.write_text('# compute1\n')
    with compute.sshd(tmp_path, fstab) as ssh:
        found = told('hosts', 'check', *ssh, rc=3)
        assert found == {'compute1': GOOD, 'lab': GOOD,
                         'compute2': [('ssh', 'unknown', 'compute2: it refuses the connection', '')]}

        entry = '/dev/disk/by-path/ip-10.0.0.9:3260-iscsi-iqn.2001-05.com.example:san-lun-0 /srv xfs defaults'
        fstab.write_text(f'{entry} 0 2\n')
        found = told('hosts', 'check', '--host', 'compute1', *ssh, rc=3)
        assert found['compute1'] == [('SAN in fstab', 'bad', f'"{entry}": a disk of the SAN; the host may hang at its boot',
                                      'take it out of /etc/fstab, or add noauto')]
        assert fstab.read_text() == f'{entry} 0 2\n'

        assert labkit.drp_json('iscsi', 'list', '--host', 'compute1', *ssh) == []
        logout = ('iscsi', 'logout', '--host', 'compute1', '--server', 'web1', '--even-if-running', '--auto-approve', *ssh)
        result = labkit.drp(*logout, '--session', '15', check=False)
        assert result.rc == 4 and 'compute1 has no session 15' in result.err, result
        assert labkit.drp(*logout, '--session', 'all', check=False).rc == 2
    assert guests.writing('web1')
