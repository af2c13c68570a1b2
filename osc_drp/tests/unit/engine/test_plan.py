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

"""The planners: pure, so tested from every state, half-done ones included."""

import dataclasses
import unittest

import hypothesis
from hypothesis import strategies as st

from osc_drp import exceptions
from osc_drp.engine import facts
from osc_drp.engine import plan
from osc_drp.engine import rules
from osc_drp.tests.unit.engine import build

Do = plan.Do
ALL = plan.Selection()


class TestSelect(unittest.TestCase):
    """What --server, --project, --host and --volume name."""

    def setUp(self):
        self.map = build.cloud_map(
            servers=[
                build.map_server('s1', name='web', host='c1'),
                build.map_server('s2', name='db', project_id='green'),
                build.map_server('s3', name='twin'),
                build.map_server('s4', name='twin', host='c1'),
            ],
            attachments=[
                build.attachment('s1', 'v1'),
                build.attachment('s1', 'v2'),
                build.attachment('s2', 'v3'),
                build.attachment('s3', 'v4'),
                build.attachment('s4', 'v4'),
            ],
        )

    def select(self, seen=None, **options):
        options = {k: tuple(v.split()) for k, v in options.items()}
        return plan.select(self.map, plan.Selection(**options), seen)

    def servers(self, seen=None, **options):
        return ' '.join(sorted(self.select(seen, **options).server_ids))

    def test_nothing_named_is_the_whole_map(self):
        found = self.select()
        self.assertEqual({'s1', 's2', 's3', 's4'}, found.server_ids)
        self.assertEqual(self.map.attachments, found.attachments)

    def test_names_and_ids(self):
        self.assertEqual('s1', self.servers(servers='web'))
        self.assertEqual('s1 s2', self.servers(servers='s2 web'))
        self.assertEqual('s2', self.servers(projects='green'))

    def test_an_id_wins_over_a_name(self):
        server = build.map_server('s5', name='s1')
        self.map = dataclasses.replace(
            self.map, servers=(*self.map.servers, server)
        )
        self.assertEqual('s1', self.servers(servers='s1'))

    def test_unknown(self):
        for options, text in (
            ({'servers': 'weeb'}, "no server 'weeb' in the map"),
            ({'volumes': 'v9'}, "no volume 'v9' in the map"),
            ({'projects': 'gren'}, "has the project 'gren'"),
            ({'hosts': 'c1 c9'}, "has the host 'c9'"),
        ):
            with self.assertRaisesRegex(exceptions.DrpError, text):
                self.select(**options)

    def test_ambiguous(self):
        with self.assertRaisesRegex(exceptions.DrpError, 'use its id'):
            self.select(servers='twin')

    def test_a_server_that_the_map_lacks_is_unknown(self):
        seen = build.seen([build.server('s9', name='new')])
        for name in 'new', 's9':
            with self.assertRaisesRegex(
                exceptions.DrpError, f"no server '{name}' in the map, only in"
            ):
                self.select(seen, servers=name)
        with self.assertRaisesRegex(exceptions.DrpError, "'old' in the map$"):
            self.select(seen, servers='old')
        self.assertEqual(frozenset(), self.select(seen).unmapped)

    def grown(self):
        """Show what the cloud has besides, and all of the map."""
        names = [(f's{n}', f'v{n}') for n in range(1, 5)]
        seen = build.agreeing(*names, ('s8', 'v8'), ('s9', 'v3'))
        servers = {
            's7': build.server('s7', launched=False),
            's8': build.server('s8', name='new', host='c8'),
            's9': build.server('s9', name='web', project_id='red'),
        }
        return dataclasses.replace(seen, servers={**seen.servers, **servers})

    def lost(self, **options):
        options = {k: tuple(v.split()) for k, v in options.items()}
        selection = plan.Selection(**options).lost_at(build.LATER)
        return plan.select(self.map, selection, self.grown())

    def test_lost_at_takes_what_the_map_lacks(self):
        found = self.lost()
        self.assertEqual({'s8', 's9'}, found.unmapped)
        whole = self.select(self.grown())
        self.assertEqual(whole, found._replace(unmapped=frozenset()))
        for options, unmapped in (
            ({'servers': 'new'}, {'s8'}),
            ({'servers': 's9'}, {'s9'}),
            ({'projects': 'red'}, {'s9'}),
            ({'hosts': 'c8'}, {'s8'}),
            ({'volumes': 'v8'}, {'s8'}),
        ):
            with self.subTest(options):
                found = self.lost(**options)
                self.assertEqual((frozenset(), (), unmapped), found)

    def test_lost_at_narrows_both(self):
        found = self.lost(volumes='v3')
        self.assertEqual(({'s2'}, {'s9'}), (found.server_ids, found.unmapped))
        self.assertEqual(['s2'], [a.server_id for a in found.attachments])
        with self.assertRaisesRegex(exceptions.DrpError, 'pick nothing'):
            self.lost(servers='new', projects='red')

    def test_lost_at_guesses_no_name(self):
        with self.assertRaisesRegex(exceptions.DrpError, 'use its id'):
            self.lost(servers='web')

    def test_lost_at_is_no_part_of_the_subject(self):
        named = plan.Selection(('s1',))
        self.assertEqual(named.subject(), named.lost_at(build.LATER).subject())

    def test_several_kinds_narrow(self):
        self.assertEqual('s1 s4', self.servers(hosts='c1'))
        self.assertEqual('s4', self.servers(hosts='c1', volumes='v4'))
        found = self.select(servers='web', volumes='v2 v3')
        self.assertEqual({'s1'}, found.server_ids)
        self.assertEqual(['v2'], [a.volume_id for a in found.attachments])

    def test_what_picks_nothing_together_is_an_error(self):
        with self.assertRaisesRegex(exceptions.DrpError, 'pick nothing'):
            self.select(servers='web', projects='green')
        with self.assertRaisesRegex(exceptions.DrpError, 'pick nothing'):
            self.select(servers='web', volumes='v3')

    def test_volume_names_come_from_the_cloud(self):
        seen = build.seen(volumes=[build.volume('v3', name='data')])
        self.assertEqual('s2', self.servers(seen, volumes='data'))

    def test_a_host_is_where_the_server_is_today(self):
        seen = build.seen([build.server('s1', host='c2')])
        self.assertEqual('s1', self.servers(seen, hosts='c2'))
        self.assertEqual('s4', self.servers(seen, hosts='c1'))

    def test_bare_map_takes_names_from_the_cloud(self):
        self.map = build.cloud_map(('s1', 'v1'), servers=[], bare=True)
        seen = build.seen([build.server('s1', name='now')])
        self.assertEqual('s1', self.servers(seen, servers='now'))
        self.assertEqual('s1', self.servers(seen, projects='blue'))

    def test_subject_is_the_same_for_any_order(self):
        one = plan.Selection(servers=('a', 'b'))
        two = plan.Selection(servers=('b', 'a'))
        self.assertEqual(one.subject(), two.subject())
        self.assertNotEqual(one.subject(), ALL.subject())


