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

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import textwrap
import types
import unittest
from unittest import mock
import uuid

import hypothesis
from hypothesis import strategies

from osc_drp.engine import facts
from osc_drp import exceptions
from osc_drp import mapfile


def uid(number):
    return str(uuid.UUID(int=number, version=4))


def a_server(number, **changes):
    return facts.MapServer(
        **{
            'id': uid(number),
            'name': f'web{number}',
            'project_id': 'project',
            'host': 'c1',
            'vm_state': 'active',
            'power_state': 1,
            'locked': False,
            **changes,
        }
    )


def an_attachment(server, volume, **changes):
    return facts.MapAttachment(
        **{
            'server_id': uid(server),
            'volume_id': uid(volume),
            'device': '/dev/vdb',
            'attachment_id': uid(900),
            'cinder_attachment_id': uid(900),
            'recorded_by': 'both',
            'root': False,
            'tag': None,
            'delete_on_termination': False,
            'multiattach': False,
            **changes,
        }
    )


def a_map(**changes):
    return facts.CloudMap(
        **{
            'taken_at': '2026-11-22T12:00:00Z',
            'cloud': 'blue',
            'source': 'api',
            'servers': (a_server(1), a_server(2, host=None)),
            'attachments': (
                an_attachment(1, 101),
                an_attachment(1, 102, device=None, tag='data'),
                an_attachment(
                    9, 103, recorded_by='cinder', attachment_id=None
                ),
            ),
            **changes,
        }
    )


def sealed(text):
    """Give a text the hash that makes it look untouched."""
    before = text.encode()
    digest = hashlib.sha256(before).hexdigest()
    return before + f'"sha256": "{digest}"\n}}\n'.encode()


def resealed(data, old, new, count=1):
    """Forge: change a map and its hash."""
    text = data[: data.rindex(b'"sha256": ')].decode()
    assert old in text, old
    return sealed(text.replace(old, new, count))


