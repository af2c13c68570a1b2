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

"""What all commands share: errors, options, the question."""

import argparse
import fcntl
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import termios
import types
import unittest
from unittest import mock

from osc_drp import exceptions
from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.engine import plan
from osc_drp.tests.unit import test_plugin

#: Asks, as a command does whose map comes from standard input.
ASK = """
import sys
from osc_drp import exceptions
from osc_drp.commands import base
stdin = sys.stdin.read()
try:
    base.confirm('3 servers will be started', 'restart 3', False)
except exceptions.Refused as error:
    print(error)
    sys.exit(error.exit_code)
print('went on with ' + stdin)
"""


#: Ends with an error when the reader of its standard error has gone.
LOST = """
import argparse, logging, sys
from unittest import mock
from osc_drp import exceptions
from osc_drp.commands import base
class Fails(base.DrpCommand):
    '''Fails.'''
    def take_action(self, parsed_args):
        sys.stdin.read()
        base.progress(self.app).say('said')
        raise eval(sys.argv[1])
logging.basicConfig()
app = mock.Mock(stderr=sys.stderr)
sys.exit(Fails(app, None, cmd_name='x').run(argparse.Namespace()))
"""


class TestConfirm(unittest.TestCase):
    """The question is asked on the terminal, whatever stdin is."""

    def ask(self, typed):
        """Run ASK in a session whose terminal somebody types on.

        :returns: what the terminal shows, the exit code, standard output
        """
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        # open till the end: without it there is no terminal to read from
        self.addCleanup(os.close, theirs)
        child = subprocess.Popen(
            [sys.executable, '-c', ASK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        )
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        child.stdin.write(b'the map')
        child.stdin.close()
        shown = b''
        while b'go on: ' not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, typed)
        out = child.stdout.read().decode()
        return shown.decode(), child.wait(30), out.strip()

    def test_right_answer(self):
        shown, code, out = self.ask(b'restart 3\n')
        self.assertIn(
            "3 servers will be started: type 'restart 3' to go on: ", shown
        )
        self.assertEqual((0, 'went on with the map'), (code, out))

    def test_spaces_do_not_matter(self):
        self.assertEqual(0, self.ask(b'  restart 3 \n')[1])

    def test_wrong_answers(self):
        for typed in (
            b'\n',
            b'y\n',
            b'restart 4\n',
            b'RESTART 3\n',
            b'restart\n',
            b'\xff\xfe\n',
            b'\x04',
        ):
            with self.subTest(typed):
                _shown, code, out = self.ask(typed)
                self.assertEqual(exceptions.REFUSED, code)
                self.assertIn("not 'restart 3': nothing was changed", out)

    def test_no_terminal(self):
        done = subprocess.run(
            [sys.executable, '-c', ASK],
            input=b'restart 3\n',
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(exceptions.REFUSED, done.returncode)
        self.assertIn(b'use --auto-approve to restart 3', done.stdout)

    def test_approved_before(self):
        with mock.patch('builtins.open') as opened:
            base.confirm('all', 'all', True)
        opened.assert_not_called()


class Fails(base.DrpCommand):
    """Raises what a test says."""

    error: BaseException | None = None

    def take_action(self, parsed_args):
        if self.error:
            raise self.error


class Lists(base.DrpLister):
    """Prints a table, and needs a person."""

    def take_action(self, parsed_args):
        self.exit_code = exceptions.PARTIAL
        return ('Name',), [('x',)]


class Evil(base.DrpLister):
    """Prints what a tenant named."""

    def take_action(self, parsed_args):
        return ('Name', 'N'), [('\x1b[2Jw\u202eeb\n\udcff\u65e5', 1)]


class Words(base.DrpLister):
    """A command with all kinds of options."""

    def take_action(self, parsed_args):
        """Do nothing."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('file', metavar='<file>', nargs='?')
        options.add_selection(parser)
        options.add_change(parser)
        options.add_lanes(parser, 'x')
        parser.add_argument('--classic', action='store_true')
        return parser


class TestWords(unittest.TestCase):
    """The command again, for the journal."""

    def words(self, line, cloud='prod'):
        app = mock.Mock(cloud=types.SimpleNamespace(name=cloud))
        command = Words(app, None, cmd_name='drp test')
        parser = command.get_parser('x')
        return command._words(parser, parser.parse_args(line.split()))

    def test_only_what_is_ours_and_was_given(self):
        self.assertEqual(
            [
                *('openstack', '--os-cloud', 'prod', 'drp', 'test'),
                *('--server', 'a', '--server', 'b'),
                *('--parallel', '3', '--classic', '/m'),
            ],
            self.words(
                '--server a --server b --parallel 3 --per-host 4 --classic '
                '--auto-approve -f json --max-width 7 /m'
            ),
        )

    def test_paths_are_found_from_anywhere(self):
        here = os.getcwd()
        self.assertEqual(
            [*('--run-dir', f'{here}/runs'), f'{here}/m'],
            self.words('m --run-dir runs')[5:],
        )
        # standard input stays what it is
        self.assertEqual(['-'], self.words('-')[5:])

    def test_a_cloud_without_a_name(self):
        for name in 'envvars', 'defaults', None:
            self.assertEqual(
                ['openstack', 'drp', 'test'], self.words('', name)
            )


class TestTable(unittest.TestCase):
    """What a terminal gets."""

    def printed(self, encoding, *words):
        raw = io.BytesIO()
        app = mock.Mock(stdout=io.TextIOWrapper(raw, encoding))
        command = Evil(app, None, cmd_name='x')
        parsed = command.get_parser('x').parse_args(words)
        self.assertEqual(0, command.run(parsed))
        app.stdout.flush()
        return raw.getvalue()

    def test_names_are_shown_and_do_nothing(self):
        for encoding, shown in (
            ('utf-8', b' [2Jw eb \\udcff\xe6\x97\xa5 1\n'),
            ('latin-1', b' [2Jw eb \\udcff\\u65e5 1\n'),
        ):
            with self.subTest(encoding):
                self.assertEqual(shown, self.printed(encoding, '-f', 'value'))

    def test_json_has_them_as_they_are(self):
        found = json.loads(self.printed('ascii', '-f', 'json'))
        self.assertEqual('\x1b[2Jw\u202eeb\n\udcff\u65e5', found[0]['Name'])


class TestErrors(unittest.TestCase):
    """One sentence, and the exit code."""

    def run_command(self, error):
        command = Fails(mock.Mock(), None, cmd_name='drp test')
        command.error = error
        return command.run(argparse.Namespace())

    def test_codes(self):
        for error, code in (
            (exceptions.DrpError, 1),
            (exceptions.MapError, 1),
            (exceptions.DatabaseError, 1),
            (exceptions.Unanswered, 1),
            (exceptions.Changed, 1),
            (exceptions.Usage, 2),
            (exceptions.Refused, 4),
        ):
            with self.subTest(error), self.assertLogs() as logs:
                found = self.run_command(error('50% of it is gone'))
                self.assertEqual(code, found)
                self.assertEqual(1, len(logs.records))
                record = logs.records[0]
                self.assertEqual('50% of it is gone', record.getMessage())
                self.assertIsNone(record.exc_info)

    def test_a_service_moves_no_cursor(self):
        with self.assertLogs() as logs:
            self.run_command(exceptions.ApiError('nova: \x1b[2J'))
        self.assertEqual('nova:  [2J', logs.records[0].getMessage())

    def test_traceback_is_for_debugging(self):
        with self.assertLogs(level='DEBUG') as logs:
            self.run_command(exceptions.DrpError('gone'))
        self.assertTrue(any(r.exc_info for r in logs.records))

    def test_interrupted(self):
        with self.assertLogs() as logs:
            found = self.run_command(KeyboardInterrupt())
        self.assertEqual(130, found)
        self.assertIn('the same command goes on', logs.output[0])

    def test_a_bug_is_not_hidden(self):
        with self.assertRaises(ZeroDivisionError):
            self.run_command(ZeroDivisionError())

    def test_done(self):
        self.assertEqual(0, self.run_command(None))

    def test_a_table_and_an_exit_code(self):
        app = mock.Mock(stdout=sys.stdout)
        command = Lists(app, None, cmd_name='drp test')
        args = command.get_parser('drp test').parse_args(['-f', 'json'])
        with mock.patch.object(
            command, 'produce_output', return_value=0
        ) as produce:
            self.assertEqual(3, command.run(args))
        produce.assert_called_once()

    def openstack(self, *args):
        return subprocess.run(
            [
                sys.executable,
                '-c',
                'from openstackclient import shell;'
                'import sys; sys.exit(shell.main(sys.argv[1:]))',
                *args,
                *('drp', 'attachments', 'show', '/nonexistent/map'),
            ],
            cwd=test_plugin.ROOT,
            env={**os.environ, 'OS_CLIENT_CONFIG_FILE': '/nonexistent'},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_nobody_reads_what_is_said(self):
        for error, code in (
            ('exceptions.Refused("no")', 4),
            ('KeyboardInterrupt', 130),
        ):
            with self.subTest(code):
                child = subprocess.Popen(
                    [sys.executable, '-c', LOST, error],
                    cwd=test_plugin.ROOT,
                    stdin=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                self.addCleanup(child.kill)
                child.stderr.close()
                child.stdin.close()
                self.assertEqual(code, child.wait(60))

    def test_whole_openstack(self):
        done = self.openstack()
        self.assertEqual((1, ''), (done.returncode, done.stdout))
        self.assertEqual(1, len(done.stderr.splitlines()), done.stderr)
        self.assertIn('/nonexistent/map', done.stderr)
        done = self.openstack('--debug')
        self.assertEqual(1, done.returncode)
        self.assertIn('Traceback (most recent call last)', done.stderr)
        self.assertIn('exceptions.MapError', done.stderr)


class TestOptions(unittest.TestCase):
    """Parsers and what is made of them."""

    def setUp(self):
        self.parser = argparse.ArgumentParser()
        options.add_selection(self.parser)
        options.add_change(self.parser)
        options.add_lanes(self.parser, 'servers')
        options.add_lost_at(self.parser)

    def parse(self, line):
        return self.parser.parse_args(line.split())

    def refuse(self, line):
        with (
            self.assertRaises(SystemExit) as caught,
            mock.patch('sys.stderr'),
        ):
            self.parse(line)
        self.assertEqual(exceptions.USAGE, caught.exception.code)

    def test_selection(self):
        args = self.parse('--server a --server b --host h --volume v')
        self.assertEqual(
            plan.Selection(('a', 'b'), (), ('h',), ('v',)),
            base.selection(args),
        )
        self.assertEqual(plan.Selection(), base.selection(self.parse('')))

    def test_dry_run_or_auto_approve(self):
        self.refuse('--dry-run --auto-approve')

    def test_numbers(self):
        args = self.parse('--parallel 3 --per-host 1')
        self.assertEqual((3, 1), (args.parallel, args.per_host))
        for bad in '0', '-1', 'x', '1.5':
            self.refuse(f'--parallel {bad}')

    def test_seconds(self):
        self.assertEqual(0.0, options.seconds('0'))
        self.assertEqual(1.5, options.seconds('1.5'))
        for bad in '-1', 'nan', 'inf', '1e300':
            with self.assertRaises(argparse.ArgumentTypeError):
                options.seconds(bad)
        with self.assertRaises(ValueError):
            options.seconds('soon')

    def test_percent(self):
        self.assertEqual(100.0, options.percent('100'))
        for bad in '-1', '101', 'nan':
            with self.assertRaises(argparse.ArgumentTypeError):
                options.percent(bad)

    def test_lost_at_is_utc(self):
        for text, found in (
            ('2026-11-22T03:12:00Z', '2026-11-22T03:12:00Z'),
            ('2026-11-22T03:12:00', '2026-11-22T03:12:00Z'),
            ('2026-11-22T03:12:00+02:00', '2026-11-22T01:12:00Z'),
            ('2026-11-22', '2026-11-22T00:00:00Z'),
        ):
            self.assertEqual(found, self.parse(f'--lost-at {text}').lost_at)
        self.assertEqual(
            '0999-01-01T00:00:00Z',
            self.parse('--lost-at 0999-01-01').lost_at,
        )
        self.refuse('--lost-at yesterday')
        self.refuse('--lost-at 0001-01-01T00:00:00+23:00')
        self.refuse('--lost-at 9999-12-31T23:59:59-01:00')

    def test_run_directory(self):
        app = types.SimpleNamespace(cloud=types.SimpleNamespace(name='lab'))
        args = self.parse('--run-dir /var/runs')
        self.assertEqual(
            pathlib.Path('/var/runs'), base.run_directory(args, app)
        )
        args = self.parse('')
        with mock.patch.dict(os.environ, XDG_STATE_HOME='/state'):
            self.assertEqual(
                pathlib.Path('/state/osc-drp/lab'),
                base.run_directory(args, app),
            )
        with mock.patch.dict(os.environ, XDG_STATE_HOME='', HOME='/home/x'):
            app.cloud.name = None
            self.assertEqual(
                pathlib.Path('/home/x/.local/state/osc-drp/envvars'),
                base.run_directory(args, app),
            )
        with (
            mock.patch.dict(os.environ),
            mock.patch('pwd.getpwuid', side_effect=KeyError),
            self.assertRaisesRegex(exceptions.DrpError, '--run-dir'),
        ):
            os.environ.pop('HOME')
            os.environ.pop('XDG_STATE_HOME', None)
            base.run_directory(args, app)

    def test_session_is_found_again_by_map_and_selection(self):
        cloud_map = types.SimpleNamespace(sha256='f' * 64)
        app = types.SimpleNamespace(cloud=types.SimpleNamespace(name='lab'))
        with tempfile.TemporaryDirectory() as directory:
            args = self.parse(f'--run-dir {directory} --server b --server a')
            made = base.session(args, app, 'db reset', cloud_map, print)
            with mock.patch.object(made.runs, 'begin') as begin:
                with made.journal():
                    pass
        begin.assert_called_once_with(
            'db reset',
            {
                'map': 'f' * 64,
                'selection': {
                    'servers': ['a', 'b'],
                    'projects': [],
                    'hosts': [],
                    'volumes': [],
                },
            },
            (),
        )

    def test_help_tells_the_exit_codes(self):
        parser = Fails(mock.Mock(), None, cmd_name='x').get_parser('x')
        self.assertEqual(base.EXIT_CODES, parser.epilog)