class TestStale(unittest.TestCase):
    """'One database looks older than the other'."""

    def stale(self, agree, nowhere=0, unnamed=0, limit=0.05, other=()):
        keys = [(f's{n}', f'v{n}') for n in range(agree)]
        mappings = [build.mapping(*k) for k in keys]
        rows = [build.row(*k) for k in keys]
        mappings += [build.mapping('m', f'm{n}') for n in range(nowhere)]
        rows += [build.row('r', f'r{n}') for n in range(unnamed)]
        seen = build.seen(mappings=mappings, rows=[*rows, *other])
        return plan.stale(seen, limit)

    def test_never_less_than_ten(self):
        self.assertEqual('', self.stale(0, nowhere=10))
        self.assertIn('11 mappings', self.stale(0, nowhere=11))
        self.assertEqual('', self.stale(0, unnamed=10))
        self.assertIn('11 attachments', self.stale(0, unnamed=11))

    def test_both_count(self):
        self.assertEqual('', self.stale(5, nowhere=5, unnamed=5))
        self.assertTrue(self.stale(5, nowhere=6, unnamed=5))

    def test_share_of_all_mappings(self):
        # 380 + 20 = 400 mappings, 5 % of them are 20
        self.assertEqual('', self.stale(380, nowhere=20))
        found = self.stale(380, nowhere=20, unnamed=1)
        self.assertIn('limit 20 of 400', found)
        self.assertEqual('', self.stale(380, nowhere=20, unnamed=1, limit=0.1))

    def test_limit_nought_still_leaves_ten(self):
        self.assertEqual('', self.stale(100, nowhere=10, limit=0))
        self.assertTrue(self.stale(100, nowhere=11, limit=0))

    def test_what_left_a_trace_does_not_count(self):
        # a naive reset: the rows are there, soft-deleted
        other = [build.gone(build.row('m', f'm{n}')) for n in range(50)]
        self.assertEqual('', self.stale(0, nowhere=50, other=other))
        # host attachments, rows that are in flight
        other = [build.row(None, f'h{n}') for n in range(50)]
        other += [
            build.row('f', f'f{n}', attach_status='reserved')
            for n in range(50)
        ]
        self.assertEqual('', self.stale(0, other=other))

    def test_our_own_halves_do_not_count(self):
        keys = [(f's{n}', f'v{n}') for n in range(50)]
        seen = build.seen(
            mappings=[build.gone(build.mapping(*k)) for k in keys],
            rows=[build.row(*k) for k in keys],
        )
        self.assertEqual('', plan.stale(seen, 0.05))

    def test_unfinished_and_legacy_mappings_do_not_count(self):
        for changes in {'connected': False}, {'attachment_id': None}:
            mappings = [
                build.mapping('s', f'v{n}', **changes) for n in range(50)
            ]
            seen = build.seen(mappings=mappings)
            self.assertEqual('', plan.stale(seen, 0.05))


