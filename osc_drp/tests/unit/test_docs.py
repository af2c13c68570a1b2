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

"""The documentation knows every command, exit code and release note."""

import fnmatch
import inspect
import re
import shlex
import unittest

import yaml

from osc_drp import exceptions
from osc_drp.tests.unit import test_plugin

DOC = test_plugin.ROOT / 'doc' / 'source'
NOTES = test_plugin.ROOT / 'releasenotes' / 'notes'
#: reno's sections.
SECTIONS = {
    'prelude',
    'features',
    'issues',
    'upgrade',
    'deprecations',
    'critical',
    'security',
    'fixes',
    'other',
}


def read(directory: str) -> str:
    """Read all pages of a directory of the documentation."""
    return '\n'.join(
        path.read_text(encoding='utf-8')
        for path in sorted((DOC / directory).rglob('*.rst'))
    )


class TestDocs(unittest.TestCase):
    """doc/source."""

    def test_reference_has_every_command(self):
        pages = read('cli')
        self.assertIn(f'.. autoprogram-cliff:: {test_plugin.GROUP}', pages)
        patterns = re.findall(r':command: (.+)', pages)
        for name in test_plugin.commands():
            with self.subTest(name):
                self.assertTrue(
                    any(fnmatch.fnmatch(name, p) for p in patterns)
                )

    def test_guide_has_every_command(self):
        pages = ' '.join(read('user').split())
        for name in test_plugin.commands():
            with self.subTest(name):
                self.assertIn(f'openstack {name}', pages)

    def test_guide_names_no_other_command(self):
        # a page that promises what is not there is worse than no page
        known = set(test_plugin.commands())
        for path in sorted(DOC.rglob('*.rst')):
            text = ' '.join(path.read_text(encoding='utf-8').split())
            for noun, verb in re.findall(
                r'openstack drp ([a-z]+) ([a-z]+)', text
            ):
                with self.subTest(path.name):
                    # a command of one word takes a file
                    self.assertIn(
                        f'drp {noun}'
                        if f'drp {noun}' in known
                        else f'drp {noun} {verb}',
                        known,
                    )

    def test_guide_has_every_option(self):
        pages = read('user') + read('install')
        inherited = test_plugin.inherited_options()
        for name, target in test_plugin.commands().items():
            parser = test_plugin.load(target)(None, None).get_parser(name)
            for action in parser._actions:
                for option in set(action.option_strings) - inherited:
                    with self.subTest(f'{name} {option}'):
                        self.assertIn(f'``{option}', pages)

    def test_examples_use_options_that_exist(self):
        examples = []
        pages = [*DOC.rglob('*.rst'), *test_plugin.ROOT.glob('*.rst')]
        for path in sorted(pages):
            text = path.read_text(encoding='utf-8').replace('\\\n', ' ')
            for inline in re.findall(r'``(openstack drp [^`]+)``', text):
                examples.append((path.name, ' '.join(inline.split())))
            for line in re.findall(r'(?m)^ +\$? *(openstack drp .+)$', text):
                examples.append((path.name, line))
        self.assertGreater(len(examples), 10)
        known = test_plugin.commands()
        for page, example in examples:
            words = shlex.split(example, comments=True)
            name = ' '.join(words[1:4])
            if name not in known:
                continue  # a group of commands, or '...'
            parser = test_plugin.load(known[name])(None, None)
            options = parser.get_parser(name)._option_string_actions
            for word in words[4:]:
                if word.startswith('-') and word != '-':
                    with self.subTest(f'{page}: {example}'):
                        self.assertIn(word, set(options))

    def test_every_exit_code(self):
        page = (DOC / 'user' / 'exit-codes.rst').read_text(encoding='utf-8')
        codes = {
            name: value
            for name, value in vars(exceptions).items()
            if name.isupper() and isinstance(value, int)
        }
        self.assertGreaterEqual(len(codes), 6)
        for name, value in codes.items():
            with self.subTest(name):
                self.assertRegex(page, rf'(?m)^\s*(\* - )?{value}\b')

    def test_errors_have_known_codes_and_say_when(self):
        for name, cls in vars(exceptions).items():
            if inspect.isclass(cls) and issubclass(cls, exceptions.DrpError):
                with self.subTest(name):
                    self.assertIn(
                        cls.exit_code,
                        (
                            exceptions.FAILED,
                            exceptions.USAGE,
                            exceptions.PARTIAL,
                            exceptions.REFUSED,
                        ),
                    )
                    self.assertTrue(cls.__doc__)


class TestReleaseNotes(unittest.TestCase):
    """releasenotes/notes."""

    def test_every_note(self):
        notes = sorted(NOTES.iterdir())
        self.assertTrue(notes)
        for path in notes:
            with self.subTest(path.name):
                self.assertRegex(path.name, r'^[a-z0-9-]+-[0-9a-f]{16}\.yaml$')
                note = yaml.safe_load(path.read_text(encoding='utf-8'))
                self.assertLessEqual(set(note), SECTIONS)
                for section, entries in note.items():
                    if section == 'prelude':
                        self.assertIsInstance(entries, str)
                        continue
                    self.assertTrue(entries, section)
                    for entry in entries:
                        self.assertIsInstance(entry, str)
                        self.assertTrue(entry.strip())
