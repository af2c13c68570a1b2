"""`drp recover` on a cloud that really lost its power: undisturbed, killed, interrupted, and losing it again in the middle.

The disturbances are random; their seed is printed, and DRP_SEED=... repeats it. --long does twenty rounds.
"""
import datetime
import json
import os
import random
import signal
import subprocess

import labkit
import pytest
from procedure import APPROVED, OFF, RAN, ROOTS, RUNS, recovered, rows, starts, true, twice
import procedure

#: nova looks at its guests each 10 s here, so that is soon settled.
SETTLE = ('--settle', '12')
RECOVER = (*procedure.RECOVER, *SETTLE)
MODES = {'default': (), 'classic': ('--classic',)}
#: A server whose user locked it, and one of whom an administrator did, before the loss.
LOCKED = {'db1': 'lab-blue', 'far2': 'lab'}


@pytest.fixture
def lost_and_locked(lost):
    """The cloud after its loss; foreign locks on two servers."""
    for server, cloud in LOCKED.items():
        assert labkit.act(server, 'lock', {'locked_reason': 'hands off'}, cloud=cloud, microversion='2.73').status == 202


def locks():
    """{server: reason} of all that are locked."""
    servers = labkit.api('nova', 'GET', '/servers/detail?all_tenants=1', microversion='2.90').json['servers']
    return {s['name']: s['locked_reason'] for s in servers if s['locked']}


def the_end(before, classic):
    """The same end as of every other recovery; the locks of others are kept, and ours are gone."""
    records = labkit.attachments()
    recovered(before, records)
    for key in records.nova:
        again = classic and key not in ROOTS and key[0] not in OFF
        assert (records.nova[key]['attachment_id'] != before.nova[key]['attachment_id']) == again, key
    assert twice() == []
    assert locks() == dict.fromkeys(LOCKED, 'hands off')
    labkit.judged()


def journals():
    """{run: its journal's entries}."""
    return {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(RUNS.glob('*/journal.jsonl'))}


@pytest.mark.parametrize('mode', MODES)
def test_recover(the_map, lost_and_locked, mode):
    """One command; the second one has nothing to do."""
    since = procedure.now()
    told = rows(*RECOVER, *MODES[mode], *APPROVED)
    true(told)
    assert {r['Server'] for r in told if (r['Step'], r['Result']) == ('start', 'done')} == set(RAN)
    the_end(the_map, mode == 'classic')
    assert {s: starts(s, since) for s in (*RAN, *OFF)} == {**{s: ['start'] for s in RAN}, **{s: [] for s in OFF}}
    [entries] = journals().values()
    assert (entries[0]['event'], entries[-1]['event']) == ('begin', 'end')

    with labkit.requests('nova') as sent:
        told = rows(*RECOVER, *APPROVED)
    assert {r['Result'] for r in told} <= {'ok', 'left'}
    assert [r for r in sent if r[0] != 'GET'] == []
    the_end(the_map, mode == 'classic')


# ---- disturbed


def begin(*args, point=None):
    """Start a recovery: of killed.py if it is to die at a point."""
    program = [str(labkit.LAB / 'tests/killed.py'), point] if point else ['-m', 'openstackclient.shell']
    return subprocess.Popen(
        [f'{labkit.LAB_HOME}/client/bin/python', *program, 'drp', *args], env=labkit.client_env(), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process, seconds=600):
    """Its exit status, standard output and error; kept where the end looks for secrets."""
    out, err = process.communicate(timeout=seconds)
    labkit.OUT.mkdir(parents=True, exist_ok=True)
    with open(labkit.OUT / 'recover.txt', 'a') as f:
        f.write(f'$ {process.args}\n# {process.returncode}\n{out}{err}\n')
    return process.returncode, out, err


def until_journal(process, entries):
    """Wait until the newest run has so many entries more than now, or the process is over."""
    def count():
        return sum(len(e) for e in journals().values())
    there = count()
    labkit.wait_until(lambda: count() >= there + entries or process.poll() is not None, 200, f'{entries} entries', every=0.05)


def a_point(dice):
    """Somewhere to die: after a journal entry, before or after a request or a commit."""
    return '{}:{}'.format(*dice.choice([('journal', dice.randint(2, 24)), ('post-before', dice.randint(1, 6)),
                                        ('post-after', dice.randint(1, 6)), ('commit-after', dice.randint(1, 12))]))