class TestPowerHistory(unittest.TestCase):
    """Who stopped it?"""

    def history(self, *actions, since=build.TAKEN_AT, ours=()):
        return plan.power_history(actions, since, ours)

    def test_nothing(self):
        self.assertEqual(plan.PowerHistory(), self.history())

    def test_users_stop(self):
        found = self.history(build.action('stop'))
        self.assertEqual(plan.PowerHistory(stopped_by_user=True), found)

    def test_novas_own_stop(self):
        found = self.history(build.action('stop', user=None))
        self.assertEqual(plan.PowerHistory(stopped_by_nova=True), found)

    def test_before_the_map_says_nothing(self):
        for at in '2026-11-22T02:59:59Z', build.TAKEN_AT:
            found = self.history(build.action('stop', at))
            self.assertEqual(plan.PowerHistory(), found)

    def test_our_stop(self):
        stop = build.action('stop', request='req-ours')
        found = self.history(stop, ours={'req-ours'})
        self.assertEqual(plan.PowerHistory(stopped_by_us=True), found)
        found = self.history(stop, ours={'req-else'})
        self.assertTrue(found.stopped_by_user)

    def test_only_the_newest_power_action_counts(self):
        early, late = '2026-11-22T03:30:00Z', '2026-11-22T03:40:00Z'
        user, nova = build.action('stop', early), ('stop', late, None)
        # a second loss: started, then stopped by nova again
        found = self.history(
            user, build.action('start', '2026-11-22T03:35:00Z')
        )
        self.assertEqual(plan.PowerHistory(), found)
        found = self.history(build.action(*nova), user)
        self.assertEqual(plan.PowerHistory(stopped_by_nova=True), found)
        # other actions tell nothing about power
        found = self.history(user, build.action('attach_volume', late))
        self.assertTrue(found.stopped_by_user)

    def test_our_stops_are_those_right_after_what_the_journal_noted(self):
        log = [
            build.action('start', user='me', request='r5'),
            build.action('stop', user='me', request='r4'),
            build.action('stop', user='me', request='r3'),
            build.action('stop', user='user', request='r2'),
            build.action('create', user='user', request='r1'),
        ]
        self.assertEqual({'r4'}, plan.our_stops(log, ['r3'], 'me'))
        # right after r1 it was a user, not we
        self.assertEqual(frozenset(), plan.our_stops(log, ['r1'], 'me'))
        self.assertEqual({'r3', 'r4'}, plan.our_stops(log, ['r2', 'r3'], 'me'))
        # r5 is no stop
        self.assertEqual(frozenset(), plan.our_stops(log, ['r4'], 'me'))
        self.assertEqual(frozenset(), plan.our_stops(log, [], 'me'))
        # the log was empty before
        self.assertEqual({'r4'}, plan.our_stops(log[1:2], [None], 'me'))

    def test_since_the_map_or_since_the_loss(self):
        cloud_map = build.cloud_map(
            servers=[
                build.map_server('s1'),
                build.map_server('s2', vm_state='stopped'),
            ],
            attachments=[],
        )
        for server_id, lost_at, since in (
            ('s1', None, build.TAKEN_AT),
            ('s1', build.LATER, build.TAKEN_AT),
            ('s2', None, build.TAKEN_AT),
            ('s2', build.LATER, build.LATER),
        ):
            found = plan.history_since(cloud_map, server_id, lost_at)
            self.assertEqual(since, found, (server_id, lost_at))

    def test_a_map_in_which_nothing_ran_needs_lost_at(self):
        cloud_map = build.cloud_map(
            servers=[build.map_server(vm_state='stopped')], attachments=[]
        )
        with self.assertRaisesRegex(exceptions.Refused, '--lost-at'):
            plan.check_map(cloud_map, None)
        plan.check_map(cloud_map, build.LATER)
        plan.check_map(build.cloud_map(('s1', 'v1')), None)


ANY = object()


