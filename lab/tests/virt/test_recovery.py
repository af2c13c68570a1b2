"""A power loss of real guests, and the procedure: every line that a guest was told to be safe is there afterwards."""
import guests
from guests import OFF, RAN, ROOTS
import labkit
import procedure
from procedure import APPROVED, RESET, RESTART, RESTORE, results


def test_light_way(running):
    """A loss and nothing else: the restart brings each guest back with its disks; it booted once."""
    before, since = guests.picture(), procedure.now()
    unsynced = labkit.LAB_HOME / 'san/unsynced'
    unsynced.write_text('written, not synced')
    records = guests.lose_power()
    assert not unsynced.exists(), 'the power loss forgets what was not synced'

    told = results(*RESTART, *APPROVED, timeout=900)
    assert told == {**{(name, ''): 'done' for name in RAN}, **{(name, ''): 'left' for name in OFF}}
    guests.survived(before, booted=1)
    assert {name: procedure.starts(name, since) for name in (*RAN, *OFF)} == {
        **{name: ['start'] for name in RAN}, **{name: [] for name in OFF}}
    assert labkit.attachments() == records                      # the very same attachments
    assert set(results(*RESTORE, *APPROVED).values()) == {'ok'}  # nothing to attach


def test_literal_procedure(running):
    """Reset, restart, restore: the volumes are plugged into running guests, which go on writing where they ended."""
    before, since = guests.picture(), procedure.now()
    records = guests.lose_power()
    labkit.wait_status(120, **dict.fromkeys(RAN, 'SHUTOFF'))
    taken = {key for key in records.nova if key[0] in RAN and key not in ROOTS}

    told = results(*RESET, *APPROVED)
    ids = {volume: labkit.volume_id(volume) for _server, volume in records.nova}
    assert {key for key, result in told.items() if result == 'done'} == {(s, ids[v]) for s, v in taken}
    labkit.judged()
    assert set(results(*RESTART, *APPROVED, timeout=900).values()) == {'done', 'left'}
    told = results(*RESTORE, *APPROVED, timeout=900)
    assert {key for key, result in told.items() if result == 'done'} == {(s, ids[v]) for s, v in taken}

    guests.survived(before, booted=1)
    assert {name: procedure.starts(name, since) for name in RAN} == {name: ['start'] for name in RAN}
    after = labkit.attachments()
    procedure.agree(after)
    assert procedure.signature(after) == procedure.signature(records)
    assert {key: after.nova[key] for key in ROOTS} == {key: records.nova[key] for key in ROOTS}
