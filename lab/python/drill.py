"""Lose the power of the seeded cloud and recover it with `openstack drp recover`: as it is, then the literal procedure.

Judged by what nova, cinder and the hypervisors say afterwards, not by what osc-drp says. Exit status 0 only if every
attachment of the map is back both times, and nothing else changed.
"""
import shutil
import sys
import time

import labkit
import procedure
from procedure import APPROVED, MAP, RECOVER

WAYS = {'recover': RECOVER, 'recover --classic': (*RECOVER, '--classic')}


def say(text):
    print(time.strftime('%H:%M:%S'), text, flush=True)


def picture():
    """What must be the same before and after: both records, every volume and every server."""
    records = labkit.attachments()
    volumes = {name: (v['status'], v['multiattach']) for name, v in labkit.volumes().items()}
    servers = {name: (s['status'], s['power_state'], s['host'], s['locked']) for name, s in labkit.servers().items()}
    return records, volumes, servers


def lose_power():
    say('power loss: SIGKILL to every process')
    labkit.power_loss()
    say('power on: every host boots')
    labkit.power_on()


def run(step):
    """One command as the operator types it; its table goes to the screen."""
    shown = [a for a in step if a not in labkit.DATABASES]
    say(f'openstack drp {" ".join(shown)}')
    result = labkit.drp(*step, *APPROVED, '--max-width', '120', check=False, timeout=900)
    print(result.out + ('' if result.rc == 0 else result.err), end='', flush=True)
    return result.rc


def back(records, now, key):
    """Whether one attachment is on both records again, as it was."""
    if key not in now.nova or key not in now.cinder:
        return 'missing'
    same = procedure.signature(records)[key] == procedure.signature(now)[key]
    agree = now.nova[key]['attachment_id'] == now.cinder[key]['id']
    untouched = key not in procedure.ROOTS or now.nova[key] == records.nova[key]
    return 'back' if same and agree and untouched else 'differs'


def recover(way, before):
    """Lose the power, recover this way; what became of each attachment, and whether anything else changed."""
    lose_power()
    began = time.monotonic()
    code = run(WAYS[way])
    seconds = time.monotonic() - began
    now = picture()
    told = {key: back(before[0], now[0], key) for key in before[0].nova}
    procedure.witnessed(now[0])
    labkit.judged()
    return told, seconds, now[1:] == before[1:] and now[0].nova.keys() == told.keys() and code == 0


def main():
    began = time.monotonic()
    say('the cloud as seeded')
    labkit.restore_snapshot('seeded')
    MAP.parent.mkdir(parents=True, exist_ok=True)
    MAP.unlink(missing_ok=True)
    shutil.rmtree(procedure.RUNS, ignore_errors=True)
    labkit.wait_status(120, **dict.fromkeys(procedure.RAN, 'ACTIVE'))
    before = picture()
    say(f'openstack drp attachments save {MAP}')
    print(labkit.drp('attachments', 'save', str(MAP)).err, end='')
    told, minutes, clean = {}, {}, True
    for way in WAYS:
        told[way], seconds, same = recover(way, before)
        minutes[way] = seconds / 60
        clean = clean and same
    print(f'\n{"Server":8} {"Volume":15} {"Device":9} ' + ' '.join(f'{way:18}' for way in WAYS))
    for key, a in sorted(before[0].nova.items()):
        print(f'{key[0]:8} {key[1]:15} {a["device"]:9} ' + ' '.join(f'{told[way][key]:18}' for way in WAYS))
    good = True
    for way in WAYS:
        count = sum(t == 'back' for t in told[way].values())
        good = good and count == len(told[way])
        print(f'{way}: recovered {count} of {len(told[way])} in {minutes[way]:.1f} minutes')
    print('nothing else changed' if clean else 'SOMETHING ELSE CHANGED')
    print(f'{(time.monotonic() - began) / 60:.1f} minutes in all')
    return 0 if good and clean else 1


sys.exit(main())
