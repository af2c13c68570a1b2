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

"""``openstack drp iscsi``: sessions of one host, by hand and by proof."""

import argparse
import typing as ty

from osc_drp.commands import base
from osc_drp.commands import options
from osc_drp.i18n import _

if ty.TYPE_CHECKING:
    from osc_drp.engine import facts
    from osc_drp.hosts import iscsi

WARNING = _(
    'Never detach the volume through nova for this, and never log out '
    'without the id of one session: "iscsiadm -m session -u" without "-r" '
    'closes all sessions of the host.'
)


class _Iscsi(base.DrpLister):
    """On one host, over SSH."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--host',
            metavar='<host>',
            required=True,
            help=_('The host to log in to, as ssh knows it'),
        )
        options.add_ssh(parser)
        return parser

    def _host(self, parsed_args: argparse.Namespace) -> 'iscsi.Host':
        from osc_drp.hosts import iscsi
        from osc_drp.hosts import ssh

        shell = ssh.Ssh(parsed_args.ssh_config, parsed_args.ssh_user)
        return iscsi.Host(shell, parsed_args.host)


class ListIscsi(_Iscsi):
    _description = _(
        'List the iSCSI sessions of a host, and what each carries\n\n'
        'By iscsiadm, over SSH. A session carries a volume if the serial of '
        'its disk, the connection record of an attachment or the name of the '
        'target says so. Changes nothing.'
    )

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.cloud import client
        from osc_drp.engine import facts
        from osc_drp.hosts import iscsi

        cloud = client.connect(self.app)
        seen = cloud.observe()
        found = iscsi.read_carried(
            self._host(parsed_args), cloud, seen, parsed_args.host
        )
        users = facts.group(facts.pairs(seen), lambda p: p.volume_id)
        columns = (
            'Session',
            'Target',
            'Portal',
            'State',
            'Disks',
            'Volume ID',
            'Server',
            'Known By',
        )

        def servers(volume_id: str) -> str:
            return ', '.join(
                p.server.name if p.server else p.server_id
                for p in users.get(volume_id, ())
            )

        return columns, (
            (
                one.session.id,
                one.session.target,
                one.session.portal,
                one.session.state,
                ', '.join(d for _lun, d in one.session.disks if d),
                volume_id,
                servers(volume_id),
                one.proofs.get(volume_id, ''),
            )
            for one in found
            for volume_id in sorted(one.volume_ids) or ['']
        )


class DiscoverIscsi(_Iscsi):
    _description = _(
        'Ask a storage portal which iSCSI targets it has\n\n'
        '"iscsiadm -m discovery -t sendtargets" on the host. Its records are '
        'left as they are (nova keeps secrets there), so this changes '
        'nothing.'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_portal(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.hosts import iscsi
        from osc_drp.hosts import parse

        portal = iscsi.check_portal(parsed_args.portal)
        found = self._host(parsed_args).discover(portal)
        return ('Portal', 'Target', 'Volume ID'), (
            (where, target, _volume(parse.VOLUME.search(target)))
            for where, target in found
        )


class LoginIscsi(_Iscsi):
    _description = _(
        'Log in to one iSCSI target from a host\n\n'
        'For storage that did not come back by itself: the SAN of a '
        "cinder-volume, or a volume of a server. The host's own record of "
        'the target is used if there is one, with the secret that nova keeps '
        'in it. Logged in already is done.'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_portal(parser)
        parser.add_argument(
            '--target',
            metavar='<iqn>',
            required=True,
            help=_('Name of the target (IQN)'),
        )
        options.add_change(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp import exceptions
        from osc_drp.hosts import iscsi

        portal = iscsi.check_portal(parsed_args.portal)
        target = iscsi.check_iqn(parsed_args.target)
        host = self._host(parsed_args)
        progress = base.progress(self.app)
        held = base.session(
            parsed_args,
            self.app,
            'iscsi login',
            None,
            progress.say,
            host=parsed_args.host,
            portal=portal,
            target=target,
        )
        key = {'host': parsed_args.host, 'portal': portal, 'target': target}
        with held.held(parsed_args.dry_run):
            result = _('logged in already')
            if not _session_of(host, portal, target):
                result = _('would log in')
                if not parsed_args.dry_run:
                    base.confirm(
                        _('%(host)s will log in to %(target)s') % key,
                        f'login {parsed_args.host}',
                        parsed_args.auto_approve,
                    )
                    with held.journal() as run:
                        run.write('before', action='iscsi login', **key)
                        host.login(portal, target)
                        if not _session_of(host, portal, target):
                            raise exceptions.SshError(
                                _('%(host)s has no session to %(target)s')
                                % key
                            )
                        result = _('logged in')
                        run.write(
                            'outcome',
                            action='iscsi login',
                            status='done',
                            what=result,
                            **key,
                        )
        return ('Host', 'Portal', 'Target', 'Result'), [
            (*key.values(), result)
        ]


class LogoutIscsi(_Iscsi):
    _description = (
        _(
            "Close one iSCSI session that carries a server's volume\n\n"
            'To reproduce the loss of its storage, or to clear a session '
            'that was left. Refused (exit code 4) unless it is proven that '
            'the session carries volumes of this server and nothing else, '
            'and, without --even-if-running, that the server is off. There '
            'is no way to say "all". '
        )
        + WARNING
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--session',
            metavar='<number>',
            type=options.positive,
            required=True,
            help=_('The session to close, as "drp iscsi list" shows it'),
        )
        parser.add_argument(
            '--server',
            metavar='<server>',
            required=True,
            help=_('The server whose volume it carries (name or ID)'),
        )
        parser.add_argument(
            '--even-if-running',
            action='store_true',
            help=_(
                'Cut the disk off under a server that runs, to rehearse a '
                'loss: what it has not written to the disk is lost'
            ),
        )
        options.add_change(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.cloud import client
        from osc_drp import exceptions
        from osc_drp.hosts import iscsi

        cloud = client.connect(self.app)
        seen = cloud.observe()
        server = base.find_server(seen, parsed_args.server)
        host = self._host(parsed_args)
        progress = base.progress(self.app)
        number = parsed_args.session
        held = base.session(
            parsed_args,
            self.app,
            'iscsi logout',
            None,
            progress.say,
            host=parsed_args.host,
            session=str(number),
            server=server.id,
        )
        with held.held(parsed_args.dry_run):
            found = {
                one.session.id: one
                for one in iscsi.read_carried(
                    host, cloud, seen, parsed_args.host
                )
            }
            if number in found:
                one = found[number]
                iscsi.prove(
                    one,
                    server,
                    seen,
                    parsed_args.host,
                    parsed_args.even_if_running,
                )
                result = _('would log out')
                if not parsed_args.dry_run:
                    result = self._close(parsed_args, held, host, one, server)
            elif held.earlier():
                result = _('logged out, before this command was repeated')
                with held.journal() as run:
                    run.write('outcome', action='iscsi logout', status='done')
            else:
                raise exceptions.Refused(
                    _('%(host)s has no session %(id)d')
                    % {'host': parsed_args.host, 'id': number}
                )
        return ('Host', 'Session', 'Server', 'Result'), [
            (parsed_args.host, number, server.name, result)
        ]

    def _close(
        self,
        parsed_args: argparse.Namespace,
        held: ty.Any,
        host: 'iscsi.Host',
        one: 'iscsi.Carried',
        server: 'facts.Server',
    ) -> str:
        from osc_drp import exceptions

        key = {
            'host': parsed_args.host,
            'session': one.session.id,
            'target': one.session.target,
            'portal': one.session.portal,
            'server': server.id,
            'volumes': sorted(one.volume_ids),
        }
        base.confirm(
            _("the session of '%(server)s' to %(target)s will be closed")
            % {'server': server.name, 'target': one.session.target},
            f'logout {one.session.id}',
            parsed_args.auto_approve,
        )
        with held.journal() as run:
            run.write('before', action='iscsi logout', **key)
            host.logout(one.session)
            left, _serials = host.sessions()
            if any(
                s.id == one.session.id and s.target == one.session.target
                for s in left
            ):
                raise exceptions.SshError(
                    _('%(host)s still has session %(session)d') % key
                )
            run.write('outcome', action='iscsi logout', status='done', **key)
        return _('logged out')


def _add_portal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--portal',
        metavar='<portal>',
        required=True,
        help=_("The storage's portal, as address or address:port"),
    )


def _volume(found: ty.Any) -> str:
    return str(found.group(1)) if found else ''


def _session_of(host: 'iscsi.Host', portal: str, target: str) -> bool:
    """Whether the host has a session to a target at a portal."""
    from osc_drp.hosts import iscsi

    sessions, _serials = host.sessions()
    return any(
        s.target == target and iscsi.same_portal(portal, s.portal)
        for s in sessions
    )
