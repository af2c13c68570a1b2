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

import unittest

from osc_drp.cloud import client
from osc_drp.cloud import read
from osc_drp.engine import facts
from osc_drp.engine import mapmaker
from osc_drp import exceptions
from osc_drp.tests.unit.cloud import fakes

uid = fakes.uid


class Case(unittest.TestCase):
    def setUp(self):
        self.cloud = fakes.FakeCloud()
        self.api = fakes.FakeApi(self.cloud)

    def paths(self, method='GET'):
        return [s[2] for s in self.cloud.seen if s[1] == method]


class TestObserve(Case):
    def test_both_records(self):
        server = self.cloud.add_server(1, 'web1', metadata={'drp_wave': '2'})
        volume = self.cloud.add_volume(101)
        self.cloud.attach(
            server, volume, 201, tag='data', delete_on_termination=True
        )
        seen = read.observe(self.api)
        self.assertEqual(
            facts.Server(
                id=server,
                name='web1',
                project_id='project',
                host='c1',
                vm_state='active',
                task_state=None,
                power_state=1,
                locked=False,
                root_device='/dev/vda',
                launched=True,
                volume_backed=False,
                volumes_attached=frozenset({volume}),
                metadata=(('drp_wave', '2'),),
            ),
            seen.servers[server],
        )
        self.assertEqual(
            facts.Volume(
                id=volume,
                name='volume101',
                project_id='project',
                status='in-use',
                multiattach=False,
                host='v1@lvm#lvm',
            ),
            seen.volumes[volume],
        )
        self.assertEqual(
            (
                facts.Mapping(
                    server_id=server,
                    volume_id=volume,
                    device='/dev/vdb',
                    attachment_id=uid(201),
                    root=False,
                    tag='data',
                    delete_on_termination=True,
                    uuid=uid(5201),
                ),
            ),
            seen.mappings,
        )
        self.assertEqual(
            (
                facts.Row(
                    id=uid(201),
                    volume_id=volume,
                    server_id=server,
                    attach_status='attached',
                    device='/dev/vdb',
                    host='c1',
                ),
            ),
            seen.rows,
        )
        self.assertEqual(facts.API, seen.source)
        self.assertEqual(fakes.NOW, seen.taken_at)
        self.assertEqual(
            {('nova-compute', 'c1', True), ('nova-compute', 'c2', False)},
            {
                (s.binary, s.host, s.up)
                for s in seen.services
                if s.binary.startswith('nova')
            },
        )

    def test_ids_in_a_form_of_a_users_choice(self):
        server = self.cloud.add_server(0xAB1, **{'OS-EXT-STS:vm_state': None})
        volumes = [self.cloud.add_volume(n) for n in (0xABC, 0xABD, 0xABE)]
        for number, volume in enumerate(volumes, 201):
            self.cloud.map(server, volume.upper(), number, '/dev/vdb')
        self.cloud.mappings[server][2]['attachment_id'] = None
        for number, told in (
            (201, server),
            (202, server.upper()),
            (203, server.replace('-', '')),
        ):
            self.cloud.add_row(told, volumes[number - 201], number)
        seen = read.observe(self.api)
        self.assertEqual(
            [{server}, set(volumes)] * 2,
            [
                {m.server_id for m in seen.mappings},
                {m.volume_id for m in seen.mappings},
                {r.server_id for r in seen.rows},
                {r.volume_id for r in seen.rows},
            ],
        )
        self.assertEqual('', seen.servers[server].vm_state)
        # nobody asked for what is known under another form
        self.assertFalse(
            [p for p in self.paths() if p.startswith('volumes/0')]
        )
        cloud_map = mapmaker.make_map(seen, 'x')
        self.assertEqual(
            {('both', server)},
            {(a.recorded_by, a.server_id) for a in cloud_map.attachments},
        )

    def test_no_details_of_attachments(self):
        server = self.cloud.add_server(1)
        self.cloud.attach(server, self.cloud.add_volume(101), 201)
        read.observe(self.api)
        self.assertNotIn('attachments/detail', self.paths())

    def test_renew(self):
        """No request per server, none to cinder's listings."""
        stays, gone = self.cloud.add_server(1), self.cloud.add_server(2)
        for number, server in enumerate((stays, gone)):
            volume = self.cloud.add_volume(101 + number)
            self.cloud.attach(server, volume, 201 + number)
        seen = read.observe(self.api)
        self.cloud.add_server(3)
        del self.cloud.servers[gone]
        self.cloud.servers[stays]['OS-EXT-STS:vm_state'] = 'stopped'
        self.cloud.seen.clear()
        now = read.renew(self.api, seen)
        self.assertEqual({stays}, now.servers.keys())
        self.assertEqual('stopped', now.servers[stays].vm_state)
        self.assertEqual([stays], [m.server_id for m in now.mappings])
        self.assertEqual((seen.volumes, seen.rows), (now.volumes, now.rows))
        self.assertEqual(seen.services, now.services)
        self.assertLessEqual(
            set(self.paths()), {'servers', 'servers/detail', 'os-services'}
        )

    def test_root(self):
        server = self.cloud.add_server(1, image='')
        self.cloud.attach(server, self.cloud.add_volume(101), 201, '/dev/vda')
        self.cloud.attach(server, self.cloud.add_volume(102), 202, '/dev/vdb')
        other = self.cloud.add_server(2)
        self.cloud.attach(other, self.cloud.add_volume(103), 203, '/dev/vda')
        seen = read.observe(self.api)
        self.assertEqual(
            [uid(101)], [m.volume_id for m in seen.mappings if m.root]
        )

    def test_only_servers_with_volumes_are_asked(self):
        having = self.cloud.add_server(1)
        self.cloud.add_server(2)
        self.cloud.attach(having, self.cloud.add_volume(101), 201)
        read.observe(self.api)
        self.assertEqual(
            [f'servers/{having}/os-volume_attachments'],
            [p for p in self.paths() if p.endswith('os-volume_attachments')],
        )

    def test_server_that_only_cinder_names_is_asked(self):
        server = self.cloud.add_server(1)
        self.cloud.add_row(server, self.cloud.add_volume(101), 201)
        seen = read.observe(self.api)
        self.assertEqual((), seen.mappings)
        self.assertIn(f'servers/{server}/os-volume_attachments', self.paths())

    def test_rows_of_every_state(self):
        server = self.cloud.add_server(1)
        volume = self.cloud.add_volume(101)
        self.cloud.add_row(server, volume, 201, status='reserved')
        self.cloud.add_row(None, volume, 202, host='glance')
        self.cloud.add_row(server, volume, 203, status='detached')
        seen = read.observe(self.api)
        self.assertEqual(
            {
                (uid(201), 'reserved', None, server),
                (uid(202), 'attached', 'glance', None),
            },
            {(r.id, r.attach_status, r.host, r.server_id) for r in seen.rows},
        )

    def test_pages_of_five(self):
        self.cloud.max_limit = 5
        for n in range(23):
            server = self.cloud.add_server(n + 1)
            volume = self.cloud.add_volume(n + 101)
            self.cloud.attach(server, volume, n + 201)
        seen = read.observe(self.api)
        self.assertEqual(23, len(seen.servers))
        self.assertEqual(23, len(seen.volumes))
        self.assertEqual(23, len(seen.mappings))
        self.assertEqual(23, len(seen.rows))

    def test_full_last_page(self):
        self.cloud.max_limit = 5
        for n in range(10):
            self.cloud.add_server(n + 1)
        self.assertEqual(10, len(read.observe(self.api).servers))

    def test_many_disks_and_a_small_limit(self):
        """nova cuts os-volume_attachments, local disks counted."""
        self.cloud.max_limit = 3
        server = self.cloud.add_server(1)
        self.cloud.mappings[server] += [None, None]
        for n in range(7):
            self.cloud.attach(
                server,
                self.cloud.add_volume(n + 101),
                n + 201,
                f'/dev/vd{chr(98 + n)}',
            )
        found = read.observe(self.api).mappings
        self.assertEqual(7, len(found))
        self.assertEqual([], [m for m in found if not m.attachment_id])

    def test_legacy_mapping(self):
        """2.89 hides what has no attachment id: asked at 2.88."""
        server = self.cloud.add_server(1)
        volume = self.cloud.add_volume(101)
        self.cloud.map(server, volume, 201, '/dev/vdb', attachment_id=None)
        (found,) = read.observe(self.api).mappings
        self.assertIsNone(found.attachment_id)
        self.assertEqual((server, volume), (found.server_id, found.volume_id))

    def test_mapped_twice(self):
        """A person's case: both must be seen."""
        server = self.cloud.add_server(1)
        volume = self.cloud.add_volume(101)
        self.cloud.attach(server, volume, 201)
        self.cloud.map(server, volume, 202, '/dev/vdc')
        self.assertEqual(
            {uid(201), uid(202)},
            {m.attachment_id for m in read.observe(self.api).mappings},
        )

    def test_building(self):
        self.cloud.add_server(
            1,
            **{
                'OS-EXT-STS:vm_state': 'building',
                'OS-EXT-SRV-ATTR:host': None,
                'OS-SRV-USG:launched_at': None,
            },
        )
        seen = read.observe(self.api)
        self.assertEqual({uid(1)}, seen.building)
        self.assertFalse(seen.servers[uid(1)].launched)

    def test_soft_deleted(self):
        self.cloud.add_server(1, **{'OS-EXT-STS:vm_state': 'soft-delete'})
        self.assertEqual({uid(1)}, set(read.observe(self.api).servers))

    def test_migrating(self):
        self.cloud.add_server(1)
        for number, status in enumerate(('running', 'completed', 'finished')):
            self.cloud.migrations.append(
                {
                    'uuid': uid(900 + number),
                    'instance_uuid': uid(number),
                    'status': status,
                }
            )
        self.assertEqual({uid(0), uid(2)}, read.observe(self.api).migrating)

    def test_old_cloud(self):
        """Train: nothing above its own maxima is asked."""
        self.api.compute_max, self.api.volume_max = (2, 79), (3, 59)
        server = self.cloud.add_server(1)
        self.cloud.attach(server, self.cloud.add_volume(101), 201)
        (found,) = read.observe(self.api).mappings
        self.assertIsNone(found.attachment_id)
        for service, _path, version in self.api.versions:
            number = tuple(int(p) for p in version.split('.'))
            highest = (2, 79) if service == 'compute' else (3, 59)
            self.assertLessEqual(number, highest)

    def test_microversions(self):
        server = self.cloud.add_server(1)
        self.cloud.attach(server, self.cloud.add_volume(101), 201)
        read.observe(self.api)
        asked = {(s, p): v for s, p, v in self.api.versions}
        self.assertEqual('2.90', asked['compute', 'servers/detail'])
        self.assertEqual('3.48', asked['block-storage', 'os-services'])
        self.assertEqual('3.27', asked['block-storage', 'attachments'])
        self.assertEqual(
            '2.89', asked['compute', f'servers/{server}/os-volume_attachments']
        )


