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

"""The page of a run: what is on it, and what can never be on it."""

import html.parser
import importlib.resources
import itertools
import re
import time
import unittest

from osc_drp import page
from osc_drp.engine import timeline
from osc_drp.tests.unit.engine import test_timeline

at, entry, restart = (
    test_timeline.at,
    test_timeline.entry,
    test_timeline.restart,
)

#: Elements without an end.
VOID = {'meta', 'br', 'link', 'img', 'input', 'hr'}
HOSTILE = (
    '<script>alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '</title></style><b>',
    '\u202egnp.exe',
    '{{ 7 * 7 }}{% raw %}',
    '&lt;b&gt;',
    'x' * 4000,
    '\ud800',
)


class Page(html.parser.HTMLParser):
    """Reads a page; unbalanced elements are an error."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.attributes = []
        self.text = ''
        self._open = []
        self.feed(text)
        self.close()
        if self._open:
            raise AssertionError(f'not closed: {self._open}')

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in VOID and tag not in ('li', 'p'):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in ('li', 'p'):
            return
        if not self._open or self._open.pop() != tag:
            raise AssertionError(f'</{tag}> at {self.getpos()}')

    def handle_data(self, data):
        self.text += data

    def styles(self, name):
        """Give the style of each bar of a class."""
        classes = [
            (a[2].split(), b[2])
            for a, b in itertools.pairwise(self.attributes)
            if a[:2] == ('span', 'class') and b[:2] == ('span', 'style')
        ]
        return [style for names, style in classes if name in names]


def make(*entries, state=timeline.FINISHED):
    """Make the page of a journal."""
    found = test_timeline.build(*entries)
    return page.render('20261122T030000Z-recover-ab12', found, state)


def hostile(text):
    """Make a journal with a text wherever one can be."""
    return (
        entry(0, 'begin', command=text, again=['openstack', text]),
        entry(1, 'names', servers={'s1': text}),
        entry(2, 'wave', number=text, servers=['s1', text]),
        entry(2, 'step', step=text, state='begin'),
        *restart(3, status='failed', what=text),
        *restart(14, server=text, status=text, what=text),
        entry(30, 'outcome', action=text, server=text, volume=text),
        entry(31, 'lock', server=text),
        entry(32, text, thing=text),
        entry(33, 'plan', steps={text: 5}),
    )


class TestSelfContained(unittest.TestCase):
    """It needs a browser and nothing else, and can harm nobody."""

    def check(self, text):
        shown = Page(text)
        self.assertLessEqual(
            set(shown.tags) & {'script', 'link', 'img', 'iframe', 'object'},
            set(),
        )
        for tag, name, value in shown.attributes:
            self.assertNotIn(name, ('src', 'href', 'srcset', 'action'), tag)
            self.assertFalse(name.startswith('on'), (tag, name))
            if name == 'style':
                self.assertRegex(
                    value,
                    r'^(left: [\d.]+%(; width: [\d.]+%)?'
                    r'|background: var\(--gap\))$',
                )
        styles = text[text.index('<style>') : text.index('</style>')]
        self.assertNotRegex(styles, r'url\(|@import|//')
        return shown

    def test_a_normal_one(self):
        text = make(
            entry(0, 'begin', command='recover'), *restart(1), entry(20, 'end')
        )
        self.check(text)
        self.assertNotRegex(text, r'https?:')
        self.assertIn("default-src 'none'; style-src 'unsafe-inline'", text)

    def test_hostile_names(self):
        plain = self.check(make(*hostile('x')))
        for name in HOSTILE:
            with self.subTest(ascii(name[:20])):
                text = make(*hostile(name))
                shown = self.check(text)
                self.assertEqual(plain.tags, shown.tags)
                self.assertIn(name, shown.text)

    def test_direction_of_a_name_stays_in_it(self):
        name = '\u202ebew'
        text = make(
            entry(0, 'begin', command='recover'),
            entry(0, 'names', servers={'s1': name}),
            *restart(1, status='failed', what=name),
            entry(20, 'guest', what=name),
        )
        body = text.partition('<main>')[2]
        found = [m.start() for m in re.finditer(name, body)]
        self.assertGreater(len(found), 4)
        for place in found:
            before = body[:place]
            self.assertTrue(
                before.rfind('<bdi>') > before.rfind('</bdi>')
                # in an attribute
                or before.rfind('="') > before.rfind('>'),
                before[-60:],
            )

    def test_the_template_is_a_package_file(self):
        names = [
            f.name
            for f in importlib.resources.files('osc_drp')
            .joinpath('templates')
            .iterdir()
        ]
        self.assertEqual(['run.html.j2'], names)


class TestContent(unittest.TestCase):
    """What the operator's manager reads."""

    def test_all_well(self):
        text = Page(
            make(
                entry(0, 'begin', command='servers restart'),
                entry(0, 'names', servers={'s1': 'web1'}),
                *restart(1),
                entry(252, 'end'),
            )
        ).text
        for words in (
            '4 min 12 s',
            'Nothing is open',
            'web1',
            '2026-11-22 03:00:00 UTC',
        ):
            self.assertIn(words, text)
        self.assertNotIn('What is open', text)

    def test_open_and_next(self):
        shown = Page(
            make(
                entry(
                    0,
                    'begin',
                    command='servers restart',
                    again=['openstack', 'drp', 'x', 'my map'],
                ),
                entry(0, 'names', servers={'s2': 'web2'}),
                entry(0, 'plan', steps={'restart': 4}),
                *restart(1),
                *restart(1, server='s2', status='failed', what='No host'),
                *restart(1, server='s3', status='open', what='was stopped'),
                entry(20, 'end'),
            )
        )
        text = ' '.join(shown.text.split())
        self.assertIn('finished, not all well', text)
        self.assertIn('web2: restart: No host', text)
        self.assertIn('s3: restart: was stopped', text)
        self.assertIn('restart: 1 planned, and never begun', text)
        self.assertIn("openstack drp x 'my map'", text)
        self.assertEqual(1, len(shown.styles('failed')))
        self.assertEqual(1, len(shown.styles('open')))

    def test_older_journal_without_words(self):
        text = make(
            entry(0, 'begin', command='servers restart'),
            *restart(1, status='failed'),
            entry(20, 'end'),
        )
        self.assertIn('same map and the same selection', text)

    def test_unfinished(self):
        text = make(
            entry(0, 'begin', command='servers restart', again=['again!']),
            state=timeline.CUT,
        )
        self.assertIn('did not come to its end', text)
        self.assertIn('again!', text)
        self.assertNotIn('Nothing is open', text)

    def test_under_way_nothing_is_to_be_typed(self):
        text = make(
            entry(0, 'begin', command='servers restart', again=['again!']),
            *restart(1)[:1],
            state=timeline.UNDER_WAY,
        )
        self.assertIn('wait for it', text)
        self.assertNotIn('again!', text)

    def test_waves(self):
        text = Page(
            make(
                entry(0, 'begin', command='recover'),
                entry(0, 'wave', number=1, servers=['s2']),
                *restart(1, server='s2'),
                entry(12, 'wave', number=2, servers=['s1']),
                *restart(13, server='s1'),
                *restart(30, server='s3'),
                entry(41, 'end'),
            )
        ).text
        places = [
            text.index(words)
            for words in (
                *('Wave 1 · servers: 1', 's2', 'Wave 2', 's1'),
                *('In no wave', 's3'),
            )
        ]
        self.assertEqual(sorted(places), places)

    def test_interrupted(self):
        text = Page(
            make(
                entry(0, 'begin', command='servers restart'),
                *restart(1)[:1],
                entry(7201, 'resume'),
                *restart(7202),
                entry(7213, 'end'),
            )
        ).text
        self.assertIn('2 h 0 min', text)
        self.assertIn('interrupted once, 2 h 0 min of it without work', text)
        self.assertIn('nobody worked', text)


