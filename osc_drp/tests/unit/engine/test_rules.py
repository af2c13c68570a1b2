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

"""The gates and rules, each at least once, and what none may ever allow."""

import unittest

import hypothesis
from hypothesis import strategies as st

from osc_drp.engine import facts
from osc_drp.engine import rules
from osc_drp.tests.unit.engine import build

A = rules.Action
OLD = '2026-11-22T02:00:00Z'
OLDER = '2026-11-22T01:00:00Z'
NEVER = (
    'creating',
    'downloading',
    'deleting',
    'error_deleting',
    'restoring-backup',
    'error_restoring',
    'reverting',
    'awaiting-transfer',
    'managing',
    'unmanaging',
    'error_managing',
    'error_managing_deleting',
    'error_unmanaging',
    'error_backing-up',
    'error_extending',
    'retyping',
    'extending',
    'maintenance',
    'never heard of',
    '',
)


class TestCase(unittest.TestCase):
    """Judges what a test describes."""

    def assertVerdict(self, rule, action, /, **changes):
        found = rules.judge(build.pair(**changes))
        self.assertEqual((rule, action), (found.rule, found.action), found)
        return found.reason


class TestGates(TestCase):
    """Gates G1 to G11; the nearest negative is what R1 says."""

    def test_baseline_agrees(self):
        self.assertVerdict('R1', A.NONE)

    def test_g1_no_volume(self):
        self.assertVerdict('G1', A.FLAG, volume=None)

    def test_g2_migration_in_flight(self):
        for word in 'migrating', 'starting', 'completing', 'target:v9':
            reason = self.assertVerdict(
                'G2', A.FLAG, volume=build.volume(migration_status=word)
            )
            self.assertIn(word, reason)
        for word in None, '', 'none', 'success', 'error':
            self.assertVerdict(
                'R1', A.NONE, volume=build.volume(migration_status=word)
            )

    def test_g3_status_never_overwritten(self):
        for status in NEVER:
            reason = self.assertVerdict(
                'G3', A.FLAG, volume=build.volume(status=status)
            )
            self.assertIn(status, reason)

    def test_g4_cinder_finishes(self):
        for status in 'uploading', 'backing-up':
            self.assertVerdict(
                'G4', A.FLAG, volume=build.volume(status=status)
            )

    def test_g5_host_attachment(self):
        host = build.row(id='h', server_id=None)
        self.assertVerdict('G5', A.FLAG, other_rows=(host,))
        self.assertVerdict('R1', A.NONE, other_rows=(build.row('s2'),))

    def test_g6_building(self):
        self.assertVerdict('G6', A.FLAG, building=True)

    def test_g6_mapping_without_a_server(self):
        self.assertVerdict('G6', A.FLAG, server=None)
        # without a mapping it is R4
        self.assertVerdict('R4', A.RELEASE, server=None, mappings=())

    def test_g6_busy(self):
        reason = self.assertVerdict(
            'G6', A.FLAG, server=build.server(task_state='powering-off')
        )
        self.assertIn('powering-off', reason)

    def test_g6_other_states(self):
        for state in 'rescued', 'resized', 'building', 'deleted', '':
            self.assertVerdict(
                'G6', A.FLAG, server=build.server(vm_state=state)
            )
        for state in 'active', 'stopped', 'error':
            self.assertVerdict(
                'R1', A.NONE, server=build.server(vm_state=state)
            )

    def test_g7_shelved(self):
        server = build.server(vm_state='shelved_offloaded', host=None)
        reserved = build.row(attach_status='reserved', connector=False)
        self.assertVerdict(
            'G7',
            A.LEAVE,
            server=server,
            volume=build.volume(status='reserved'),
            rows=(reserved,),
        )
        self.assertVerdict(
            'G7', A.LEAVE, server=build.server(vm_state='shelved')
        )
        # freed by somebody's UPDATE: its row says what it should be
        self.assertVerdict(
            'G7',
            A.REPAIR,
            server=server,
            volume=build.free(),
            rows=(reserved,),
        )
        # anything else of a shelved server is a person's case
        for changes in (
            {'volume': build.free(), 'rows': ()},
            {'rows': ()},
            {'mappings': ()},
            {'rows': (reserved, build.row(id='b'))},
        ):
            changes['server'] = server
            self.assertVerdict('G6', A.FLAG, **changes)

    def test_g8_frozen(self):
        for state in 'paused', 'suspended', 'soft-delete':
            server = build.server(vm_state=state)
            self.assertVerdict('G8', A.LEAVE, server=server)
            self.assertVerdict('G6', A.FLAG, server=server, rows=())

    def test_g9_running_guest(self):
        server = build.running()
        self.assertVerdict('R1', A.NONE, server=server)
        # making a volume less free is allowed while the guest runs
        self.assertVerdict('R2', A.REPAIR, server=server, volume=build.free())
        self.assertVerdict(
            'R3',
            A.REPAIR,
            server=server,
            volume=build.free(),
            rows=(),
            old_rows=(build.gone(build.row()),),
        )
        for changes in (
            {'mappings': ()},
            {'rows': ()},
            {'rows': (build.row(), build.row(id='b'))},
            {
                'rows': (),
                'mappings': (build.mapping(connected=False),),
            },
        ):
            self.assertVerdict('G9', A.FLAG, server=server, **changes)

    def test_g11_legacy(self):
        legacy = (build.mapping(attachment_id=None),)
        self.assertVerdict('G11', A.LEAVE, mappings=legacy)
        for changes in (
            {'rows': ()},
            {'rows': (build.row(), build.row(id='b'))},
            {'volume': build.free()},
        ):
            changes['mappings'] = legacy
            self.assertVerdict('G11', A.FLAG, **changes)


