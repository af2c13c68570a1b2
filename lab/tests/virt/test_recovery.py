"""A power loss of real guests, and the procedure: every line that a guest was told to be safe is there afterwards."""
import re

import guests
from guests import OFF, RAN, REAL, ROOTS
import labkit
import procedure
from procedure import APPROVED, MAP, RESTORE, results

SSH = ('--ssh-config', str(labkit.ETC / 'ssh_config'))
RECOVER = ('recover', str(MAP), *labkit.DATABASES, *SSH, *APPROVED)
#: Servers of the fake hypervisor: nobody answers there.
DEAF = set(RAN) - set(REAL)
#: What the end of a console tells of a guest that wants a disk that it has not.
HANGS = re.compile(r'it (waits in the emergency shell|waits for something to start|waited for a disk) \(console: "')


def data_pairs(records):
    return {key for key in records.nova if key[0] in RAN and key not in ROOTS}


def steps(*args, rc):
    """What recover did: {step: {server: {result: reason}}}."""
    found = {}
    for row in procedure.rows(*args, rc=rc, timeout=1200):
        found.setdefault(row['Step'], {}).setdefault(row['Server'], {})[row['Result']] = row['Reason']
    return found


def of(step, result):
    """The servers of which a step says this and nothing else."""
    return {server for server, told in step.items() if told.keys() == {result}}


def started_once(since):
    """Each server that ran was started once since, by nova; who was off was not."""
    assert {name: procedure.starts(name, since) for name in (*RAN, *OFF)} == {
        **{name: ['start'] for name in RAN}, **{name: [] for name in OFF}}


def attached_again(records):
    """Every attachment is back where it was, the same on both sides; the root's was never touched."""
    after = labkit.attachments()
    procedure.agree(after)
    assert procedure.signature(after) == procedure.signature(records)
    assert {key: after.nova[key] for key in ROOTS} == {key: records.nova[key] for key in ROOTS}


def test_recover(running):
    """A loss and nothing else: each guest boots once, with its disks; nothing is attached, no guest rebooted."""
    before, since = guests.picture(), procedure.now()
    unsynced = labkit.LAB_HOME / 'san/unsynced'
    unsynced.unlink(missing_ok=True)
    unsynced.write_text('written, not synced')
    records = guests.lose_power()
    # its name may be there: ext4 commits its journal each 5 s, and whenever a guest's file grows and is synced
    assert not unsynced.exists() or unsynced.read_text() == '', 'the power loss forgets what was not synced'

    did = steps(*RECOVER, '--console-after', '30', rc=0)
    assert of(did['start'], 'done') == set(RAN), did
    guests.survived(before, booted=1)
    started_once(since)
    assert labkit.attachments() == records                      # the very same attachments
    assert set(results(*RESTORE, *APPROVED).values()) == {'ok'}


def test_recover_classic_and_a_guest_that_hangs(running):
    """All five steps: guests whose volumes came after their boot are rebooted from the inside, once; the deaf are named.

    web1's owner has detached web1-log and left it in /etc/fstab, without nofail: its boot hangs, which is told with its console's
    words, and keeps nobody waiting. When the disk comes the boot goes on.
    """
    before, since = guests.picture(), procedure.now()
    log = labkit.volume_id('web1-log')[:20]
    guests.ssh('web1', f"sed -i '/{log}/s/nofail/x-systemd.device-timeout=40/' /etc/fstab && sync")
    assert labkit.detach('web1', 'web1-log').status == 202
    labkit.wait_volume(90, web1_log='available')                # nova asks a busy guest again after 20 s
    records = guests.lose_power()

    did = steps(*RECOVER, '--classic', '--console-after', '60', rc=3)
    assert of(did['start'], 'done') == set(RAN) - {'web1'}, did
    assert {name for name, told in did['attach'].items() if 'done' in told} == {s for s, _v in data_pairs(records)}, did
    assert of(did['guest'], 'done') == set(REAL) - {'web1'}, did
    assert of(did['guest'], 'open') & set(RAN) == {*DEAF, 'web1'}, did
    for step in ('start', 'guest'):
        assert HANGS.search(did[step]['web1']['open']), did
    started_once(since)
    attached_again(records)
    assert not guests.answers('web1')

    assert labkit.act('web1', 'reboot', {'type': 'HARD'}).status == 202
    labkit.wait_status(60, web1='ACTIVE')
    labkit.wait_until(lambda: 'A start job is running for' in guests.console('web1'), guests.BOOT, 'the guest waits', every=1)
    assert labkit.attach('web1', 'web1-log').status == 200
    guests.survived(before, booted=2)
    assert 'emergency' not in guests.console('web1')
    guests.ssh('web1', f"sed -i '/{log}/s/x-systemd.device-timeout=40/nofail/' /etc/fstab && sync")