class TestDecideRestart(unittest.TestCase):
    """The table of DESIGN 6, less --cinder-only."""

    def decide(
        self,
        server,
        *pairs,
        wanted=ANY,
        history=None,
        settled=True,
        runs=ANY,
        in_map=(),
        **look,
    ):
        if runs is not ANY:
            look.update(runs=runs, asked=True)
        return plan.decide_restart(
            build.map_server() if wanted is ANY else wanted,
            server,
            list(pairs),
            history or plan.PowerHistory(),
            plan.Look(settled=settled, **look),
            in_map,
            lost=look.pop('lost', False),
        )

    def test_table(self):
        fine = build.pair()
        root = build.pair(mappings=(build.mapping(root=True),))
        gone = build.pair(rows=())
        lost_root = build.pair(mappings=(build.mapping(root=True),), rows=())
        forgot = build.pair(
            rows=(),
            volume=build.free(),
            old_rows=(build.gone(build.row()),),
        )
        shielded = build.pair(volume=build.volume(status='reserved'))
        half = build.pair(mappings=(), dropped=(build.gone(build.mapping()),))
        off = build.server()
        on = build.running()
        dark = build.server(vm_state='active')
        no_state = build.server(vm_state='active', power_state=facts.NOSTATE)
        error = build.server(vm_state='error')
        in_map = {('s1', 'v1')}
        for line, (server, pairs, look, do) in enumerate(
            [
                # SHUTOFF
                (off, [], {}, Do.START),
                (off, [fine], {}, Do.START),
                (off, [root, fine], {}, Do.START),
                (off, [fine, gone], {}, Do.FLAG),
                (off, [lost_root], {}, Do.FLAG),
                (off, [forgot], {}, Do.FLAG),
                (off, [shielded], {}, Do.FLAG),
                (off, [half], {'in_map': in_map}, Do.FLAG),
                (off, [half], {}, Do.START),
                (off, [fine], {'started': True}, Do.FLAG),
                (off, [fine], {'settled': False}, Do.START),
                # ACTIVE
                (on, [fine], {'settled': False}, Do.WAIT),
                (on, [fine], {}, Do.PROVE),
                (on, [fine], {'runs': True}, Do.NOTHING),
                (on, [gone], {'runs': True}, Do.NOTHING),
                (on, [fine], {'runs': None}, Do.FLAG),
                (on, [fine], {'runs': False}, Do.STOP),
                (on, [gone], {'runs': False}, Do.FLAG),
                (dark, [fine], {'settled': False}, Do.WAIT),
                (dark, [fine], {}, Do.STOP),
                (dark, [gone], {}, Do.FLAG),
                (no_state, [fine], {}, Do.STOP),
                # ERROR
                (error, [fine], {}, Do.STOP),
                (error, [lost_root], {}, Do.FLAG),
                (error, [fine], {'started': True}, Do.FLAG),
            ]
        ):
            with self.subTest(line=line):
                item = self.decide(server, *pairs, **look)
                self.assertIs(do, item.do, item)
                self.assertEqual(('s1', ''), (item.server_id, item.volume_id))
                self.assertTrue(item.reason)

    def test_busy_is_waited_for_whatever_its_state(self):
        for state in 'active', 'stopped', 'error':
            server = build.server(vm_state=state, task_state='powering-off')
            item = self.decide(server, build.pair(rows=()))
            self.assertIs(Do.WAIT, item.do)
            self.assertIn('powering-off', item.reason)

    def test_any_other_state_is_a_persons_case(self):
        for state in 'paused', 'suspended', 'rescued', 'resized', 'building':
            item = self.decide(build.server(vm_state=state))
            self.assertIs(Do.FLAG, item.do)

    def test_who_is_left_alone(self):
        user = plan.PowerHistory(stopped_by_user=True)
        for changes, text in (
            ({'wanted': None}, 'map'),
            ({'server': None}, 'deleted'),
            ({'server': build.server(vm_state='soft-delete')}, 'deleted'),
            ({'wanted': build.map_server(vm_state='stopped')}, 'not run'),
            (
                {'wanted': build.map_server(power_state=facts.SHUTDOWN)},
                'not run',
            ),
            ({'history': user}, 'user stopped'),
            ({'history': user, 'lost': True}, 'user stopped'),
            ({'server': build.server(vm_state='shelved')}, 'shelved'),
            (
                {'server': build.server(vm_state='shelved_offloaded')},
                'shelved',
            ),
        ):
            values = {'server': build.server(), 'wanted': ANY, **changes}
            server = values.pop('server')
            lost = values.pop('lost', False)
            wanted = values.pop('wanted')
            why = plan.why_not_restart(
                build.map_server() if wanted is ANY else wanted,
                server,
                values.get('history', plan.PowerHistory()),
                lost,
            )
            self.assertIs(Do.LEAVE, why[0])
            self.assertIn(text, why[1])
            if not lost:
                item = self.decide(server, wanted=wanted, **values)
                self.assertEqual(why, (item.do, item.reason))

    def test_lost_counts_as_ran(self):
        off = build.map_server(vm_state='stopped')
        for lost, do in ((True, Do.START), (False, Do.LEAVE)):
            item = plan.decide_restart(
                off,
                build.server(),
                [],
                plan.PowerHistory(stopped_by_nova=True),
                plan.Look(settled=True),
                lost=lost,
            )
            self.assertIs(do, item.do)

    def test_our_own_stop_is_resumed(self):
        history = plan.PowerHistory(stopped_by_us=True)
        self.assertIs(
            Do.START, self.decide(build.server(), history=history).do
        )

    def test_never_a_start_over_a_guest_that_runs(self):
        # nova's start hard-reboots a libvirt guest that runs
        off = build.server(power_state=facts.RUNNING)
        self.assertIs(Do.WAIT, self.decide(off, settled=False).do)
        self.assertIs(Do.FLAG, self.decide(off).do)
        error = build.server(vm_state='error', power_state=facts.RUNNING)
        self.assertIs(Do.WAIT, self.decide(error, settled=False).do)
        self.assertIs(Do.PROVE, self.decide(error).do)
        self.assertIs(Do.FLAG, self.decide(error, runs=True).do)
        self.assertIs(Do.FLAG, self.decide(error, runs=None).do)
        self.assertIs(Do.STOP, self.decide(error, runs=False).do)

    def test_legacy_volume_that_nova_hides(self):
        server = build.server(volumes_attached=frozenset({'v1', 'v9'}))
        item = self.decide(server, build.pair())
        self.assertEqual((Do.FLAG, 'G11'), (item.do, item.rule))
        self.assertIn('v9', item.reason)
        self.assertNotIn('v1', item.reason)

    def test_no_start_without_a_record_of_the_root(self):
        server = build.server(volume_backed=True)
        self.assertIs(Do.FLAG, self.decide(server).do)
        root = build.pair(mappings=(build.mapping(root=True),))
        self.assertIs(Do.START, self.decide(server, root).do)

    def test_the_volume_is_named(self):
        item = self.decide(build.server(), build.pair(rows=()))
        self.assertIn('v1', item.reason)
        self.assertEqual('R8', item.rule)