class TestRules(TestCase):
    """R1 to R8."""

    def test_r1_by_api_what_it_cannot_see_counts_as_well(self):
        self.assertVerdict(
            'R1',
            A.NONE,
            volume=build.volume(attach_status=None),
            mappings=(build.mapping(connected=None),),
            rows=(build.row(connector=None),),
            migrating=None,
        )

    def test_r1_needs_every_word(self):
        for changes in (
            {'volume': build.volume(status='available')},
            {'volume': build.volume(attach_status='detached')},
            {'rows': (build.row(attach_status='attaching'),)},
            {'rows': (build.row(id='other'),)},
            {'mappings': (build.mapping(connected=False),)},
            {'mappings': (build.mapping(), build.mapping(device='vdc'))},
        ):
            with self.subTest(changes):
                found = rules.judge(build.pair(**changes))
                self.assertNotEqual('R1', found.rule)

    def test_r2_cinders_words_are_wrong(self):
        for status in (
            'in-use',
            'available',
            'attaching',
            'detaching',
            'reserved',
            'error',
        ):
            for word in 'attached', 'attaching', 'reserved', 'detaching':
                if (status, word) == ('in-use', 'attached'):
                    continue
                reason = self.assertVerdict(
                    'R2',
                    A.REPAIR,
                    volume=build.volume(status=status),
                    rows=(build.row(attach_status=word),),
                )
                self.assertIn(f'{status}/{word}', reason)

    def test_r2_also_for_roots_and_multiattach(self):
        self.assertVerdict(
            'R2',
            A.REPAIR,
            volume=build.free(),
            mappings=(build.mapping(root=True),),
        )
        self.assertVerdict(
            'R2',
            A.REPAIR,
            volume=build.free(multiattach=True),
            other_rows=(build.row('s2'),),
            other_mappings=(build.mapping('s2'),),
        )

    def test_r2_needs_the_connector_and_its_host(self):
        for changes in (
            {'connector': False},
            {'connector': None},
            {'host': None},
            {'host': 'compute9'},
        ):
            self.assertVerdict(
                'R8',
                A.FLAG,
                volume=build.free(),
                rows=(build.row(**changes),),
            )
        self.assertVerdict(
            'R8',
            A.FLAG,
            volume=build.free(),
            mappings=(build.mapping(connected=False),),
            # not R5 either: the row is attached
        )

    def test_r2_not_if_another_has_a_volume_of_one_user(self):
        for changes in (
            {'other_rows': (build.row('s2'),)},
            {'other_mappings': (build.mapping('s2'),)},
        ):
            self.assertVerdict('R8', A.FLAG, volume=build.free(), **changes)

    def test_r3_cinder_forgot(self):
        for root in True, False:
            self.assertVerdict(
                'R3',
                A.REPAIR,
                volume=build.free(),
                mappings=(build.mapping(root=root),),
                rows=(),
                old_rows=(build.gone(build.row()),),
            )

    def forgotten(self, **changes):
        values = {
            'volume': build.free(),
            'rows': (),
            'old_rows': (build.gone(build.row(), OLD),),
        }
        return {**values, **changes}

    def test_r3_needs_the_row_of_this_server_host_and_connector(self):
        self.assertVerdict('R3', A.REPAIR, **self.forgotten())
        for changes in (
            {'server_id': 's2'},
            {'host': 'compute9'},
            {'connector': False},
            {'id': 'other'},
        ):
            old = build.gone(build.row(**changes), OLD)
            self.assertVerdict('R8', A.FLAG, **self.forgotten(old_rows=(old,)))

    def test_r3_not_if_somebody_used_the_volume_meanwhile(self):
        old = build.gone(build.row(), OLD)
        for at, rule in ((OLDER, 'R3'), (OLD, 'R8'), (build.LATER, 'R8')):
            other = build.gone(
                build.row('s2', id='b', created_at=at), build.LATER
            )
            found = rules.judge(
                build.pair(**self.forgotten(old_rows=(old, other)))
            )
            with self.subTest(at):
                self.assertEqual(rule, found.rule)

    def test_r3_an_attach_shorter_than_a_second_is_no_other_use(self):
        old = build.gone(build.row(created_at=OLD), OLD)
        self.assertVerdict('R3', A.REPAIR, **self.forgotten(old_rows=(old,)))

    def test_r3_not_if_another_server_has_it(self):
        other = {
            'other_rows': (build.row('s2', created_at=OLDER),),
            'other_mappings': (build.mapping('s2'),),
        }
        for key, value in other.items():
            self.assertVerdict('R8', A.FLAG, **self.forgotten(**{key: value}))
        # a multiattach volume may be with others
        self.assertVerdict(
            'R3',
            A.REPAIR,
            **self.forgotten(volume=build.volume(multiattach=True), **other),
        )

    def test_r3a_users_detach_was_nearly_done(self):
        detach = build.action('detach_volume')
        self.assertVerdict(
            'R3a', A.RESET, **self.forgotten(unfinished=(detach,))
        )
        for rule, changes in (
            ('R3', {'unfinished': (build.action('attach_volume'),)}),
            ('R3', {'mappings': (build.mapping(root=True),)}),
            ('R3', {'compute_up': None}),
            ('R3', {'server': build.running()}),
        ):
            changes = {'unfinished': (detach,), **changes}
            self.assertVerdict(rule, A.REPAIR, **self.forgotten(**changes))

    def test_r4_cinder_remembers(self):
        self.assertVerdict('R4', A.RELEASE, mappings=())
        for server in (
            build.running(),
            build.server(vm_state='active'),
            build.server(power_state=facts.RUNNING),
        ):
            found = rules.judge(build.pair(server=server, mappings=()))
            self.assertIs(A.FLAG, found.action)
        for changes in (
            {'compute_up': None},
            {'compute_up': False},
            {'migrating': True},
            {'migrating': None},
            {'server': build.server(launched=False)},
            {'server': build.server(cell='cell0')},
        ):
            changes['mappings'] = ()
            self.assertVerdict('R8', A.FLAG, **changes)

    def test_r4_never_the_row_of_a_root_whose_mapping_is_gone(self):
        # released, it would be free for its owner to delete
        self.assertVerdict(
            'R8', A.FLAG, mappings=(), rows=(build.row(device='/dev/vda'),)
        )
        self.assertVerdict(
            'R8',
            A.FLAG,
            mappings=(),
            dropped=(build.gone(build.mapping(root=True)),),
        )

    def test_r5_attach_never_finished(self):
        unconnected = build.mapping(connected=False)
        for rows in (
            (),
            (build.row(attach_status='reserved'),),
            (build.row(attach_status='attaching'),),
        ):
            self.assertVerdict(
                'R5',
                A.RESET,
                volume=build.volume(status='attaching'),
                mappings=(unconnected,),
                rows=rows,
            )
        for changes in (
            {'mappings': (build.mapping(connected=False, root=True),)},
            {'mappings': (build.mapping(connected=None),)},
            {'rows': (build.row(),)},
            {'compute_up': False},
            {'server': build.server(cell='cell0')},
            {'server': build.server(launched=False)},
        ):
            values = {
                'volume': build.volume(status='attaching'),
                'mappings': (unconnected,),
                'rows': (),
                **changes,
            }
            self.assertVerdict('R8', A.FLAG, **values)

    def test_r5_not_after_a_failed_refresh(self):
        made = build.mapping(connected=False, created_at=OLD)
        for at, rule in ((OLDER, 'R5'), (build.LATER, 'R8')):
            old = build.gone(build.row(id='b', created_at=OLDER), at)
            found = rules.judge(
                build.pair(
                    volume=build.volume(status='reserved'),
                    mappings=(made,),
                    rows=(),
                    old_rows=(old,),
                )
            )
            with self.subTest(at):
                self.assertEqual(rule, found.rule)

    def test_r6_leftover(self):
        rows = (build.row(), build.row(id='b'))
        self.assertVerdict('R6', A.RELEASE, rows=rows)
        for changes in (
            {'migrating': True},
            {'migrating': None},
            {'rows': (build.row(connector=None), rows[1])},
            {'rows': (build.row(attach_status='attaching'), rows[1])},
            {'rows': (build.row(id='c'), rows[1])},
            # its guest may be the one that the other row serves
            {'compute_up': False},
            {'server': build.server(vm_state='active')},
        ):
            values = {'rows': rows, **changes}
            self.assertVerdict('R8', A.FLAG, **values)

    def test_a_volume_in_error_is_repaired_or_flagged_only(self):
        # any other action would compute its status anew, and hide the error
        error = build.volume(status='error')
        old = build.gone(build.row())
        for changes in (
            {'mappings': ()},
            {'rows': (build.row(), build.row(id='b'))},
            {'rows': (), 'old_rows': (old,)},
            {
                'rows': (),
                'old_rows': (old,),
                'unfinished': (build.action('detach_volume'),),
            },
            {'rows': (), 'mappings': (build.mapping(connected=False),)},
        ):
            self.assertVerdict('R8', A.FLAG, volume=error, **changes)

    def test_r2_of_a_detach_says_so(self):
        reason = self.assertVerdict(
            'R2', A.REPAIR, volume=build.volume(status='detaching')
        )
        self.assertIn('a user wanted it off', reason)

    def alone(self, **changes):
        values = {
            'server_id': '',
            'server': None,
            'volume': build.free(status='reserved'),
            'mappings': (),
            'rows': (),
            'compute_up': None,
        }
        return {**values, **changes}

    def test_r7_nobody_has_it(self):
        for status in 'reserved', 'attaching', 'detaching':
            reason = self.assertVerdict(
                'R7',
                A.RELEASE,
                **self.alone(volume=build.free(status=status)),
            )
            self.assertIn(status, reason)
        for rule, changes in (
            ('R8', {'volume': build.free()}),
            ('R8', {'volume': build.free(status='in-use')}),
            ('R8', {'volume': build.free(status='error')}),
            ('R8', {'other_rows': (build.row('s2'),)}),
            ('R8', {'other_mappings': (build.mapping('s2'),)}),
            ('G3', {'volume': build.free(status='deleting')}),
            (
                'G2',
                {
                    'volume': build.free(
                        status='reserved', migration_status='target:v2'
                    )
                },
            ),
        ):
            self.assertVerdict(rule, A.FLAG, **self.alone(**changes))

    def test_r8_ids_differ(self):
        self.assertVerdict('R8', A.FLAG, rows=(build.row(id='other'),))
        self.assertVerdict('R8', A.FLAG, rows=())


