"""What the tests on real guests share: the seed of the libvirt stage, its guests by SSH, and the loss of power."""
import json

import labkit
from procedure import MAP

#: The servers that ran before the loss; those of them that are real guests; the one that its user had switched off.
RAN = ('bfv1', 'cl1', 'cl2', 'far1', 'web1')
REAL = ('bfv1', 'cl1', 'web1')
OFF = ('off1',)
ROOTS = {('bfv1', 'bfv1-root')}
#: The volumes that a guest writes to.
WRITES = {'bfv1': {'bfv1-data'}, 'cl1': {'cluster-shared'}, 'web1': {'web1-data', 'web1-log'}}
#: Seconds for a guest to boot, emulated, on a machine that does other things as well.
BOOT = 180


def ssh(server, command, check=True, timeout=60):
    """Run a command in a guest, as its root."""
    return labkit.lab('guest-ssh', server, command, check=check, timeout=timeout)


def boots(server):
    """How often the guest has booted, by its own count."""
    return int(ssh(server, 'cat /var/lib/guest/boots').out)


def boot_id(server):
    return ssh(server, 'cat /proc/sys/kernel/random/boot_id').out.strip()


def answers(server):
    return ssh(server, 'true', check=False).rc == 0


def console(server):
    """What the guest told on its console since its newest start."""
    path = labkit.LAB_HOME / f'var/compute1/instances/{labkit.server_id(server)}/console.log'
    return path.read_text(errors='replace')


def lines(server):
    """{volume: {acknowledged, there, missing}} of a guest; a volume is a name."""
    result = labkit.lab('guest-lines', server, check=False)
    assert result.rc in (0, 1) and result.out, result
    names = {v['id']: name for name, v in labkit.volumes().items()}
    return {names[volume]: told for volume, told in json.loads(result.out).items()}


def writing(server):
    """Every volume of the guest is mounted and its newest line acknowledged; nothing acknowledged is missing."""
    told = lines(server)
    assert all(v['missing'] == [] for v in told.values() if v['there'] is not None), told
    return told.keys() == WRITES[server] and all(v['there'] for v in told.values())


def picture():
    """Before a loss: how often each guest booted, and what it was told to be safe on each volume."""
    return {server: (boots(server), {name: v['acknowledged'] for name, v in lines(server).items()}) for server in REAL}


def all_run(seconds=BOOT):
    """Wait until everything that ran before runs again, with its guests answering and writing to all their volumes."""
    labkit.wait_status(seconds, **dict.fromkeys(RAN, 'ACTIVE'))
    for server in REAL:
        labkit.wait_until(lambda server=server: answers(server), seconds, f'{server} answers', every=2)
        labkit.wait_until(lambda server=server: writing(server), 60, f'{server} writes to {WRITES[server]}', every=2)


def healthy():
    """Whether all is as seeded: what a test before this one left, if it passed."""
    states = labkit.servers()
    wanted = {**dict.fromkeys(RAN, 'ACTIVE'), **dict.fromkeys(OFF, 'SHUTOFF')}
    return ({name: s['status'] for name, s in states.items()} == wanted
            and {('web1', 'web1-log'), ('web1', 'web1-data'), *ROOTS} <= labkit.attachments().cinder.keys()
            and all(answers(server) and writing(server) for server in REAL))


def back_to_seeded():
    """As seeded, and running: for libvirt a snapshot's guests are off."""
    labkit.restore_snapshot('lost', cold=True)
    labkit.lab('ssh-config')
    labkit.wait_status(120, **dict.fromkeys((*RAN, *OFF), 'SHUTOFF'))
    for server in RAN:
        assert labkit.act(server, 'os-start').status == 202
    all_run()


def lose_power():
    """Lose it, and save the map as an operator should: the power is back, nova-compute not yet. Gives both records of then."""
    labkit.power_loss()
    labkit.power_on(without=('nova-compute1', 'nova-compute2'))
    MAP.unlink(missing_ok=True)
    labkit.drp('attachments', 'save', str(MAP))
    records = labkit.attachments()
    labkit.lab('start', 'nova-compute1', 'nova-compute2')
    return records


def survived(before, booted):
    """Every guest answers, has every line that it acknowledged before the loss, and was booted exactly so often since.

    :param booted: a number for all of them, or a number by server (0 for who is not named)
    """
    all_run()

    def goes_on(server):
        told = lines(server)
        assert told.keys() == before[server][1].keys()
        for name, v in told.items():
            assert v['acknowledged'] >= before[server][1][name], 'what was acknowledged is still known'
            assert v['missing'] == [], (server, name, v)
        return all(v['acknowledged'] > before[server][1][name] for name, v in told.items())

    for server, (count, _acknowledged) in before.items():
        # SSH and the workload begin at the same time, and a volume may have got no line between the picture and the loss
        labkit.wait_until(lambda server=server: goes_on(server), 60, f'{server} goes on with all its volumes', every=2)
        assert boots(server) == count + (booted if isinstance(booted, int) else booted.get(server, 0)), server
    states = labkit.servers()
    assert {name: states[name]['status'] for name in OFF} == dict.fromkeys(OFF, 'SHUTOFF')