class TestPlanReset(unittest.TestCase):
    """Step 2, by cases; by generated clouds below."""

    def plan(self, seen, cloud_map=None, histories=None, **options):
        if cloud_map is None:
            keys = [(p.server_id, p.volume_id) for p in facts.pairs(seen)]
            cloud_map = build.cloud_map(*keys)
        selected = plan.select(cloud_map, options.pop('selection', ALL), seen)
        return {
            (i.server_id, i.volume_id): i
            for i in plan.plan_reset(
                cloud_map, seen, selected, histories or {}, **options
            )
        }

    def one(self, seen, *args, key=('s1', 'v1'), **options):
        return self.plan(seen, *args, **options)[key]

    def with_server(self, **changes):
        return build.agreeing(('s1', 'v1'), servers=[build.server(**changes)])

    def test_what_agrees_is_reset(self):
        item = self.one(build.agreeing(('s1', 'v1')))
        self.assertEqual((Do.RESET, 'R1'), (item.do, item.rule))

    def test_in_the_order_of_the_locks(self):
        seen = build.agreeing(('s2', 'v2'), ('s3', 'v1'), ('s1', 'v2'))
        self.assertEqual(
            [('s3', 'v1'), ('s1', 'v2'), ('s2', 'v2')], list(self.plan(seen))
        )

    def test_root_is_left(self):
        seen = build.seen(
            [build.server()],
            [build.volume()],
            [build.mapping(root=True)],
            [build.row()],
        )
        self.assertIs(Do.LEAVE, self.one(seen).do)
        # the map's word is enough, too
        cloud_map = build.cloud_map(attachments=[build.attachment(root=True)])
        seen = build.agreeing(('s1', 'v1'))
        self.assertIs(Do.LEAVE, self.one(seen, cloud_map).do)

    def test_neither_record(self):
        seen = build.seen([build.server()], [build.free()])
        cloud_map = build.cloud_map(('s1', 'v1'))
        self.assertIs(Do.NOTHING, self.one(seen, cloud_map).do)

    def test_servers_that_would_not_be_started_keep_their_disks(self):
        off = build.map_server(vm_state='stopped')
        cloud_map = build.cloud_map(('s1', 'v1'))
        agree = build.agreeing(('s1', 'v1'))
        user = {'s1': plan.PowerHistory(stopped_by_user=True)}
        gone = build.agreeing(('s1', 'v1'), servers=[])
        for args, do, text in (
            (
                (agree, dataclasses.replace(cloud_map, servers=(off,))),
                Do.LEAVE,
                'did not run',
            ),
            (
                (agree, dataclasses.replace(cloud_map, servers=())),
                Do.LEAVE,
                'the map does not have',
            ),
            ((agree, cloud_map, user), Do.LEAVE, 'user stopped'),
            ((gone, cloud_map), Do.LEAVE, 'deleted'),
            (
                (self.with_server(vm_state='shelved'), cloud_map),
                Do.LEAVE,
                'shelved',
            ),
            (
                (self.with_server(vm_state='paused'), cloud_map),
                Do.FLAG,
                'paused',
            ),
        ):
            item = self.one(*args)
            self.assertIs(do, item.do, item.reason)
            self.assertIn(text, item.reason)

    def test_lost_at(self):
        off = build.map_server(vm_state='stopped')
        cloud_map = build.cloud_map(
            servers=[off], attachments=[build.attachment()]
        )
        agree = build.agreeing(('s1', 'v1'))
        nova = {'s1': plan.PowerHistory(stopped_by_nova=True)}
        item = self.one(agree, cloud_map, nova, lost_at=build.LATER)
        self.assertIs(Do.RESET, item.do)
        self.assertIs(Do.LEAVE, self.one(agree, cloud_map, nova).do)
        item = self.one(agree, cloud_map, lost_at=build.LATER)
        self.assertIs(Do.LEAVE, item.do)

    def test_server_not_off(self):
        for changes in (
            {'vm_state': 'active', 'power_state': facts.RUNNING},
            {'vm_state': 'active'},
            {'task_state': 'powering-on'},
            {'power_state': facts.RUNNING},
            {'power_state': facts.PAUSED},
        ):
            item = self.one(self.with_server(**changes))
            self.assertIs(Do.FLAG, item.do, changes)

    def test_compute_down_unless_declared_dead(self):
        for services in build.services(up=False), build.services('other'):
            seen = build.agreeing(('s1', 'v1'), services=services)
            item = self.one(seen)
            self.assertIs(Do.FLAG, item.do)
            self.assertIn(build.HOST, item.reason)
            item = self.one(seen, dead_hosts={build.HOST})
            self.assertIs(Do.RESET, item.do)
            item = self.one(seen, dead_hosts={'other'})
            self.assertIs(Do.FLAG, item.do)

    def test_volume_service_down(self):
        down = (
            *build.services()[:1],
            facts.Service('cinder-volume', build.BACKEND, False),
        )
        seen = build.agreeing(('s1', 'v1'), services=down)
        item = self.one(seen)
        self.assertIs(Do.FLAG, item.do)
        self.assertIn(build.BACKEND, item.reason)

    def test_one_disk_that_differs_keeps_the_whole_server(self):
        seen = build.agreeing(('s1', 'v1'), ('s1', 'v2'))
        rows = tuple(r for r in seen.rows if r.volume_id != 'v2')
        found = self.plan(dataclasses.replace(seen, rows=rows))
        self.assertEqual({Do.FLAG}, {i.do for i in found.values()})
        self.assertIn('v2', found['s1', 'v1'].reason)

    def test_own_half_is_finished(self):
        seen = build.seen(
            [build.server()],
            [build.volume(), build.volume('v2')],
            [build.gone(build.mapping()), build.mapping('s1', 'v2')],
            [build.row(), build.row('s1', 'v2')],
        )
        found = self.plan(seen)
        self.assertIs(Do.FINISH, found['s1', 'v1'].do)
        self.assertIs(Do.RESET, found['s1', 'v2'].do)

    def test_a_row_that_nova_never_had_is_no_half_of_ours(self):
        seen = build.seen(
            [build.server()], [build.volume()], [], [build.row()]
        )
        self.assertIs(Do.FLAG, self.one(seen).do)

    def test_multiattach_all_or_none(self):
        seen = build.agreeing(('s1', 'v1'), ('s2', 'v1'))
        found = self.plan(seen)
        self.assertEqual({Do.RESET}, {i.do for i in found.values()})
        for options in (
            {'cloud_map': build.cloud_map(('s1', 'v1'))},
            {'selection': plan.Selection(servers=('s1',))},
            {'histories': {'s2': plan.PowerHistory(stopped_by_user=True)}},
        ):
            item = self.one(seen, **options)
            self.assertEqual((Do.FLAG, 'G10'), (item.do, item.rule))
            self.assertIn('s2', item.reason)

    def test_pair_of(self):
        seen = build.agreeing(('s1', 'v1'), services=())
        self.assertIsNone(plan.pair_of(seen, 's1', 'v2'))
        self.assertIsNone(plan.pair_of(seen, 's1', 'v1').compute_up)
        pair = plan.pair_of(seen, 's1', 'v1', {build.HOST})
        self.assertIs(True, pair.compute_up)


