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

"""What all `drp` commands share: options, errors, the question, exit codes.

This module is imported on every ``openstack`` call, whatever the command:
standard library, cliff and our own exceptions only.
"""

import argparse
import collections.abc
import contextlib
import os
import pathlib
import typing as ty

from openstackclient import command

from osc_drp import exceptions
from osc_drp.i18n import _

EXIT_CODES = _(
    'Exit codes: 0 done; 1 failed (a file, a database, an API); 2 wrong '
    'usage; 3 finished, but some objects failed or need a person; 4 '
    'refused by a safety check, nothing changed; 130 interrupted.'
)

#: The names of the cloud where nobody named one.
NO_CLOUD = frozenset({'envvars', 'defaults'})
#: What options and arguments are called that are looked for from here.
PATHS = frozenset({'<file>', '<directory>'})

Rows: ty.TypeAlias = collections.abc.Iterable[tuple[ty.Any, ...]]
Table: ty.TypeAlias = tuple[tuple[str, ...], Rows]


class _Base(command.Command):
    """Turns our errors into one sentence and their exit code."""

    # Keystone may be down after a power loss: whoever needs an API asks for
    # it (cloud.session.connect), nobody needs it to be able to start.
    auth_required = False

    _parser: argparse.ArgumentParser | None = None

    #: What a command that prints its table nevertheless ends with.
    exit_code = exceptions.DONE

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.epilog = EXIT_CODES
        # cliff's: how the table is printed
        self._foreign = {a.dest for a in parser._actions}
        self._parser = parser
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        if self._parser:
            parsed_args.again = self._words(self._parser, parsed_args)
        try:
            code = super().run(parsed_args)
        except exceptions.DrpError as error:
            self.log.debug('the error in full', exc_info=True)
            self.log.error('%s', error)
            return error.exit_code
        except KeyboardInterrupt:
            self.log.error(
                _('interrupted; the same command goes on where this ended')
            )
            return exceptions.INTERRUPTED
        return code or self.exit_code

    def _words(
        self, parser: argparse.ArgumentParser, parsed_args: argparse.Namespace
    ) -> list[str]:
        """Give the command again, as it has to be typed anywhere.

        From what was parsed, not from what was typed: a global option may
        have been a password. Without --auto-approve: then it asks.
        """
        words = ['openstack']
        name = cloud_name(self.app)
        if name not in NO_CLOUD:
            words += ['--os-cloud', name]
        words += (self.cmd_name or '').split()
        given: list[str] = []
        for action in parser._actions:
            value = getattr(parsed_args, action.dest, None)
            if action.dest in {*self._foreign, 'dry_run', 'auto_approve'}:
                continue
            if value == action.default:
                continue
            if action.nargs == 0:
                words.append(action.option_strings[0])
                continue
            for one in value if isinstance(value, list) else [value]:
                text = str(one)
                if action.metavar in PATHS and text != '-':
                    text = os.path.abspath(text)
                if action.option_strings:
                    words += [action.option_strings[0], text]
                else:
                    given.append(text)
        return words + given


class DrpCommand(_Base):
    """A command without a table."""


class DrpLister(_Base, command.Lister):
    """A command that prints one table, and still has an exit code."""


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that pick a part of the map; none: all of it."""
    group = parser.add_argument_group(_('selection'))
    for name, metavar, text in (
        ('server', '<server>', _('Only this server (name or ID)')),
        ('project', '<project>', _('Only servers of this project (ID)')),
        ('host', '<host>', _('Only servers on this compute host')),
        ('volume', '<volume>', _('Only this volume (name or ID)')),
    ):
        group.add_argument(
            f'--{name}',
            metavar=metavar,
            action='append',
            default=[],
            help=text + _(' (repeat option to select several)'),
        )


def add_change(parser: argparse.ArgumentParser) -> None:
    """Add the options of whatever changes something."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        '--dry-run',
        action='store_true',
        help=_('Show what would be done, and do nothing'),
    )
    group.add_argument(
        '--auto-approve',
        action='store_true',
        help=_('Do not ask (needed where there is no terminal)'),
    )
    add_run_dir(parser)


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the journals are."""
    parser.add_argument(
        '--run-dir',
        metavar='<directory>',
        help=_(
            'Where the journals of all runs on this cloud lie '
            '(default: $XDG_STATE_HOME/osc-drp/<cloud>)'
        ),
    )


def add_readiness(parser: argparse.ArgumentParser) -> None:
    """Add the options on how long to wait, and for what."""
    parser.add_argument(
        '--wait',
        metavar='<seconds>',
        type=seconds,
        default=300.0,
        help=_(
            'How long to wait for services and busy servers (default: 300)'
        ),
    )
    parser.add_argument(
        '--settle',
        metavar='<seconds>',
        type=seconds,
        default=120.0,
        help=_(
            'How long a server that nova calls active must be seen '
            'unchanged, with its nova-compute up, before that is '
            'believed (default: 120)'
        ),
    )
    parser.add_argument(
        '--skip-not-ready',
        action='store_true',
        help=_(
            'Go on without the servers whose services are not up after '
            'the time of --wait; they are listed'
        ),
    )


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add the share of disagreement at which nothing is written."""
    parser.add_argument(
        '--limit',
        metavar='<percent>',
        type=percent,
        default=5.0,
        help=_(
            'How much of all mappings may disagree without a trace '
            'before nothing is written at all (default: 5)'
        ),
    )