class Disturbed:
    """Three kills and a second power loss in random order, each in a run of the same command."""

    def __init__(self, dice, mode):
        self._dice = dice
        self._command = (*RECOVER, *MODES[mode], *APPROVED, '-f', 'json')
        #: What was done, and how the run ended: for who has to look into a failure.
        self.said = []
        self.began, self.lost_again = procedure.now(), None
        disturbances = [self._point, self._point, self._any_time, self._loss]
        dice.shuffle(disturbances)
        for disturb in disturbances:
            what, (code, out, err) = disturb()
            self.said.append((what, code))
            print(what, code, flush=True)
            # -9, or the run was over before its end came, or it saw the power go
            assert code in (-signal.SIGKILL, 0, 1, 3, 4) and 'Traceback' not in err, (self.said, err)
            # who was killed while it printed its table told half of it
            if code >= 0 and out and disturb != self._loss:
                true(json.loads(out))

    def _point(self):
        point = a_point(self._dice)
        return point, ended(begin(*self._command, point=point))

    def _any_time(self):
        seconds = self._dice.uniform(2, 30)
        process = begin(*self._command)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return f'after {seconds:.1f} s', ended(process)

    def _loss(self):
        entries, dies = self._dice.randint(1, 24), self._dice.random() < 0.5
        process = begin(*self._command)
        until_journal(process, entries)
        labkit.power_loss()
        self.lost_again = now()
        # the operator's machine goes with the rest, or it stays and sees what it sees
        if dies:
            process.kill()
        end = ended(process)
        labkit.power_on()
        return f'power loss after {entries} entries{" and the operator" if dies else ""}', end

    def finish(self):
        """The same command until it is done: once, or twice if the first has to leave something for later."""
        for _more in range(2):
            code, out, err = ended(begin(*self._command))
            self.said.append(('to the end', code))
            assert code in (0, 3), (self.said, err)
            true(json.loads(out))
            if code == 0:
                return
        raise AssertionError((self.said, err))

    def starts(self):
        """{server: how often it was started before the second loss, and since}."""
        times = {s: [a['start_time'] for a in labkit.actions(s) if a['action'] in ('start', 'reboot')] for s in RAN}
        return {s: (sum(self.began < t <= self.lost_again for t in when), sum(t > self.lost_again for t in when))
                for s, when in times.items()}


def now():
    """The cloud's clock, which is this machine's, while the cloud is off."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat()


def pytest_generate_tests(metafunc):
    """A round in each mode, or twenty: test_killed_and_lost_again[classic-SEED]."""
    if 'seed' in metafunc.fixturenames:
        seed = int(os.environ.get('DRP_SEED') or random.randrange(10 ** 6))
        modes = list(MODES) * (10 if metafunc.config.getoption('--long') else 1)
        metafunc.parametrize(('mode', 'seed'), [(mode, seed + n) for n, mode in enumerate(modes)])


def test_killed_and_lost_again(the_map, lost_and_locked, mode, seed):
    """Nothing twice without need, nothing lost, and the same end."""
    run = Disturbed(random.Random(seed), mode)
    run.finish()
    assert all(before <= 1 and after <= 1 for before, after in run.starts().values()), (run.said, run.starts())
    the_end(the_map, mode == 'classic')
    # more than one where a run was done before its end came
    assert all('end' in [e['event'] for e in entries[-2:]] for entries in journals().values()), run.said


@pytest.mark.parametrize('number, mode', [(signal.SIGINT, 'default'), (signal.SIGTERM, 'classic')], ids=['ctrl-c', 'sigterm'])
def test_interrupted(the_map, lost_and_locked, number, mode):
    """What is under way is finished, our locks go, and it says how to go on."""
    since = procedure.now()
    process = begin(*RECOVER, *MODES[mode], *APPROVED)
    labkit.wait_until(lambda: 'sent' in [e['event'] for entries in journals().values() for e in entries], 200, 'the first start')
    process.send_signal(number)
    code, _out, err = ended(process)
    [run] = journals()
    assert code == 130 and f' drp recover --resume {run} ' in err, (code, err)
    assert locks() == dict.fromkeys(LOCKED, 'hands off')
    states, begun = labkit.servers(), {s for s in RAN if starts(s, since)}
    assert begun and {(states[s]['status'], states[s]['task_state']) for s in begun} == {('ACTIVE', None)}

    told = rows('recover', '--resume', run, *procedure.OPTIONS, *SETTLE, *APPROVED)
    true(told)
    assert {s: starts(s, since) for s in RAN} == {s: ['start'] for s in RAN}
    the_end(the_map, mode == 'classic')
    assert [entries[-1]['event'] for entries in journals().values()] == ['end']