class TestIncomplete(Case):
    """A short listing never looks like a small cloud."""

    def refused(self, *words, kind=exceptions.Incomplete):
        with self.assertRaises(kind) as caught:
            read.observe(self.api)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def cell_down(self, *words):
        self.refused('cell', *words, kind=exceptions.Away)

    def test_cell_down_by_its_hosts(self):
        """A paged listing skips the cell without a word."""
        self.cloud.nova_services.append(
            {'binary': 'nova-compute', 'host': 'far9', 'status': 'UNKNOWN'}
        )
        self.cell_down("cloud 'fake'", 'far9')

    def test_cell_down_by_its_servers(self):
        self.cloud.add_server(1)
        self.cloud.lost.add(self.cloud.add_server(2))
        self.cell_down(uid(2))

    def test_cell_goes_down_while_we_read(self):
        self.cloud.add_server(1)
        self.cloud.add_volume(101)

        def dies(params):
            self.cloud.lost.add(uid(1))

        self.cloud.instead['GET', 'volumes/detail'] = dies
        self.cell_down(uid(1))

    def test_many_hosts(self):
        for n in range(5):
            self.cloud.nova_services.append(
                {
                    'binary': 'nova-compute',
                    'host': f'f{n}',
                    'status': 'UNKNOWN',
                }
            )
        self.cell_down('f0, f1, f2 and 2 more')

    def test_detail_lacks_a_server(self):
        self.cloud.unlisted.add(self.cloud.add_server(1, 'web1'))
        self.refused('web1', uid(1))

    def test_server_deleted_meanwhile(self):
        self.cloud.add_server(1)
        self.cloud.add_server(2)

        def deleted(params):
            self.cloud.servers.pop(uid(1), None)

        self.cloud.instead['GET', 'servers/detail'] = deleted
        self.assertEqual({uid(2)}, set(read.observe(self.api).servers))

    def test_server_deleted_before_its_mappings(self):
        server = self.cloud.add_server(1)
        volume = self.cloud.add_volume(101)
        self.cloud.attach(server, volume, 201)

        def deleted(params):
            self.cloud.servers.pop(server, None)
            return fakes.Refusal(404, 'gone', 'itemNotFound')

        path = f'servers/{server}/os-volume_attachments'
        self.cloud.instead['GET', path] = deleted
        self.assertEqual({}, read.observe(self.api).servers)

    def test_mappings_gone_but_not_the_server(self):
        server = self.cloud.add_server(1)
        self.cloud.attach(server, self.cloud.add_volume(101), 201)
        path = f'servers/{server}/os-volume_attachments'
        self.cloud.instead['GET', path] = fakes.Refusal(404, 'odd')
        with self.assertRaisesRegex(exceptions.ApiError, 'odd'):
            read.observe(self.api)

    def test_volume_that_nova_names_is_not_listed(self):
        server = self.cloud.add_server(1)
        volume = self.cloud.add_volume(101)
        self.cloud.map(server, volume, 201, '/dev/vdb')
        self.cloud.unlisted.add(volume)
        self.refused('volume', volume)

    def test_volume_that_nova_names_is_gone(self):
        server = self.cloud.add_server(1)
        self.cloud.map(server, uid(101), 201, '/dev/vdb')
        seen = read.observe(self.api)
        self.assertEqual({}, seen.volumes)
        self.assertEqual([uid(101)], [m.volume_id for m in seen.mappings])

    def test_volume_made_after_we_began(self):
        server = self.cloud.add_server(1)
        volume = self.cloud.add_volume(
            101, created_at='2026-11-22T12:00:01.000000'
        )
        self.cloud.attach(server, volume, 201)
        self.cloud.unlisted.add(volume)
        self.assertEqual({volume}, set(read.observe(self.api).volumes))

    def test_server_that_cinder_names_is_unknown(self):
        self.cloud.add_row(uid(1), self.cloud.add_volume(101), 201)
        seen = read.observe(self.api)
        self.assertEqual({}, seen.servers)
        self.assertEqual([uid(1)], [r.server_id for r in seen.rows])

    def test_server_that_cinder_names_is_not_listed(self):
        server = self.cloud.add_server(1)
        self.cloud.add_row(server, self.cloud.add_volume(101), 201)
        listing = self.cloud.get_compute_servers

        def without(parts, params):
            answer = listing(parts, params)
            if 'servers' in answer:
                return {'servers': []}
            return answer

        self.cloud.get_compute_servers = without
        self.refused(server)

    def test_row_that_was_there_a_moment_ago(self):
        server = self.cloud.add_server(1)
        self.cloud.attach(server, self.cloud.add_volume(101), 201)
        self.cloud.instead['GET', 'attachments'] = {'attachments': []}
        self.assertEqual(1, len(read.observe(self.api).rows))
        self.cloud.instead['GET', f'attachments/{uid(201)}'] = fakes.Refusal(
            404, 'gone', 'itemNotFound'
        )
        self.assertEqual((), read.observe(self.api).rows)

    def test_marker_deleted_between_pages(self):
        self.cloud.max_limit = 2
        for n in range(5):
            self.cloud.add_volume(101 + n)
        gone = []

        def delete_marker(params):
            if 'marker' in params and not gone:
                gone.append(params['marker'])
                del self.cloud.volumes[params['marker']]

        self.cloud.instead['GET', 'volumes/detail'] = delete_marker
        self.assertEqual(4, len(read.observe(self.api).volumes))

    def test_listing_that_never_rests(self):
        self.cloud.add_volume(101)
        self.cloud.instead['GET', 'volumes/detail'] = lambda params: (
            fakes.Refusal(400, 'marker not found')
            if 'marker' in params
            else None
        )
        self.refused('volumes/detail', 'try again')

    def test_answer_of_somebody_else(self):
        """An empty object is no empty list, wherever it comes from."""
        for path in (
            'servers',
            'servers/detail',
            'volumes/detail',
            'attachments',
            'os-services',
            'os-migrations',
        ):
            with self.subTest(path):
                self.cloud.instead = {('GET', path): {}}
                with self.assertRaisesRegex(
                    exceptions.ApiError, f'{path} lacks .* right end point'
                ):
                    read.observe(self.api)


