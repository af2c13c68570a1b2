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

"""The contract with openstackclient, for every command of setup.cfg."""

import argparse
import configparser
import contextlib
import importlib
import importlib.metadata
import inspect
import io
import pathlib
import subprocess
import sys
import unittest

from cliff import command
from cliff import lister
from cliff import show

from osc_drp import plugin

ROOT = pathlib.Path(__file__).parents[3]
GROUP = 'openstack.drp.v1'
#: Second words whose classes are named otherwise.
OBJECTS = {'db': 'Database', 'iscsi': 'Iscsi'}


def commands() -> dict[str, str]:
    """Read the commands from setup.cfg: 'drp db reset' -> 'module:class'."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    lines = config['options.entry_points'][GROUP].strip().splitlines()
    found = {}
    for line in lines:
        name, _, target = line.partition('=')
        found[name.strip().replace('_', ' ')] = target.strip()
    return found


def load(target: str) -> type[command.Command]:
    """Import a command class."""
    module, _, name = target.partition(':')
    return getattr(importlib.import_module(module), name)


def inherited_options() -> set[str]:
    """Options that cliff gives to every command (--format, --column, ...)."""
    found = set()
    for base in (command.Command, lister.Lister, show.ShowOne):

        class Nothing(base):
            def take_action(self, parsed_args):
                """Do nothing."""

        for action in Nothing(None, None).get_parser('nothing')._actions:
            found.update(action.option_strings)
    return found


def openstack(*args: str) -> subprocess.CompletedProcess:
    """Run the real client, with no cloud to talk to."""
    return subprocess.run(
        [sys.executable, '-m', 'openstackclient.shell', *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


class TestContract(unittest.TestCase):
    """Without any of these names the whole `openstack` program suffers."""

    def test_names(self):
        self.assertEqual('drp', plugin.API_NAME)
        self.assertEqual('1', plugin.DEFAULT_API_VERSION)
        self.assertIn(plugin.DEFAULT_API_VERSION, plugin.API_VERSIONS)
        self.assertIsInstance(plugin.API_VERSIONS, tuple)
        self.assertEqual('os_drp_api_version', plugin.API_VERSION_OPTION)

    def test_no_global_option(self):
        parser = argparse.ArgumentParser()
        before = [list(a.option_strings) for a in parser._actions]
        self.assertIs(parser, plugin.build_option_parser(parser))
        self.assertEqual(
            before, [list(a.option_strings) for a in parser._actions]
        )

    def test_client_is_the_sdk_connection(self):
        instance = argparse.Namespace(sdk_connection=object())
        self.assertIs(instance.sdk_connection, plugin.make_client(instance))

    def test_setup_cfg_names_the_plugin(self):
        config = configparser.ConfigParser()
        config.read(ROOT / 'setup.cfg', encoding='utf-8')
        self.assertEqual(
            'drp = osc_drp.plugin',
            config['options.entry_points']['openstack.cli.extension'].strip(),
        )


class TestCommands(unittest.TestCase):
    """Every command of setup.cfg, whoever wrote it."""

    def test_there_are_commands(self):
        self.assertIn('drp attachments save', commands())

    def test_loads_and_has_help(self):
        for name, target in commands().items():
            with self.subTest(name):
                cls = load(target)
                self.assertTrue(issubclass(cls, command.Command))
                text = inspect.cleandoc(
                    getattr(cls, '_description', None) or cls.__doc__ or ''
                )
                self.assertTrue(text, 'no help')
                first = text.splitlines()[0]
                self.assertTrue(first[0].isupper(), first)
                self.assertFalse(first.endswith('.'), first)

    def test_runs_without_keystone(self):
        # the engine asks for a connection itself, when it needs one
        for name, target in commands().items():
            with self.subTest(name):
                self.assertIs(False, load(target).auth_required)

    def test_named_verb_and_object(self):
        for name, target in commands().items():
            with self.subTest(name):
                drp, noun, *verb = name.split(' ')
                self.assertEqual('drp', drp)
                module, _, cls = target.partition(':')
                if not verb:
                    # all of them in one, and its rehearsal
                    self.assertIn(noun, ('recover', 'drill'))
                    self.assertEqual(noun.title(), cls)
                    continue
                (verb,) = verb
                self.assertEqual(f'osc_drp.commands.{noun}', module)
                self.assertEqual(
                    verb.title() + OBJECTS.get(noun, noun.title()), cls
                )

    def test_parser_needs_no_cloud(self):
        for name, target in commands().items():
            with self.subTest(name):
                parser = load(target)(None, None).get_parser(name)
                self.assertIsInstance(parser, argparse.ArgumentParser)
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    parser.print_help()
                self.assertIn('usage', out.getvalue().lower())

    def test_options_follow_the_guide(self):
        inherited = inherited_options()
        for name, target in commands().items():
            parser = load(target)(None, None).get_parser(name)
            for action in parser._actions:
                if inherited.intersection(action.option_strings):
                    continue
                label = ' '.join(action.option_strings) or action.dest
                with self.subTest(f'{name} {label}'):
                    self.check_option(action)

    def check_option(self, action):
        for option in action.option_strings:
            self.assertTrue(option.startswith('--'), 'long options only')
            self.assertNotIn('_', option)
        self.assertTrue(action.help, 'no help')
        self.assertFalse(action.help.endswith('.'), action.help)
        if action.nargs != 0 and not action.choices:
            metavar = action.metavar or ''
            self.assertTrue(
                metavar.startswith('<') and metavar.endswith('>'), metavar
            )


class TestClient(unittest.TestCase):
    """The installed plugin, in the real client."""

    def setUp(self):
        super().setUp()
        names = {
            e.name.replace('_', ' ')
            for e in importlib.metadata.entry_points(group=GROUP)
        }
        # not skipped: an entry point that is lost in packaging looks alike
        self.assertEqual(set(commands()), names, 'pip install -e . first')

    def test_help_lists_the_commands(self):
        result = openstack('help', 'drp')
        for name in commands():
            self.assertIn(name, result.stdout)
        self.assertNotIn('Could not load', result.stderr)

    def test_help_of_each_command(self):
        # one process: `openstack` takes more than a second to start
        from openstackclient import shell

        for name in commands():
            with self.subTest(name):
                out, err = io.StringIO(), io.StringIO()
                with (
                    contextlib.redirect_stdout(out),
                    contextlib.redirect_stderr(err),
                ):
                    code = shell.OpenStackShell().run([*name.split(), '-h'])
                self.assertEqual(0, code, err.getvalue())
                self.assertIn(f'{name} [-h]', out.getvalue())
                self.assertEqual('', err.getvalue())

    def test_completion(self):
        result = openstack('complete')
        self.assertEqual(0, result.returncode, result.stderr)
        lines = [line.strip() for line in result.stdout.splitlines()]
        for name in commands():
            start = f'cmds_{name.replace(" ", "_")}='
            self.assertTrue(any(x.startswith(start) for x in lines), start)

    def test_no_global_option(self):
        result = openstack('--help')
        self.assertNotIn('--os-drp', result.stdout)
