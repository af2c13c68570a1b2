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

"""Files of a guest, by the real scripts in a shell of this machine."""

import json
import os
import types
import unittest
from unittest import mock

import fixtures
import testtools

from osc_drp.hosts import samples
from osc_drp.hosts import ssh

#: All that a file's name may have, but a newline: Latin-1, U+0085, U+2028.
NAMES = (
    b'plain',
    b'caf\xe9',
    'next\x85line'.encode(),
    'line\u2028line'.encode(),
    b'return\rreturn',
    b' blanks ',
    b'tab\t',
    b'back\\slash',
)


class Way:
    """Answers as guests.Guests does, by the shell here."""

    def __init__(self, program):
        self._shell = ssh.Ssh(program=program)

    def look(self, server, script='', values=None, limit=60, exact=False):
        answer = self._shell.run(ssh.Target('here'), script, limit, values)
        return answer.sections(exact)

    def boot_id(self, server):
        return 'boot'


class TestNames(testtools.TestCase):
    """A name is bytes."""

    def setUp(self):
        super().setUp()
        self.dir = os.fsencode(self.useFixture(fixtures.TempDir()).path)
        self.data = os.path.join(self.dir, b'data')
        os.mkdir(self.data)
        for name in NAMES:
            with open(os.path.join(self.data, name), 'wb') as stream:
                stream.write(name)
        program = os.path.join(self.dir, b'ssh')
        with open(program, 'w') as stream:
            stream.write('#!/bin/sh\nexec sh -s\n')
        os.chmod(program, 0o700)
        # not all of this machine's disks
        take = samples.TAKE.replace('\nsync\n', '\n')
        self.useFixture(
            fixtures.MonkeyPatch('osc_drp.hosts.samples.TAKE', take)
        )
        self.sampler = samples.Sampler(
            Way(os.fsdecode(program)),
            types.SimpleNamespace(id='s1', name='web1'),
            [],
            [os.fsdecode(self.data)],
        )

    def test_all_names(self):
        before = self.sampler.take()
        self.assertEqual(
            {os.path.join(self.data, name) for name in NAMES},
            {os.fsencode(path) for path in before.files},
        )
        # as a drill that was killed reads it again
        told = json.loads(json.dumps(before.as_json()))
        _now, losses = self.sampler.compare(samples.Sample.of_json(told))
        self.assertEqual(samples.Losses(len(NAMES), (), ()), losses)

    def test_lost(self):
        before = self.sampler.take()
        gone = os.path.join(self.data, NAMES[1])
        os.unlink(gone)
        _now, losses = self.sampler.compare(before)
        self.assertEqual((os.fsdecode(gone),), losses.gone)
        self.assertEqual((), losses.changed)


class TestOptions(unittest.TestCase):
    """What no configuration of the operator's changes."""

    def test_known_hosts_stays_as_it_is(self):
        with mock.patch.object(ssh.Ssh, '_call') as call:
            call.return_value = ssh.Answer(0, '', '')
            with self.assertRaises(ssh.exceptions.SshError):
                ssh.Ssh().run(ssh.Target('web1'), '')
        self.assertIn('UpdateHostKeys=no', call.call_args.args[0])


class TestAnswer(unittest.TestCase):
    """What is shown has no byte that a terminal cannot show."""

    def test_sections(self):
        out = f'{ssh.MARK}x\ncaf\udce9\n'
        answer = ssh.Answer(0, out, '')
        self.assertEqual({'x': ['caf\ufffd']}, answer.sections())
        self.assertEqual({'x': ['caf\udce9']}, answer.sections(exact=True))
        self.assertEqual('caf\ufffd', answer.words())

    def test_no_section_within_a_name(self):
        answer = ssh.Answer(0, f'{ssh.MARK}x\na\x85{ssh.MARK}exit 0\n', '')
        self.assertEqual(['x'], list(answer.sections()))

    def test_run_takes_any_value(self):
        with mock.patch.object(ssh.Ssh, '_call') as call:
            call.return_value = ssh.Answer(0, '', '')
            with self.assertRaises(ssh.exceptions.SshError):
                ssh.Ssh().run(
                    ssh.Target('x'), '', values={'path': 'caf\udce9'}
                )
        self.assertIn(b"path='caf\xe9'", call.call_args.args[1])
