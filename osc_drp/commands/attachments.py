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

"""The map of all attachments: take it, look at it."""

import argparse

from osc_drp.commands import base
from osc_drp.i18n import _


class SaveAttachments(base.DrpCommand):
    _description = _(
        'Save which volumes each server has, and which servers run\n\n'
        'Step 1 of the recovery, or better: done daily. The map is the union '
        "of nova's and cinder's records. An existing file is never "
        'overwritten; a cell that is down or a short listing is an error and '
        'leaves no file (admin only).'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'file',
            metavar='<file>',
            help=_('File to write the map to (- for standard output)'),
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from osc_drp.cloud import read
        from osc_drp.cloud import session
        from osc_drp.engine import mapmaker
        from osc_drp import mapfile
        from osc_drp import report

        mapfile.refuse_existing(parsed_args.file)
        api = session.connect(self.app)
        seen = read.observe(api)
        cloud_map = mapmaker.make_map(seen, api.cloud)
        digest = mapfile.write(cloud_map, parsed_args.file)
        report.Reporter(self.app.stderr).say(
            _(
                'saved %(servers)d servers, %(attachments)d attachments to '
                '%(file)s (sha256 %(sha256)s)'
            )
            % {
                'servers': len(cloud_map.servers),
                'attachments': len(cloud_map.attachments),
                'file': parsed_args.file,
                'sha256': digest,
            }
        )


class ShowAttachments(base.DrpLister):
    _description = _(
        'Show the attachments in a map\n\n'
        'Needs no cloud. With -f value -c Volume -c Server -c Device it '
        "prints the procedure's three columns, which drp attachments restore "
        'takes as well.'
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'file',
            metavar='<file>',
            help=_('Map to show (- for standard input)'),
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> base.Table:
        from osc_drp.engine import mapmaker
        from osc_drp import mapfile

        cloud_map = mapfile.read(parsed_args.file)
        servers = {s.id: s for s in cloud_map.servers}
        names = {s.id: s.name for s in cloud_map.servers}
        columns = (
            'Volume',
            'Server',
            'Device',
            'Server Name',
            'Root',
            'Tag',
            'Delete On Termination',
            'Multiattach',
            'Recorded By',
            'Ran',
        )
        return columns, (
            (
                one.volume_id,
                one.server_id,
                one.device,
                names.get(one.server_id),
                one.root,
                one.tag,
                one.delete_on_termination,
                one.multiattach,
                one.recorded_by,
                one.server_id in servers and servers[one.server_id].ran,
            )
            for one in mapmaker.in_order(cloud_map.attachments, names)
        )