class Case(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.path = str(self.directory / 'map.json')
        self.data = mapfile.encode(a_map())

    def put(self, data):
        pathlib.Path(self.path).write_bytes(data)

    def refused(self, words, data=None, **kwargs):
        if data is not None:
            self.put(data)
        with self.assertRaises(exceptions.MapError) as caught:
            mapfile.read(self.path, **kwargs)
        text = str(caught.exception)
        self.assertIn(self.path, text)
        self.assertNotIn('\n', text)
        self.assertIn(words, text)


class TestWrite(Case):
    def test_round_trip(self):
        digest = mapfile.write(a_map(), self.path)
        self.assertEqual(
            dataclasses.replace(a_map(), sha256=digest),
            mapfile.read(self.path),
        )

    def test_layout(self):
        """An object a line; pinned, for files outlive programs."""
        one = a_map(servers=(a_server(1),), attachments=())
        text = mapfile.encode(one).decode()
        head, _, tail = text.rpartition('"sha256": ')
        self.assertEqual(
            textwrap.dedent("""\
                {
                "format": "osc-drp map",
                "version": 1,
                "taken_at": "2026-11-22T12:00:00Z",
                "cloud": "blue",
                "source": "api",
                "counts": {"servers": 1, "attachments": 0},
                "servers": [
                {"id": "00000000-0000-4000-8000-000000000001", "name": "web1",\
 "project_id": "project", "host": "c1", "vm_state": "active",\
 "power_state": 1, "locked": false}
                ],
                "attachments": [
                ],
                """),
            head,
        )
        digest = hashlib.sha256(head.encode()).hexdigest()
        self.assertEqual(f'"{digest}"\n}}\n', tail)
        self.assertEqual(7, len(json.loads(text)['servers'][0]))

    def test_attachment_fields(self):
        document = json.loads(self.data)
        self.assertEqual(
            [f.name for f in dataclasses.fields(facts.MapAttachment)],
            list(document['attachments'][0]),
        )

    def test_mode_and_umask(self):
        for umask in (0, 0o022, 0o777):
            path = f'{self.path}.{umask}'
            old = os.umask(umask)
            try:
                mapfile.write(a_map(), path)
            finally:
                os.umask(old)
            self.assertEqual(0o600, stat.S_IMODE(os.stat(path).st_mode))

    def test_never_overwrites(self):
        self.put(b'precious')
        with self.assertRaisesRegex(exceptions.MapError, 'already exists'):
            mapfile.write(a_map(), self.path)
        with self.assertRaisesRegex(exceptions.MapError, 'already exists'):
            mapfile.refuse_existing(self.path)
        self.assertEqual(b'precious', pathlib.Path(self.path).read_bytes())
        self.assertEqual(['map.json'], os.listdir(self.directory))

    def test_never_follows_a_link(self):
        os.symlink(self.directory / 'elsewhere', self.path)
        with self.assertRaisesRegex(exceptions.MapError, 'already exists'):
            mapfile.refuse_existing(self.path)
        with self.assertRaisesRegex(exceptions.MapError, 'already exists'):
            mapfile.write(a_map(), self.path)
        self.assertEqual(['map.json'], os.listdir(self.directory))

    def test_nothing_there(self):
        mapfile.refuse_existing(self.path)
        mapfile.refuse_existing('-')

    def test_nowhere_to_put_it(self):
        file = self.directory / 'file'
        file.touch()
        for directory in self.directory / 'none', file:
            with self.assertRaisesRegex(
                exceptions.MapError, 'cannot be written: there is no dir'
            ):
                mapfile.refuse_existing(str(directory / 'map.json'))
        with (
            # root may write anywhere
            mock.patch('os.access', return_value=False),
            self.assertRaisesRegex(exceptions.MapError, 'cannot be written$'),
        ):
            mapfile.refuse_existing(self.path)

    def test_nothing_is_left_aside(self):
        mapfile.write(a_map(), self.path)
        self.assertEqual(['map.json'], os.listdir(self.directory))

    def test_no_directory(self):
        path = str(self.directory / 'none' / 'map.json')
        with self.assertRaisesRegex(
            exceptions.MapError, 'cannot be written: No such file'
        ):
            mapfile.write(a_map(), path)

    def test_disk_full(self):
        full = OSError(errno.ENOSPC, 'No space left on device')
        with (
            mock.patch.object(os, 'fsync', side_effect=full),
            self.assertRaisesRegex(exceptions.MapError, 'No space left'),
        ):
            mapfile.write(a_map(), self.path)
        self.assertEqual([], os.listdir(self.directory))

    def test_synced_before_it_has_its_name(self):
        order = []
        sync, link = os.fsync, os.link

        def fsync(handle):
            kind = os.fstat(handle).st_mode
            order.append('directory' if stat.S_ISDIR(kind) else 'file')
            sync(handle)

        def hard_link(*args):
            order.append('link')
            link(*args)

        with (
            mock.patch.object(os, 'fsync', fsync),
            mock.patch.object(os, 'link', hard_link),
        ):
            mapfile.write(a_map(), self.path)
        self.assertEqual(['file', 'link', 'directory'], order)

    def test_no_hard_links(self):
        refused = OSError(errno.EPERM, 'Operation not permitted')
        with mock.patch.object(os, 'link', side_effect=refused):
            mapfile.write(a_map(), self.path)
            with self.assertRaisesRegex(exceptions.MapError, 'exists'):
                mapfile.write(a_map(), self.path)
        self.assertEqual(0o600, stat.S_IMODE(os.stat(self.path).st_mode))
        self.assertEqual(['map.json'], os.listdir(self.directory))
        mapfile.read(self.path)

    def test_disk_that_lies(self):
        """What reads back differently never gets its name."""
        with (
            mock.patch.object(os, 'fsync', lambda handle: self._spoil()),
            self.assertRaisesRegex(exceptions.MapError, 'differently'),
        ):
            mapfile.write(a_map(), self.path)
        self.assertEqual([], os.listdir(self.directory))

    def _spoil(self):
        for name in self.directory.iterdir():
            if name.is_file():
                with open(name, 'r+b') as stream:
                    stream.write(b'?')

    def test_killed_before_it_has_its_name(self):
        """SIGKILL just before the link: nothing under the final name."""
        code = textwrap.dedent(f"""
            import os, signal
            from osc_drp import mapfile
            from osc_drp.tests.unit import test_mapfile
            os.link = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
            mapfile.write(test_mapfile.a_map(), {self.path!r})
        """)
        done = subprocess.run(
            [sys.executable, '-c', code],
            cwd=pathlib.Path(__file__).parents[3],
            check=False,
        )
        self.assertEqual(-9, done.returncode)
        self.assertFalse(os.path.lexists(self.path))
        (left,) = os.listdir(self.directory)
        self.assertTrue(left.startswith('.map.json.'))
        mapfile.write(a_map(), self.path)

    def test_standard_output(self):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            digest = mapfile.write(a_map(), '-')
        self.assertEqual(self.data.decode(), out.getvalue())
        self.assertIn(digest, out.getvalue())

    def test_what_cannot_be_read_is_not_written(self):
        with self.assertRaises(exceptions.MapError):
            mapfile.write(a_map(servers=(a_server(1),) * 2), self.path)
        self.assertEqual([], os.listdir(self.directory))

    def test_no_secret_has_a_place(self):
        for kind in (facts.MapServer, facts.MapAttachment, facts.CloudMap):
            for field in dataclasses.fields(kind):
                self.assertNotRegex(
                    field.name, 'connect|password|secret|auth_|token|user'
                )


class TestRead(Case):
    def test_missing(self):
        self.refused('No such file or directory')

    def test_directory(self):
        os.mkdir(self.path)
        self.refused('Is a directory')

    def test_empty(self):
        self.refused('is empty', b'')
        self.refused('is empty', b' \n')
        self.refused('is empty', b'', allow_bare=True)

    def test_standard_input(self):
        stdin = types.SimpleNamespace(buffer=io.BytesIO(self.data))
        with mock.patch.object(sys, 'stdin', stdin):
            self.assertEqual(2, len(mapfile.read('-').servers))

    def test_no_standard_input(self):
        with (
            mock.patch.object(sys, 'stdin', None),
            self.assertRaisesRegex(exceptions.MapError, 'input is closed'),
        ):
            mapfile.read('-')

    def test_truncated_anywhere(self):
        """Every single length short of the whole is refused."""
        for length in range(1, len(self.data)):
            self.refused('', self.data[:length])

    def test_truncated(self):
        for lines in (2, 5, 8, 9, 12, 14):
            part = b''.join(self.data.splitlines(True)[:lines])
            self.refused(f'line {lines}: the file is truncated', part)
            self.refused(f'line {lines}: the file is trunc', part[:-3])

    def test_every_wrong_byte(self):
        for place in range(len(self.data)):
            data = bytearray(self.data)
            data[place] ^= 1
            self.refused('', bytes(data))

    def test_wrong_byte(self):
        self.refused(
            "field 'sha256': it differs",
            self.data.replace(b'/dev/vdb', b'/dev/vdc', 1),
        )
        line = self.data.count(b'\n') - 1
        self.refused(
            f"line {line}, field 'sha256'", self.data.replace(b'web1', b'web7')
        )

    def test_something_behind(self):
        self.refused('', self.data + b'\n')
        self.refused('', self.data + self.data)

    def test_no_map(self):
        for data in (b'hello\n', b'[]\n', b'\x00\xff\n', b'\x1f\x8b\x08'):
            self.refused('', data)
        self.refused('it is not a map', b'{}\n')
        self.refused('it is not a map', b'{"servers": []}\n')
        self.refused('line 1: it is not a map', b'[1]\n')
        bare = f'{uid(1)} {uid(2)} /dev/vdb\n'.encode()
        self.refused('line 1: it is not a map', bare)

    def test_no_json(self):
        broken = self.data.replace(b'"cloud": ', b'"cloud"; ')
        self.refused('line 5: no JSON', broken)

    def test_no_ascii(self):
        self.refused('line 5', self.data.replace(b'blue', b'bl\xc3\xbc'))

    def test_nested(self):
        deep = b'{"a": ' + b'[' * 100000 + b']' * 100000 + b'}\n'
        self.refused('no JSON', deep)

    def test_a_number_without_end(self):
        self.refused(
            'line 3: a number that is too long',
            self.data.replace(b'"version": 1', b'"version": ' + b'1' * 5000),
        )

    def test_newer(self):
        self.refused(
            "line 3, field 'version': version 2 is newer",
            self.data.replace(b'"version": 1', b'"version": 2'),
        )

    def test_bad_version(self):
        for value in (b'0', b'true', b'"1"', b'null', b'1.0'):
            self.refused(
                "line 3, field 'version'",
                self.data.replace(b'"version": 1', b'"version": ' + value),
            )

    def test_hash_missing(self):
        text = self.data[: self.data.rindex(b',\n"sha256": ')] + b'\n}\n'
        self.refused("field 'sha256'", text)

    def test_twice_in_an_object(self):
        self.refused(
            "field 'cloud': it is there twice",
            resealed(self.data, '"source"', '"cloud": "red",\n"source"'),
        )

    def test_counts(self):
        self.refused(
            "line 7, field 'counts.servers': says 3, but the file holds 2",
            resealed(self.data, '"servers": 2', '"servers": 3'),
        )
        self.refused(
            "line 7, field 'counts.attachments': says 1, but the file holds 3",
            resealed(self.data, '"attachments": 3', '"attachments": 1'),
        )

    def test_bad_fields(self):
        """Line and field of each, on the line where it really is."""
        for old, new, line, field in (
            ('"2026-11-22T12:00:00Z"', '"yesterday"', 4, 'taken_at'),
            ('"blue"', '7', 5, 'cloud'),
            ('"api"', '"hearsay"', 6, 'source'),
            ('{"servers": 2,', '{"servers": "2",', 7, 'servers'),
            (f'"id": "{uid(1)}"', '"id": "web1"', 9, 'id'),
            (f'"id": "{uid(2)}"', '"id": 2', 10, 'id'),
            (f'"id": "{uid(2)}"', f'"id": "{uid(1)}"', 10, 'id'),
            ('"name": "web2"', '"name": null', 10, 'name'),
            ('"power_state": 1', '"power_state": true', 9, 'power_state'),
            ('"power_state": 1', '"power_state": 1.5', 9, 'power_state'),
            ('"locked": false', '"locked": 0', 9, 'locked'),
            ('"locked": false', '"open": false', 9, 'locked'),
            ('"locked": false', '"locked": false, "a": 1', 9, 'a'),
            (f'"volume_id": "{uid(101)}"', '"volume_id": ""', 13, 'volume_id'),
            ('"device": null', '"device": 5', 14, 'device'),
            ('"tag": "data"', '"tag": []', 14, 'tag'),
            ('"recorded_by": "both"', '"recorded_by": 1', 13, 'recorded_by'),
            ('"root": false', '"root": "no"', 13, 'root'),
            (
                f'"server_id": "{uid(1)}", "volume_id": "{uid(102)}"',
                f'"server_id": "{uid(1)}", "volume_id": "{uid(101)}"',
                14,
                'volume_id',
            ),
            (
                f'"server_id": "{uid(1)}"',
                f'"server_id": "{uid(8)}"',
                13,
                'server_id',
            ),
            (
                '"recorded_by": "both"',
                '"recorded_by": "nova"',
                13,
                'cinder_attachment_id',
            ),
            (
                f'"cinder_attachment_id": "{uid(900)}"',
                '"cinder_attachment_id": null',
                13,
                'cinder_attachment_id',
            ),
        ):
            with self.subTest(old=old, new=new):
                self.refused(
                    f"line {line}, field '{field}'",
                    resealed(self.data, old, new),
                )

    def test_upper_case_id(self):
        forged = resealed(
            self.data, uid(900), 'ABCDEF00-0000-4000-8000-000000000384'
        )
        self.refused("field 'attachment_id'", forged)

    def test_missing_field(self):
        forged = resealed(self.data, '"cloud": "blue",\n', '')
        self.refused("field 'cloud': it is missing", forged)

    def test_unknown_field(self):
        forged = resealed(self.data, '"cloud"', '"extra": 1,\n"cloud"')
        self.refused("field 'extra': it is unknown", forged)

    def test_no_object(self):
        forged = resealed(
            self.data, '"attachments": [\n', '"attachments": [\n5,\n'
        )
        self.refused('line 13: not an object', forged)

    def test_lists(self):
        text = mapfile.encode(a_map(servers=(), attachments=())).decode()
        forged = resealed(text.encode(), '"servers": [\n]', '"servers": null')
        self.refused("line 8, field 'servers': must be a list", forged)

    def test_orphan_of_cinder(self):
        """Cinder may record a server that nova does not know."""
        self.put(self.data)
        last = mapfile.read(self.path).attachments[-1]
        self.assertEqual(uid(9), last.server_id)
        self.assertIsNone(mapfile.read(self.path).server(uid(9)))

    @hypothesis.settings(deadline=None, max_examples=100)
    @hypothesis.given(
        strategies.text(),
        strategies.one_of(strategies.none(), strategies.text()),
    )
    def test_any_text(self, name, tag):
        """Names and tags are the users': any character comes back."""
        whole = a_map(
            cloud=name,
            servers=(a_server(1, name=name, host=tag),),
            attachments=(an_attachment(1, 101, tag=tag, device=tag),),
        )
        data = mapfile.encode(whole)
        self.put(data)
        found = mapfile.read(self.path)
        self.assertEqual(whole, dataclasses.replace(found, sha256=''))
        self.assertEqual(15, data.count(b'\n'))

    def test_lone_surrogate(self):
        whole = a_map(servers=(a_server(1, name='\ud800'), a_server(2)))
        mapfile.write(whole, self.path)
        self.assertEqual('\ud800', mapfile.read(self.path).servers[0].name)


class TestBare(Case):
    """The procedure's file with three columns."""

    def bare(self, text):
        self.put(text.encode())
        return mapfile.read(self.path, allow_bare=True)

    def test_three_columns(self):
        text = (
            f'{uid(101)} {uid(1)} /dev/vdb\n'
            f'\n{uid(102)}\t{uid(1)}  None\r\n'
            f'{uid(103)} {uid(2)}'
        )
        found = self.bare(text)
        self.assertTrue(found.bare)
        self.assertEqual(
            hashlib.sha256(text.encode()).hexdigest(), found.sha256
        )
        self.assertEqual((), found.servers)
        self.assertEqual(
            [
                (uid(101), uid(1), '/dev/vdb'),
                (uid(102), uid(1), None),
                (uid(103), uid(2), None),
            ],
            [(a.volume_id, a.server_id, a.device) for a in found.attachments],
        )

    def test_not_for_everybody(self):
        self.refused('not a map', f'{uid(1)} {uid(2)} /dev/vdb\n'.encode())

    def test_a_map_is_a_map(self):
        self.put(self.data)
        self.assertFalse(mapfile.read(self.path, allow_bare=True).bare)
        self.refused('truncated', self.data[:-4], allow_bare=True)

    def test_errors(self):
        good = f'{uid(101)} {uid(1)} /dev/vdb'
        for text, words in (
            ('hello', "line 1: not a map, and not 'volume server device'"),
            (f'{good}\n{good} more', "line 2: not a map, and not 'volume"),
            (
                f'{good}\nweb1 {uid(1)}',
                "line 2, field 'volume': must be an id",
            ),
            (f'{uid(1)} web1', "line 1, field 'server'"),
            (f'{good}\n\n{good}', "line 3, field 'volume_id'"),
            (f'{uid(2)} {uid(1)} vdb', "line 1, field 'device'"),
            (f'{uid(2)} {uid(1)} /dev/v\x1b', "line 1, field 'device'"),
            (f'{good}\n\xe4', 'line 2'),
        ):
            with self.subTest(text=text):
                self.refused(words, text.encode(), allow_bare=True)
