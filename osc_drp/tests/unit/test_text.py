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

"""Words of strangers on a terminal."""

import unittest

from osc_drp import text

#: Erases the screen, turns the text around, and hides what follows.
EVIL = 'a\x1b[2J\u202eb\u061c\u2066\ufeffc'


class TestPlain(unittest.TestCase):
    """What a terminal would obey."""

    def test_nothing_is_obeyed(self):
        for shown in text.plain(EVIL), text.one_line(EVIL):
            with self.subTest(shown):
                self.assertEqual('a[2Jbc', shown.replace(' ', ''))

    def test_lines_stay(self):
        self.assertEqual('a\n  b c', text.plain('a\n  b\rc'))