class TestOwnHalf(TestCase):
    """A reset of ours that was killed in the middle."""

    def half(self, **changes):
        values = {
            'mappings': (),
            'dropped': (build.gone(build.mapping()),),
        }
        return build.pair(**{**values, **changes})

    def test_own_half(self):
        self.assertTrue(rules.own_half(self.half()))

    def test_not_own_half(self):
        for changes in (
            {'dropped': ()},
            {'mappings': (build.mapping(),)},
            {'rows': (build.row(attach_status='detaching'),)},
            {'rows': (build.row(), build.row(id='b'))},
            {'rows': ()},
            {'server': None},
            {'server': build.running()},
            {'compute_up': False},
            {'volume': build.volume(status='retyping')},
            {'dropped': (build.gone(build.mapping(root=True)),)},
        ):
            with self.subTest(changes):
                self.assertFalse(rules.own_half(self.half(**changes)))


STATUSES = st.sampled_from(
    [*rules.KNOWN_STATUSES, *rules.CINDER_FINISHES, *NEVER]
)
TIMES = st.sampled_from([OLDER, OLD, build.LATER, None])
TRUTHS = st.sampled_from([True, False, None])
WORDS = st.sampled_from(
    ['attached', 'attaching', 'reserved', 'detaching', 'error_attaching']
)
IDS = st.sampled_from(['a1', 'a2', None])