# -- generated clouds ----------------------------------------------------


def available_and_mapped(seen):
    """List what DESIGN 2 forbids."""
    return {
        m.volume_id
        for m in seen.mappings
        if not m.deleted
        and (m.attachment_id or m.connected)
        and m.volume_id in seen.volumes
        and seen.volumes[m.volume_id].status == 'available'
    }


def nova_half(seen, item):
    """Carry out the first commit of a reset."""
    mappings = tuple(
        build.gone(m)
        if (m.server_id, m.volume_id) == (item.server_id, item.volume_id)
        and not m.deleted
        else m
        for m in seen.mappings
    )
    return dataclasses.replace(seen, mappings=mappings)


def cinder_half(seen, item):
    """Carry out the second: the rows, and the status that follows."""
    rows = tuple(
        build.gone(r)
        if (r.server_id, r.volume_id) == (item.server_id, item.volume_id)
        and not r.deleted
        else r
        for r in seen.rows
    )
    word = min(
        (
            r.attach_status
            for r in rows
            if r.volume_id == item.volume_id and not r.deleted
        ),
        default='detached',
    )
    volume = dataclasses.replace(
        seen.volumes[item.volume_id],
        attach_status=word,
        status={'attached': 'in-use', 'detached': 'available'}.get(word, word),
    )
    volumes = {**seen.volumes, volume.id: volume}
    return dataclasses.replace(seen, rows=rows, volumes=volumes)


def states(seen, items):
    """Give every state on the way: (volume, state after a commit)."""
    for item in items:
        if item.do is Do.RESET:
            seen = nova_half(seen, item)
            yield item.volume_id, seen
        if item.do in (Do.RESET, Do.FINISH):
            seen = cinder_half(seen, item)
            yield item.volume_id, seen


SERVER = st.one_of(
    st.just({}),
    st.just({}),
    st.just({'vm_state': 'error', 'power_state': facts.NOSTATE}),
    st.sampled_from(
        [
            {'vm_state': 'active', 'power_state': facts.RUNNING},
            {'vm_state': 'active'},
            {'vm_state': 'shelved'},
            {'task_state': 'powering-on'},
            {'host': 'dead'},
        ]
    ),
)
PAIR = st.sampled_from(
    (None, *['agree'] * 4, 'root', 'half', 'naive', 'row', 'bdm', 'legacy')
)


@st.composite
def clouds(draw):
    """Make a small cloud, its map, and a selection."""
    servers = [build.server(s, **draw(SERVER)) for s in ('s1', 's2', 's3')]
    shared_ids = draw(st.booleans())
    volumes, mappings, rows, keys = [], [], [], []
    for volume_id in 'v1', 'v2', 'v3':
        multiattach = draw(st.booleans())
        status = 'in-use'
        for s in servers if multiattach else [draw(st.sampled_from(servers))]:
            kind = draw(PAIR)
            key = (s.id, volume_id)
            one_id = {}
            if shared_ids:
                one_id['attachment_id'] = 'same'
            one = build.mapping(*key, root=kind == 'root', **one_id)
            its = build.row(*key, id=one.attachment_id)
            if kind is None:
                continue
            keys.append(key)
            if kind == 'legacy':
                one = dataclasses.replace(one, attachment_id=None)
            if kind == 'half':
                one = build.gone(one)
            if kind != 'row':
                mappings.append(one)
            if kind == 'naive':
                status = 'available'
                its = build.gone(its)
            if kind != 'bdm':
                rows.append(its)
            if kind == 'agree' and draw(st.integers(0, 9)) == 9:
                rows.append(build.row(*key, id='extra'))
        volumes.append(
            build.volume(
                volume_id,
                multiattach=multiattach,
                status=draw(st.sampled_from([status] * 9 + ['retyping'])),
            )
        )
    seen = build.seen(servers, volumes, mappings, rows)
    known = draw(st.sampled_from([keys, keys, keys[1:]]))
    cloud_map = build.cloud_map(
        servers=[
            build.map_server(
                s.id,
                vm_state=draw(
                    st.sampled_from(['active', 'active', 'active', 'stopped'])
                ),
            )
            for s in servers
        ],
        attachments=[build.attachment(*k) for k in known],
    )
    histories = {'s1': plan.PowerHistory(stopped_by_user=draw(st.booleans()))}
    selection = draw(
        st.sampled_from([ALL, ALL, plan.Selection(servers=('s1', 's2'))])
    )
    return seen, cloud_map, selection, histories


