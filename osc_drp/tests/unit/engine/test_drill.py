# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""A drill's verdict, with a guest in memory."""

import json
import pathlib
import stat
import types

import fixtures
import testtools

from osc_drp import exceptions
from osc_drp.engine import drill
from osc_drp.engine import journal
from osc_drp.hosts import samples
from osc_drp.tests.unit.engine import build
from osc_drp.tests.unit.engine import fakes

PATH = '/data/caf\udce9\r'


class Sampler:
    """Finds all as it was in another boot, or does not get in."""

    def __init__(self, why=None, lost=False):
        self.why = why
        self.boot = '1'
        self.lost = lost

    def take(self):
        return samples.Sample(self.boot, {}, {PATH: (1, 'x')})

    def compare(self, before):
        if self.why:
            raise exceptions.SshError(self.why)
        gone = (PATH,) if self.lost else ()
        return (
            samples.Sample(self.boot, {}, before.files),
            samples.Losses(1 - len(gone), gone, ()),
        )


class TestCarryOut(testtools.TestCase):
    """Sample, cut, recover, compare."""

    def drill(self, sampler, boot='2'):
        def recover(run):
            sampler.boot = boot
            return drill.Recovered(True, 'start: started')

        path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.run_ = journal.Run(path)
        self.addCleanup(self.run_.close)
        cut = types.SimpleNamespace(prove=lambda: ['x'], cut=lambda: None)
        job = drill.Drill(
            build.running('s1'),
            sampler,
            [cut],
            recover,
            lambda words: None,
            wait=60,
            clock=fakes.Clock(),
        )
        return job.carry_out(self.run_, samples.Sample.of_json)

    def outcome(self):
        return self.run_.entries()[-1]

    def test_well(self):
        well, rows = self.drill(Sampler())
        self.assertTrue(well, rows)
        self.assertEqual('done', self.outcome()['status'])

    def test_a_guest_that_does_not_answer(self):
        for sampler, boot, why in (
            (Sampler('web1: it does not answer'), '2', 'it does not answer'),
            (Sampler(), '1', 'it is the same boot'),
        ):
            well, rows = self.drill(sampler, boot)
            self.assertFalse(well)
            self.assertEqual('ok', rows[0][3])
            what, _before, after, result = rows[1]
            self.assertEqual(('guest', 'open'), (what, result))
            self.assertIn('no look into it 60 s later', after)
            self.assertEqual(2, len(rows))
            outcome = self.outcome()
            self.assertEqual(
                ('outcome', 'drill', 'open'),
                tuple(outcome[k] for k in ('event', 'action', 'status')),
            )
            self.assertIn('no answer from the guest', outcome['what'])
            self.assertIn(why, after)

    def test_sample_is_for_its_owner(self):
        self.drill(Sampler())
        path = self.run_.path / drill.SAMPLE
        self.assertEqual(0o600, stat.S_IMODE(path.stat().st_mode))
        told = samples.Sample.of_json(json.loads(path.read_text()))
        self.assertEqual({PATH}, set(told.files))

    def test_what_is_shown_can_be_printed(self):
        well, rows = self.drill(Sampler(lost=True))
        self.assertFalse(well)
        (path,) = [row[0] for row in rows if row[2] == 'gone']
        self.assertEqual('/data/caf\ufffd', path)