def _records(owners):
    mappings = st.builds(
        build.mapping,
        owners,
        attachment_id=IDS,
        root=st.booleans(),
        connected=TRUTHS,
        created_at=TIMES,
    )
    rows = st.builds(
        build.row,
        owners,
        id=st.sampled_from(['a1', 'a2']),
        attach_status=WORDS,
        host=st.sampled_from([build.HOST, 'compute2', None]),
        connector=TRUTHS,
        created_at=TIMES,
        device=st.sampled_from(['/dev/vda', '/dev/vdb', None]),
    )
    return mappings, rows


OURS, OUR_ROWS = _records(st.just('s1'))
OTHERS, OTHER_ROWS = _records(st.just('s2'))
SERVERS = st.builds(
    build.server,
    vm_state=st.sampled_from(
        ['active', 'stopped', 'error', 'paused', 'shelved', 'rescued', 'x']
    ),
    task_state=st.sampled_from([None, None, None, 'powering-off']),
    power_state=st.sampled_from([0, 1, 3, 4, 6, 7, 9]),
    launched=st.booleans(),
    cell=st.sampled_from(['cell1', 'cell0', None]),
)


def _tuples(strategy, most=2):
    return st.lists(strategy, max_size=most).map(tuple)


ANY = st.builds(
    build.pair,
    server_id=st.sampled_from(['s1', 's1', 's1', '']),
    server=st.one_of(st.none(), SERVERS, SERVERS),
    volume=st.one_of(
        st.none(),
        st.builds(
            build.volume,
            status=st.one_of(
                STATUSES, st.sampled_from(sorted(rules.KNOWN_STATUSES))
            ),
            multiattach=st.booleans(),
            migration_status=st.sampled_from(
                [None, None, 'success', 'migrating', 'target:v2']
            ),
        ),
    ),
    mappings=_tuples(OURS),
    rows=_tuples(OUR_ROWS),
    dropped=_tuples(OURS.map(build.gone)),
    old_rows=_tuples(st.one_of(OUR_ROWS, OTHER_ROWS).map(build.gone)),
    other_mappings=_tuples(OTHERS, 1),
    other_rows=_tuples(OTHER_ROWS, 1),
    unfinished=_tuples(
        st.sampled_from(
            [build.action('detach_volume'), build.action('reboot')]
        )
    ),
    migrating=TRUTHS,
    building=st.booleans(),
    compute_up=TRUTHS,
)