def add_lanes(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the limits on how much is done at once."""
    parser.add_argument(
        '--parallel',
        metavar='<number>',
        type=positive,
        default=8,
        help=_('How many %s at once (default: 8)') % what,
    )
    parser.add_argument(
        '--per-host',
        metavar='<number>',
        type=positive,
        default=4,
        help=_('How many %s at once on one compute host (default: 4)') % what,
    )


def add_databases(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the databases are."""
    group = parser.add_argument_group(_('databases'))
    group.add_argument(
        '--nova-config-file',
        metavar='<file>',
        action='append',
        default=[],
        help=_(
            'nova.conf with [api_database] and [database] connection '
            '(default: /etc/nova/nova.conf; repeat option for several)'
        ),
    )
    group.add_argument(
        '--cinder-config-file',
        metavar='<file>',
        action='append',
        default=[],
        help=_(
            'cinder.conf with [database] connection '
            '(default: /etc/cinder/cinder.conf; repeat option for several)'
        ),
    )
    group.add_argument(
        '--config-file',
        metavar='<file>',
        help=_(
            'osc-drp.conf with [database] user and password_file, which '
            'replace those of the services (default: '
            '~/.config/osc-drp/osc-drp.conf, /etc/osc-drp/osc-drp.conf)'
        ),
    )


def databases(parsed_args: argparse.Namespace) -> ty.Any:
    """Open the databases that the options name (a context manager)."""
    from osc_drp.db import client

    return client.connect(
        parsed_args.nova_config_file,
        parsed_args.cinder_config_file,
        parsed_args.config_file,
    )


def half_databases(
    parsed_args: argparse.Namespace, app: ty.Any
) -> contextlib.AbstractContextManager[ty.Any]:
    """Open cinder's database only, and log in for nova's side."""
    from osc_drp.cloud import client as cloud_client
    from osc_drp.db import client
    from osc_drp.engine import cinder_only

    @contextlib.contextmanager
    def opened() -> collections.abc.Iterator[cinder_only.HalfDatabases]:
        cloud = cloud_client.connect(app)
        with client.connect_cinder(
            parsed_args.cinder_config_file, parsed_args.config_file
        ) as cinder:
            yield cinder_only.HalfDatabases(cloud, cinder)

    return opened()


def databases_configured() -> bool:
    """Tell whether the services' configuration files lie where they do."""
    from osc_drp.db import client

    return client.configured()


def add_lost_at(parser: argparse.ArgumentParser) -> None:
    """Add the option that says when the power went."""
    parser.add_argument(
        '--lost-at',
        metavar='<time>',
        type=utc_time,
        help=_(
            'Also count as running what nova stopped by itself after this '
            'time (UTC, ISO 8601: 2026-11-22T03:12:00Z); needed if no server '
            'of the map ran'
        ),
    )


def add_ssh(parser: argparse.ArgumentParser) -> None:
    """Add the options of whatever uses the ssh program."""
    group = parser.add_argument_group(_('ssh'))
    group.add_argument(
        '--ssh-config',
        metavar='<file>',
        help=_(
            'Configuration for the ssh program (default: its own, '
            '~/.ssh/config); host keys are always checked'
        ),
    )
    group.add_argument(
        '--ssh-user',
        metavar='<user>',
        help=_('Log in as this user (default: as the configuration says)'),
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the option that says by which network guests are reached."""
    parser.add_argument(
        '--network',
        metavar='<network>',
        help=_(
            "Use nova's addresses of this network (name) for servers that "
            'the ssh configuration does not name (default: of any; floating '
            'before fixed, IPv4 before IPv6)'
        ),
    )


def positive(text: str) -> int:
    """Parse a number of at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(_('must be at least 1'))
    return number


def seconds(text: str) -> float:
    """Parse a span of time that is not negative."""
    number = float(text)
    if not 0 <= number < float('inf'):
        raise argparse.ArgumentTypeError(_('must be 0 or more seconds'))
    return number


def percent(text: str) -> float:
    """Parse a share of the whole."""
    number = float(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(_('must be from 0 to 100'))
    return number


def utc_time(text: str) -> str:
    """Parse an ISO 8601 time; without an offset it is UTC."""
    import datetime

    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            _("'%s' is no ISO 8601 time") % text
        ) from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return when.astimezone(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%SZ')


def guests(
    parsed_args: argparse.Namespace, cloud: ty.Any, cloud_map: ty.Any
) -> ty.Any:
    """Give the way into the servers of a map."""
    from osc_drp.engine import facts
    from osc_drp.hosts import guests as hosts_guests
    from osc_drp.hosts import ssh

    attachments = facts.group(cloud_map.attachments, lambda a: a.server_id)
    return hosts_guests.Guests(
        ssh.Ssh(parsed_args.ssh_config, parsed_args.ssh_user),
        cloud.addresses,
        lambda server_id: [
            a.volume_id for a in attachments.get(server_id, ())
        ],
        parsed_args.network,
    )


def find_server(seen: ty.Any, wanted: str) -> ty.Any:
    """Find a server by its id or its only name.

    :raises DrpError: there is none, or more than one
    """
    if wanted in seen.servers:
        return seen.servers[wanted]
    found = [s for s in seen.servers.values() if s.name == wanted]
    if not found:
        raise exceptions.DrpError(_("there is no server '%s'") % wanted)
    if len(found) > 1:
        raise exceptions.DrpError(
            _("more than one server is named '%s': use its id") % wanted
        )
    return found[0]


def selection(parsed_args: argparse.Namespace) -> ty.Any:
    """Give the plan.Selection that the options name."""
    from osc_drp.engine import plan

    return plan.Selection(
        tuple(parsed_args.server),
        tuple(parsed_args.project),
        tuple(parsed_args.host),
        tuple(parsed_args.volume),
    )


def restart_settings(parsed_args: argparse.Namespace) -> ty.Any:
    """Give the restart.Settings that the options name."""
    from osc_drp.engine import apply
    from osc_drp.engine import restart

    return restart.Settings(
        wait=parsed_args.wait,
        settle=parsed_args.settle,
        lost_at=parsed_args.lost_at,
        skip_not_ready=parsed_args.skip_not_ready,
        limits=apply.Limits(parsed_args.parallel, parsed_args.per_host),
    )


def session(
    parsed_args: argparse.Namespace,
    app: ty.Any,
    command_name: str,
    cloud_map: ty.Any,
    say: ty.Any,
    **subject: str,
) -> ty.Any:
    """Open the engine's session for a command on a map (None: without).

    :param subject: what it is about, besides map and selection
    """
    from osc_drp.engine import session as engine_session

    return engine_session.Session(
        run_directory(parsed_args, app),
        command_name,
        {
            'map': cloud_map.sha256 if cloud_map else '',
            'selection': (
                selection(parsed_args).subject()
                if hasattr(parsed_args, 'project')
                else {}
            ),
            **subject,
        },
        say,
        getattr(parsed_args, 'again', ()),
    )


def cloud_name(app: ty.Any) -> str:
    """Name the cloud as clouds.yaml does ('envvars' without one)."""
    return getattr(app.cloud, 'name', None) or 'envvars'


def run_directory(
    parsed_args: argparse.Namespace, app: ty.Any
) -> pathlib.Path:
    """Tell where the journals lie."""
    if parsed_args.run_dir:
        return pathlib.Path(parsed_args.run_dir)
    state = os.environ.get('XDG_STATE_HOME') or '~/.local/state'
    return pathlib.Path(state).expanduser() / 'osc-drp' / cloud_name(app)


def progress(app: ty.Any) -> ty.Any:
    """Give the progress.Progress of a command that acts."""
    from osc_drp import progress

    return progress.Progress(app.stderr, quiet=app.options.verbose_level == 0)


def confirm(sentence: str, phrase: str, approved: bool) -> None:
    """Ask the operator to type the phrase with the numbers.

    Asks on the terminal itself: standard input may be the map.

    :param sentence: what is about to happen, with the numbers
    :raises Refused: no terminal, or another answer
    """
    if approved:
        return
    try:
        # two streams: a terminal cannot seek, so one for both is refused
        with (
            open('/dev/tty', 'w', errors='replace') as screen,
            open('/dev/tty', errors='replace') as keyboard,
        ):
            screen.write(
                _("%(what)s: type '%(phrase)s' to go on: ")
                % {'what': sentence, 'phrase': phrase}
            )
            screen.flush()
            answer = keyboard.readline().strip()
    except OSError:
        raise exceptions.Refused(
            _('no terminal to ask on: use --auto-approve to %s') % phrase
        ) from None
    if answer != phrase:
        raise exceptions.Refused(
            _("the answer was not '%s': nothing was changed") % phrase
        )