class TestAxis(unittest.TestCase):
    """Where a time lies."""

    def axis(self, *entries):
        return page.Axis(
            test_timeline.build(entry(0, 'begin', command='x'), *entries)
        )

    def test_in_proportion(self):
        axis = self.axis(entry(200, 'end'))
        self.assertEqual(
            [0, 25, 100], [axis.percent(at(n)) for n in (0, 50, 200)]
        )

    def test_hours_without_power_leave_room_for_the_work(self):
        axis = self.axis(
            entry(50, 'x'), entry(9050, 'resume'), entry(9100, 'end')
        )
        places = [axis.percent(at(n)) for n in (0, 50, 9050, 9100)]
        self.assertEqual(sorted(places), places)
        self.assertEqual((0, 100), (places[0], round(places[3])))
        self.assertLess(places[2] - places[1], 7)
        self.assertEqual([True], [p.gap for p in axis.pieces if p.gap])

    def test_a_short_break_is_in_proportion(self):
        axis = self.axis(
            entry(50, 'x'), entry(55, 'resume'), entry(100, 'end')
        )
        self.assertEqual(50, axis.percent(at(50)))
        self.assertEqual(55, axis.percent(at(55)))
        self.assertFalse(any(p.gap for p in axis.pieces))

    def test_the_clock_was_set_right_meanwhile(self):
        # a machine without battery begins in 1970
        begun = time.monotonic()
        axis = self.axis(
            entry(0.5, 'x'), entry(600, 'resume'), entry(1.8e9, 'end')
        )
        self.assertTrue(axis.marks())
        self.assertLess(time.monotonic() - begun, 5)

    def test_marks_are_round_and_apart(self):
        for length in (1, 7, 61, 600, 4000, 90000, 900000):
            axis = self.axis(entry(length, 'end'))
            marks = axis.marks()
            with self.subTest(length):
                self.assertTrue(1 <= len(marks) <= 12)
                self.assertEqual(
                    ('0:00:00', 0), (marks[0].text, marks[0].left)
                )
                for a, b in itertools.pairwise(marks):
                    self.assertGreater(b.left - a.left, 7)

    def test_nothing_lasted(self):
        axis = self.axis()
        self.assertEqual(0, axis.percent(at(0)))
        self.assertEqual(100, axis.percent(at(5)))

    def test_bars_are_inside(self):
        text = make(
            entry(0, 'begin', command='x'),
            *restart(0, took=1),
            *restart(99, took=1),
            entry(100, 'end'),
        )
        for left, width in re.findall(
            r'left: ([\d.]+)%; width: ([\d.]+)%', text
        ):
            self.assertLessEqual(float(left) + float(width), 100.1)

    def test_bars_of_one_server_that_overlap_have_lanes(self):
        text = make(
            entry(0, 'begin', command='recover'),
            restart(0)[0],
            test_timeline.attach(10, 'intent'),
            test_timeline.attach(20, 'outcome', status='done'),
            restart(0, took=50)[-1],
            entry(100, 'end'),
        )
        self.assertEqual(2, text.count('<div class="lane">'))


class TestWords(unittest.TestCase):
    """Spans of time."""

    def test_duration(self):
        for seconds, words in (
            (0, '0.0 s'),
            (59.94, '59.9 s'),
            (60, '1 min 0 s'),
            (3599, '59 min 59 s'),
            (8000, '2 h 13 min'),
        ):
            self.assertEqual(words, page.duration(seconds))