class TestAlways(unittest.TestCase):
    """What holds of every pair, however strange."""

    @hypothesis.settings(max_examples=500, deadline=None)
    @hypothesis.given(ANY)
    def test_never(self, pair):
        found = rules.judge(pair)
        self.assertEqual(found, rules.judge(pair))
        self.assertTrue(found.reason)
        self.assertNotIn('{', found.reason)
        writes = found.action in (A.REPAIR, A.RESET, A.RELEASE)
        frees = found.action in (A.RESET, A.RELEASE)
        volume = pair.volume
        if writes:
            self.assertIsNotNone(volume)
            self.assertIn(volume.status, rules.KNOWN_STATUSES)
            self.assertIn(volume.migration_status, rules.NO_MIGRATION)
            self.assertFalse(pair.building)
        if frees:
            self.assertNotEqual('error', volume.status)
            self.assertTrue(pair.server is None or rules.settled(pair))
        if found.action is A.RESET:
            self.assertFalse(any(m.root for m in pair.mappings))
        if found.action is A.REPAIR:
            self.assertIsNotNone(pair.mapping)
            if not volume.multiattach:
                self.assertEqual((), pair.other_rows)
                self.assertEqual((), pair.other_mappings)
        if rules.own_half(pair):
            self.assertEqual('R4', found.rule)
            self.assertFalse(any(m.root for m in pair.dropped))