class TestAdmin(Case):
    def refused(self):
        with self.assertRaises(exceptions.ApiError) as caught:
            read.observe(self.api)
        self.assertIn(
            "cloud 'fake': user is not an administrator: ",
            str(caught.exception),
        )

    def test_policy(self):
        self.cloud.admin = False
        self.refused()

    def test_hosts_of_servers_hidden(self):
        self.cloud.add_server(1)
        del self.cloud.servers[uid(1)]['OS-EXT-SRV-ATTR:host']
        self.refused()

    def test_hosts_of_volumes_hidden(self):
        self.cloud.add_volume(101)
        del self.cloud.volumes[uid(101)]['os-vol-host-attr:host']
        self.refused()


class TestSmall(Case):
    def test_server(self):
        server = self.cloud.add_server(1)
        self.assertEqual('server1', read.server(self.api, server).name)
        with self.assertRaises(exceptions.NotFound):
            read.server(self.api, uid(9))

    def test_server_of_a_lost_cell(self):
        self.cloud.lost.add(self.cloud.add_server(1))
        with self.assertRaises(exceptions.Incomplete):
            read.server(self.api, uid(1))

    def test_fault(self):
        server = self.cloud.add_server(
            1, fault={'code': 500, 'message': 'No disk\n at x'}
        )
        self.assertEqual('No disk at x', read.fault(self.api, server))
        self.assertEqual('', read.fault(self.api, self.cloud.add_server(2)))

    def test_volume(self):
        self.assertEqual(
            'in-use', read.volume(self.api, self.cloud.add_volume(1)).status
        )
        with self.assertRaises(exceptions.NotFound):
            read.volume(self.api, uid(9))

    def test_attachment_exists(self):
        self.cloud.add_row(uid(1), uid(101), 201)
        self.assertIs(True, read.attachment_exists(self.api, uid(201)))
        self.assertIs(False, read.attachment_exists(self.api, uid(202)))

    def test_rows_of(self):
        self.cloud.add_row(uid(1), uid(101), 201, status='attaching')
        self.cloud.add_row(uid(1), uid(102), 202, status='detached')
        self.cloud.add_row(uid(2), uid(103), 203)
        (found,) = read.rows_of(self.api, uid(1))
        self.assertEqual('attaching', found.attach_status)

    def test_rows_of_until_a_volume_shows(self):
        """A poll costs one request where a whole listing costs two."""
        for number in range(4):
            self.cloud.add_row(uid(1), uid(101 + number), 201 + number)
        for max_limit, place, requests in (
            (1000, 2, 1),
            (2, 1, 1),
            (2, 3, 2),
            (1000, 9, 2),
            (2, 9, 3),
        ):
            self.cloud.max_limit = max_limit
            self.cloud.seen.clear()
            found = read.rows_of(self.api, uid(1), uid(101 + place))
            has = uid(101 + place) in {r.volume_id for r in found}
            self.assertEqual(place < 4, has)
            self.assertEqual(requests, len(self.cloud.seen))
        # a row that is over is not it
        self.cloud.rows[uid(201)]['status'] = 'detached'
        self.cloud.add_row(uid(1), uid(101), 301)
        found = read.rows_of(self.api, uid(1), uid(101))
        self.assertIn(uid(301), {r.id for r in found})
        del self.cloud.rows[uid(301)]
        self.cloud.rows[uid(201)]['status'] = 'attached'
        # what is to be known whole is read to its end
        self.cloud.seen.clear()
        self.assertEqual(4, len(read.rows_of(self.api, uid(1))))
        self.assertEqual(3, len(self.cloud.seen))

    def test_mappings_of(self):
        server = self.cloud.add_server(1)
        self.cloud.attach(server, self.cloud.add_volume(101), 201)
        (found,) = read.mappings_of(self.api, server)
        self.assertEqual(uid(201), found.attachment_id)

    def test_mappings_of_a_server_that_was_just_read(self):
        server = self.cloud.add_server(1)
        self.cloud.attach(server, self.cloud.add_volume(101), 201)
        known = read.server(self.api, server)
        self.cloud.seen.clear()
        (found,) = read.mappings_of(self.api, server, known)
        self.assertEqual(uid(201), found.attachment_id)
        self.assertEqual(1, len(self.cloud.seen))

    def test_actions(self):
        server = self.cloud.add_server(1)
        for number, start in ((1, '01'), (2, '03'), (3, '02')):
            self.cloud.actions.setdefault(server, []).append(
                {
                    'action': 'stop',
                    'instance_uuid': server,
                    'request_id': f'req-{number}',
                    'user_id': None,
                    'start_time': f'2026-11-{start}T00:00:00.000000',
                }
            )
        self.cloud.max_limit = 2
        found = read.actions(self.api, server)
        self.assertEqual(
            ['req-2', 'req-3', 'req-1'], [a.request_id for a in found]
        )
        self.assertEqual('2026-11-03T00:00:00Z', found[0].start_time)
        self.assertIsNone(found[0].user_id)

    def test_diagnostics(self):
        server = self.cloud.add_server(1)
        path = f'servers/{server}/diagnostics'
        for answer, wanted in (
            ({'state': 'running'}, True),
            ({'state': 'shutdown'}, False),
            ({}, None),
            (
                fakes.Refusal(
                    409,
                    f"Cannot 'get_diagnostics' instance {server} while it "
                    'is in power state shutdown',
                ),
                False,
            ),
            (fakes.Refusal(409, 'Instance is not ready'), None),
            (fakes.Refusal(400, 'no'), None),
            (fakes.Refusal(501, 'not implemented'), None),
            (fakes.Refusal(500, 'MessagingTimeout'), None),
        ):
            self.cloud.instead['GET', path] = answer
            self.assertIs(
                wanted, read.diagnostics_running(self.api, server), answer
            )
        with self.assertRaises(exceptions.NotFound):
            read.diagnostics_running(self.api, uid(9))

    def test_addresses(self):
        addresses = {
            'blue': [
                {
                    'addr': '10.0.0.5',
                    'version': 4,
                    'OS-EXT-IPS:type': 'fixed',
                },
                {
                    'addr': '192.0.2.5',
                    'version': 4,
                    'OS-EXT-IPS:type': 'floating',
                },
            ],
            'green': [{'addr': '2001:db8::5', 'version': 6}],
        }
        server = self.cloud.add_server(1, addresses=addresses)
        self.assertEqual(
            [
                facts.Address('blue', '10.0.0.5', 4, False),
                facts.Address('blue', '192.0.2.5', 4, True),
                facts.Address('green', '2001:db8::5', 6, False),
            ],
            read.addresses(self.api, server),
        )
        self.assertEqual(
            [], read.addresses(self.api, self.cloud.add_server(2))
        )

    def test_console(self):
        server = self.cloud.add_server(1)
        path = f'servers/{server}/action'
        for answer, wanted in (
            ({'output': 'a\r\nb\n'}, ['a', 'b']),
            ({'output': None}, []),
            ({'output': 'x\n' * 60}, ['x'] * 50),
            (fakes.Refusal(501, 'not implemented'), []),
            (fakes.Refusal(404, 'Unable to get console'), []),
            (fakes.Refusal(409, 'Instance is not ready'), []),
        ):
            self.cloud.instead['POST', path] = answer
            self.assertEqual(wanted, read.console(self.api, server))
        self.assertEqual(
            {'os-getConsoleOutput': {'length': 50}}, self.cloud.seen[-1][4]
        )

    def test_targets(self):
        path = f'attachments/{uid(201)}'
        secret = {'auth_password': fakes.SECRET, 'driver_volume_type': 'iscsi'}
        one = {
            'target_iqn': 'iqn.a',
            'target_portal': '10.0.0.5:3260',
            'target_lun': 1,
        }
        many = {
            'target_iqns': ['iqn.a', 'iqn.b'],
            'target_portals': ['10.0.0.5:3260', '10.0.0.6:3260'],
            'target_luns': [1, 2],
        }
        a = facts.Target('iqn.a', '10.0.0.5:3260', 1)
        b = facts.Target('iqn.b', '10.0.0.6:3260', 2)
        for info, wanted in (
            ({**secret, **one}, {a}),
            ({**secret, **one, **many}, {a, b}),
            ({'driver_volume_type': 'iscsi', 'data': one}, {a}),
            ({'driver_volume_type': 'rbd', 'name': 'volumes/x'}, set()),
            (None, set()),
        ):
            answer = {'attachment': {'connection_info': info}}
            self.cloud.instead['GET', path] = answer
            self.assertEqual(wanted, read.targets(self.api, uid(201)))
        self.assertEqual(set(), read.targets(self.api, uid(202)))

    def test_services(self):
        self.cloud.agents = [
            {'binary': 'neutron-ovs', 'host': 'c1', 'alive': True},
            {'binary': 'neutron-ovs', 'host': 'c2', 'alive': False},
        ]
        self.assertEqual(3, len(read.services(self.api)))
        self.api.catalog.add('network')
        found = {(s.binary, s.host): s.up for s in read.services(self.api)}
        self.assertIs(True, found['neutron:neutron-ovs', 'c1'])
        self.assertIs(False, found['neutron:neutron-ovs', 'c2'])
        self.assertIs(True, found['cinder-volume', 'v1@lvm'])
        self.assertEqual(3, len(read.services(self.api, network=False)))

    def test_neutron_without_agents(self):
        self.api.catalog.add('network')
        self.cloud.instead['GET', 'agents'] = fakes.Refusal(404, 'none')
        self.assertEqual(3, len(read.services(self.api)))

    def test_neutron_down(self):
        self.api.catalog.add('network')
        self.cloud.instead['GET', 'agents'] = fakes.Refusal(503, 'down')
        found = {(s.binary, s.host): s.up for s in read.services(self.api)}
        self.assertIs(False, found['neutron:server', 'c1'])
        self.assertIs(False, found['neutron:server', 'c2'])

    def test_service_in_a_lost_cell_is_down(self):
        self.cloud.nova_services = [
            {'binary': 'nova-compute', 'host': 'c1', 'status': 'UNKNOWN'}
        ]
        found = {(s.binary, s.host): s.up for s in read.services(self.api)}
        self.assertIs(False, found['nova-compute', 'c1'])

    def test_ports(self):
        self.assertEqual({}, read.ports(self.api))
        self.api.catalog.add('network')
        self.cloud.max_limit = 2
        self.cloud.ports = [
            {'id': uid(n), 'device_id': device}
            for n, device in enumerate(('a', 'a', 'b', ''))
        ]
        self.assertEqual({'a': 2, 'b': 1}, read.ports(self.api))

    def test_segments(self):
        self.cloud.segments = [{'name': 'rack2'}, {'name': 'rack1'}]
        self.assertEqual([], read.masakari_segments(self.api))
        self.api.catalog.add('instance-ha')
        self.assertEqual(['rack1', 'rack2'], read.masakari_segments(self.api))


