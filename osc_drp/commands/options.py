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

"""The options that several `drp` commands share, and their types.

This module is imported on every ``openstack`` call, whatever the command:
the standard library only.
"""

import argparse

from osc_drp.i18n import _

#: Seconds that an option may wait.
LONGEST = 1_000_000_000


def add_map(
    parser: argparse.ArgumentParser, text: str, optional: bool = False
) -> None:
    """Add the argument that is a map's file."""
    parser.add_argument(
        'file',
        metavar='<file>',
        type=name,
        nargs='?' if optional else None,
        help=text,
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that pick a part of the map; none: all of it."""
    group = parser.add_argument_group(_('selection'))
    for option, metavar, text in (
        ('server', '<server>', _('Only this server (name or ID)')),
        ('project', '<project>', _('Only servers of this project (ID)')),
        ('host', '<host>', _('Only servers on this compute host')),
        ('volume', '<volume>', _('Only this volume (name or ID)')),
    ):
        group.add_argument(
            f'--{option}',
            metavar=metavar,
            type=name,
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
        type=name,
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
        help=_('How many of these on one compute host (default: 4)'),
    )


def add_databases(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the databases are."""
    group = parser.add_argument_group(_('databases'))
    group.add_argument(
        '--nova-config-file',
        metavar='<file>',
        type=name,
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
        type=name,
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
        type=name,
        help=_(
            'osc-drp.conf with [database] user and password_file, which '
            'replace those of the services (default: '
            '~/.config/osc-drp/osc-drp.conf, /etc/osc-drp/osc-drp.conf)'
        ),
    )


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
        type=name,
        help=_(
            'Configuration for the ssh program (default: its own, '
            '~/.ssh/config); host keys are always checked'
        ),
    )
    group.add_argument(
        '--ssh-user',
        metavar='<user>',
        type=name,
        help=_('Log in as this user (default: as the configuration says)'),
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the option that says by which network guests are reached."""
    parser.add_argument(
        '--network',
        metavar='<network>',
        type=name,
        help=_(
            "Use nova's addresses of this network (name) for servers that "
            'the ssh configuration does not name (default: of any; floating '
            'before fixed, IPv4 before IPv6)'
        ),
    )


def name(text: str) -> str:
    """Parse what is not empty: "$MAP" may be, and would mean everything."""
    if not text:
        raise argparse.ArgumentTypeError(_('must not be empty'))
    return text


def positive(text: str) -> int:
    """Parse a number of at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(_('must be at least 1'))
    return number


def seconds(text: str) -> float:
    """Parse a span of time that is not negative."""
    number = float(text)
    # no clock can wait for what is far beyond a life
    if not 0 <= number <= LONGEST:
        raise argparse.ArgumentTypeError(
            _('must be from 0 to %d seconds') % LONGEST
        )
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
    try:
        when = when.astimezone(datetime.UTC)
    except OverflowError:
        raise argparse.ArgumentTypeError(
            _("'%s' is no year in UTC from 1 to 9999") % text
        ) from None
    # not strftime(): its %Y has less than four digits before the year 1000
    return when.replace(tzinfo=None).isoformat(timespec='seconds') + 'Z'