class TestGeneratedResets(unittest.TestCase):
    """plan_reset on any cloud, killed anywhere."""

    def plan(self, seen, cloud_map, selection, histories):
        selected = plan.select(cloud_map, selection, seen)
        return plan.plan_reset(cloud_map, seen, selected, histories)

    @hypothesis.settings(max_examples=400, deadline=None)
    @hypothesis.given(clouds())
    def test_only_what_may_be_reset(self, cloud):
        seen, cloud_map, _selection, histories = cloud
        items = self.plan(*cloud)
        acting = {
            (i.server_id, i.volume_id): i for i in items if i.do in plan.ACTING
        }
        pairs = facts.group(facts.pairs(seen), lambda p: p.server_id)
        for (server_id, volume_id), item in acting.items():
            self.assertIn(item.do, (Do.RESET, Do.FINISH))
            pair = item.pair
            self.assertFalse(any(m.root for m in pair.mappings))
            if item.do is Do.RESET:
                self.assertEqual('R1', rules.judge(pair).rule)
            else:
                self.assertTrue(rules.own_half(pair))
            # a server that would be started, once its halves are finished
            step = plan.decide_restart(
                cloud_map.server(server_id),
                seen.servers[server_id],
                [p for p in pairs[server_id] if p.mappings],
                histories.get(server_id, plan.PowerHistory()),
                plan.Look(settled=True),
            )
            self.assertIn(step.do, (Do.START, Do.STOP))
            # with all others of its volume
            for other in facts.pairs(seen):
                if other.volume_id == volume_id:
                    self.assertIn((other.server_id, volume_id), acting)

    @hypothesis.settings(max_examples=400, deadline=None)
    @hypothesis.given(clouds())
    def test_killed_anywhere_nothing_is_free_and_mapped(self, cloud):
        seen, *rest = cloud
        items = self.plan(seen, *rest)
        way = list(states(seen, items))
        bad = available_and_mapped(seen)
        for volume_id, state in way:
            self.assertNotIn(volume_id, available_and_mapped(state))
            self.assertLessEqual(available_and_mapped(state), bad)
        if not way:
            return
        end = way[-1][1]
        for _volume_id, state in way:
            again = self.plan(state, *rest)
            rest_of_way = [state, *(s for _v, s in states(state, again))]
            self.assertEqual(live(end), live(rest_of_way[-1]))
        self.assertFalse(
            [i for i in self.plan(end, *rest) if i.do in plan.ACTING]
        )


def live(seen):
    """Give what counts of a state."""
    return (
        [m for m in seen.mappings if not m.deleted],
        [r for r in seen.rows if not r.deleted],
        seen.volumes,
    )