class TestClient(Case):
    """The engine's port is served by the functions."""

    def test_reading(self):
        server = self.cloud.add_server(1)
        volume = self.cloud.add_volume(101)
        self.cloud.attach(server, volume, 201)
        mine = client.Client(self.api)
        self.assertEqual('me', mine.user_id)
        self.assertEqual({server}, set(mine.observe().servers))
        self.assertEqual('server1', mine.server(server).name)
        self.assertEqual('', mine.fault(server))
        self.assertEqual(1, len(mine.mappings_of(server)))
        self.assertEqual(1, len(mine.rows_of(server)))
        self.assertEqual(volume, mine.volume(volume).id)
        self.assertEqual((), mine.actions(server))
        self.assertIs(True, mine.diagnostics_running(server))

    def test_acting(self):
        mine = client.Client(self.api)
        mine.start(uid(1))
        mine.stop(uid(1))
        device = mine.attach(
            facts.MapAttachment(
                server_id=uid(1),
                volume_id=uid(101),
                device='/dev/vdb',
                attachment_id=None,
                cinder_attachment_id=None,
                recorded_by='both',
                root=False,
                tag='data',
                delete_on_termination=True,
                multiattach=False,
            )
        )
        self.assertEqual('/dev/vdc', device)
        self.assertEqual(
            [
                {'os-start': None},
                {'os-stop': None},
                {
                    'volumeAttachment': {
                        'volumeId': uid(101),
                        'device': '/dev/vdb',
                        'tag': 'data',
                        'delete_on_termination': True,
                    }
                },
            ],
            [s[4] for s in self.cloud.seen],
        )
