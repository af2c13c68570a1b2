"""A power loss of real guests, and the procedure: every line that a guest was told to be safe is there afterwards."""
import guests
from guests import OFF, RAN, REAL, ROOTS
import labkit
import procedure
from procedure import APPROVED, MAP, RESET, RESTART, RESTORE, results

SSH = ('--ssh-config', str(labkit.ETC / 'ssh_config'))
RECOVER = ('recover', str(MAP), *labkit.DATABASES, *SSH, *APPROVED, '--console-after', '45')
#: Servers of the fake hypervisor: nobody answers there.
DEAF = set(RAN) - set(REAL)


def data_pairs(records):
    return {key for key in records.nova if key[0] in RAN and key not in ROOTS}


def steps(*args, rc):
    """What recover did: {step: {server: {results}}}."""
    found = {}
    for row in procedure.rows(*args, rc=rc, timeout=1200):
        found.setdefault(row['Step'], {}).setdefault(row['Server'], set()).add(row['Result'])
    return found


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
    unsynced.write_text('written, not synced')
    records = guests.lose_power()
    assert not unsynced.exists(), 'the power loss forgets what was not synced'

    did = steps(*RECOVER, rc=0)
    assert {name for name, result in did['start'].items() if result == {'done'}} == set(RAN), did
    guests.survived(before, booted=1)
    started_once(since)
    assert labkit.attachments() == records                      # the very same attachments
    assert set(results(*RESTORE, *APPROVED).values()) == {'ok'}


def test_recover_classic(running):
    """All five steps: guests whose volumes came after their boot are rebooted from the inside, once; the deaf are named."""
    before, since = guests.picture(), procedure.now()
    records = guests.lose_power()

    did = steps(*RECOVER, '--classic', rc=3)
    assert {name for name, result in did['start'].items() if result == {'done'}} == set(RAN), did
    assert {name for name, result in did['attach'].items() if 'done' in result} == {s for s, _v in data_pairs(records)}, did
    assert {name: result for name, result in did['guest'].items() if name in RAN} == {
        **{name: {'done'} for name in REAL}, **{name: {'open'} for name in DEAF}}
    guests.survived(before, booted=2)
    started_once(since)
    attached_again(records)


def test_by_hand(running):
    """The same, a command for each step; the guests go on writing to volumes that are plugged in while they run."""
    before, since = guests.picture(), procedure.now()
    records = guests.lose_power()
    labkit.wait_status(120, **dict.fromkeys(RAN, 'SHUTOFF'))
    ids = {volume: labkit.volume_id(volume) for _server, volume in records.nova}
    pairs = {(server, ids[volume]) for server, volume in data_pairs(records)}

    told = results(*RESET, *APPROVED)
    assert {key for key, result in told.items() if result == 'done'} == pairs
    labkit.judged()
    assert set(results(*RESTART, *APPROVED, timeout=900).values()) == {'done', 'left'}
    told = results(*RESTORE, *APPROVED, timeout=900)
    assert {key for key, result in told.items() if result == 'done'} == pairs
    guests.survived(before, booted=1)

    before = guests.picture()
    only = [word for name in REAL for word in ('--server', name)]
    reboot = ('guests', 'reboot', str(MAP), *only, *SSH, *APPROVED)
    assert results(*reboot, timeout=900) == {(name, ''): 'done' for name in REAL}
    guests.survived(before, booted=1)
    started_once(since)
    attached_again(records)