class TestPlanRestore(unittest.TestCase):
    """Step 4."""

    def setUp(self):
        self.seen = build.seen([build.running()], [build.free()])

    def plan(self, seen=None, cloud_map=None, actions=(), resets=None):
        seen = seen or self.seen
        cloud_map = cloud_map or build.cloud_map(('s1', 'v1'))
        return plan.plan_restore(
            cloud_map,
            seen,
            plan.select(cloud_map, ALL, seen),
            {'s1': actions},
            resets or {},
        )

    def one(self, *args, **options):
        (item,) = self.plan(*args, **options)
        return item

    def test_what_both_lack_is_attached(self):
        item = self.one()
        self.assertIs(Do.ATTACH, item.do)
        self.assertEqual(build.attachment(), item.attachment)

    def test_in_device_order_within_each_server(self):
        devices = ['vdaa', 'vdc', 'vdz', 'vdb']
        cloud_map = build.cloud_map(
            attachments=[
                build.attachment(s, f'v{d}', device=f'/dev/{d}')
                for d in devices
                for s in ('s2', 's1')
            ]
        )
        seen = build.seen(
            [build.running('s1', name='b'), build.running('s2', name='a')],
            [build.free(f'v{d}') for d in devices],
        )
        items = self.plan(seen, cloud_map)
        order = ['/dev/vdb', '/dev/vdc', '/dev/vdz', '/dev/vdaa']
        self.assertEqual(
            [('s2', d) for d in order] + [('s1', d) for d in order],
            [(i.server_id, i.attachment.device) for i in items],
        )

    def test_attached_already(self):
        seen = build.agreeing(('s1', 'v1'), servers=[build.running()])
        self.assertIs(Do.NOTHING, self.one(seen).do)

    def test_records_that_differ_are_flagged(self):
        seen = build.seen([build.running()], [build.free()], [build.mapping()])
        self.assertIs(Do.FLAG, self.one(seen).do)
        seen = build.seen(
            [build.running()], [build.volume()], [], [build.row()]
        )
        self.assertIs(Do.FLAG, self.one(seen).do)

    def test_shelved_is_left(self):
        seen = build.agreeing(
            ('s1', 'v1'), servers=[build.server(vm_state='shelved')]
        )
        self.assertIs(Do.LEAVE, self.one(seen).do)

    def test_in_flight_is_waited_for(self):
        for word in 'reserved', 'attaching':
            rows = [build.row(attach_status=word, connector=False)]
            volumes = [build.volume(status=word)]
            for mappings in [], [build.mapping(connected=False)]:
                seen = build.seen([build.running()], volumes, mappings, rows)
                self.assertIs(Do.WAIT, self.one(seen).do)
        rows = [build.row(attach_status='detaching')]
        seen = build.seen([build.running()], [build.volume()], [], rows)
        self.assertIs(Do.FLAG, self.one(seen).do)

    def test_servers_that_cannot_take_it(self):
        for changes, text in (
            ({'vm_state': 'stopped', 'power_state': 4}, 'start it first'),
            ({'power_state': 4}, 'restart it first'),
            ({'task_state': 'rebooting'}, 'busy'),
            ({'vm_state': 'paused'}, 'paused'),
        ):
            seen = build.seen([build.running(**changes)], [build.free()])
            item = self.one(seen)
            self.assertIs(Do.FLAG, item.do)
            self.assertIn(text, item.reason)
        item = self.one(build.seen([], [build.free()]))
        self.assertIs(Do.LEAVE, item.do)

    def test_volumes_that_cannot_be_attached(self):
        for volumes, text in (
            ([], 'gone'),
            ([build.free(project_id='green')], 'another project'),
            ([build.volume()], 'in-use'),
            ([build.volume(status='reserved')], 'reserved'),
            ([build.volume(status='error')], 'error'),
            ([build.free(migration_status='migrating')], 'migrated'),
        ):
            item = self.one(build.seen([build.running()], volumes))
            self.assertIs(Do.FLAG, item.do)
            self.assertIn(text, item.reason)

    def test_multiattach_may_be_in_use_by_others(self):
        seen = build.seen(
            [build.running()],
            [build.volume(multiattach=True)],
            [build.mapping('s2')],
            [build.row('s2')],
        )
        self.assertIs(Do.ATTACH, self.one(seen).do)

    def test_root_is_never_attached(self):
        cloud_map = build.cloud_map(attachments=[build.attachment(root=True)])
        self.assertIs(Do.FLAG, self.one(cloud_map=cloud_map).do)

    def test_detached_by_a_user_since(self):
        detach = build.action('detach_volume')
        self.assertIs(Do.LEAVE, self.one(actions=[detach]).do)
        # not since: before the map, or another action
        early = build.action('detach_volume', '2026-11-22T02:00:00Z')
        other = build.action('reboot')
        self.assertIs(Do.ATTACH, self.one(actions=[early, other]).do)

    def test_perhaps_detached(self):
        cloud_map = build.cloud_map(('s1', 'v1'), ('s1', 'v2'))
        seen = build.seen(
            [build.running()], [build.free('v1'), build.free('v2')]
        )
        detach = build.action('detach_volume')
        items = self.plan(seen, cloud_map, [detach])
        self.assertEqual([Do.FLAG, Do.FLAG], [i.do for i in items])
        self.assertIn('1 of 2', items[0].reason)
        items = self.plan(seen, cloud_map, [detach, detach])
        self.assertEqual([Do.LEAVE, Do.LEAVE], [i.do for i in items])

    def test_perhaps_if_something_was_attached_since(self):
        # that may be what was detached
        log = [build.action('detach_volume'), build.action('attach_volume')]
        self.assertIs(Do.FLAG, self.one(actions=log).do)

    def test_a_root_that_is_missing_is_no_suspect(self):
        cloud_map = build.cloud_map(
            attachments=[
                build.attachment('s1', 'v0', root=True),
                build.attachment('s1', 'v1'),
            ]
        )
        items = self.plan(
            cloud_map=cloud_map, actions=[build.action('detach_volume')]
        )
        self.assertEqual([Do.FLAG, Do.LEAVE], [i.do for i in items])

    def test_what_we_reset_ourselves_was_attached_then(self):
        reset_at = '2026-11-22T03:30:00Z'
        resets = {('s1', 'v1'): reset_at}
        early = build.action('detach_volume', '2026-11-22T03:20:00Z')
        late = build.action('detach_volume', build.LATER)
        self.assertIs(Do.ATTACH, self.one(actions=[early], resets=resets).do)
        self.assertIs(Do.LEAVE, self.one(actions=[late], resets=resets).do)
        # of the two that are missing it was the other one
        cloud_map = build.cloud_map(('s1', 'v1'), ('s1', 'v2'))
        seen = build.seen(
            [build.running()], [build.free('v1'), build.free('v2')]
        )
        items = self.plan(seen, cloud_map, [early], resets)
        self.assertEqual([Do.ATTACH, Do.LEAVE], [i.do for i in items])

    def test_the_three_columns_are_the_operators_word(self):
        cloud_map = build.cloud_map(
            ('s1', 'v1'), servers=[], bare=True, taken_at=''
        )
        detach = build.action('detach_volume')
        item = self.one(cloud_map=cloud_map, actions=[detach])
        self.assertIs(Do.ATTACH, item.do)
