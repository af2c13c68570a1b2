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

"""Database URLs from nova.conf, cinder.conf and osc-drp.conf.

The files are read as the services read them (oslo.config: several files,
``<file>.d`` directories, ``$`` substitution), but never the environment:
osc-drp lives among ``OS_*`` variables, and oslo.config would take
``OS_DATABASE__CONNECTION`` over the file.
"""

import copy
import dataclasses
import os
import pathlib
import re
import typing as ty
import urllib.parse

from oslo_config import cfg
from oslo_db import options as db_options
import sqlalchemy as sa

from osc_drp import exceptions

NOVA_CONF = '/etc/nova/nova.conf'
CINDER_CONF = '/etc/cinder/cinder.conf'
DRP_CONF = ('~/.config/osc-drp/osc-drp.conf', '/etc/osc-drp/osc-drp.conf')

_Paths = ty.Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Urls:
    """Where the databases are. Nothing of it shows in ``repr``."""

    cinder: str = dataclasses.field(repr=False)
    #: None: cinder's database only (`drp db reset --cinder-only`).
    nova_api: str | None = dataclasses.field(repr=False)
    #: nova's [database] connection: fills the templates of cell_mappings.
    nova_default: str | None = dataclasses.field(default=None, repr=False)
    #: Of osc-drp.conf; they replace those of every URL.
    user: str | None = dataclasses.field(default=None, repr=False)
    password: str | None = dataclasses.field(default=None, repr=False)
    #: nova's [database] connection_parameters, which nova adds to the URLs
    #: of all cells.
    cell_parameters: str = dataclasses.field(default='', repr=False)

    def cell(self, database_connection: str) -> str:
        """Make the URL of a cell from its row in cell_mappings.

        :raises ConfigError: if the template cannot be filled
        """
        return _finish(
            fill_template(database_connection, self.nova_default),
            'database_connection in cell_mappings',
            self.cell_parameters,
            self.user,
            self.password,
        )


def load(
    nova_files: _Paths = (),
    cinder_files: _Paths = (),
    drp_file: str | None = None,
) -> Urls:
    """Read the files; empty lists mean the usual places.

    :raises ConfigError: if a file is missing, unreadable or broken, or lacks
        an option; it names the file and the option
    """
    nova_files = list(nova_files) or [NOVA_CONF]
    cinder_files = list(cinder_files) or [CINDER_CONF]
    user, password = _credentials(drp_file)
    nova = _parse('nova', nova_files, ('database', 'api_database'))
    cinder = _parse('cinder', cinder_files, ('database',))
    default = _option(nova, 'database', 'connection', nova_files)
    return Urls(
        cinder=_url(cinder, 'database', cinder_files, user, password),
        nova_api=_url(nova, 'api_database', nova_files, user, password),
        nova_default=default or None,
        user=user,
        password=password,
        cell_parameters=_option(
            nova, 'database', 'connection_parameters', nova_files
        ),
    )


def load_cinder(
    cinder_files: _Paths = (), drp_file: str | None = None
) -> Urls:
    """Read cinder's files only, for who has nothing of nova's.

    :raises ConfigError: as ``load``
    """
    cinder_files = list(cinder_files) or [CINDER_CONF]
    user, password = _credentials(drp_file)
    cinder = _parse('cinder', cinder_files, ('database',))
    return Urls(
        cinder=_url(cinder, 'database', cinder_files, user, password),
        nova_api=None,
        user=user,
        password=password,
    )


def fill_template(template: str, default_url: str | None) -> str:
    """Fill a URL of cell_mappings from nova's [database] connection.

    As nova does (nova 34.0.0 objects/cell_mapping.py:_format_url): the parts
    go in as they are written, so quoted passwords stay quoted.

    :raises ConfigError: if there is no default URL, or an unknown field
    """
    if '{' not in template:
        return template
    if default_url is None:
        raise exceptions.ConfigError(
            'cell_mappings has a URL template, but nova.conf has no'
            ' [database] connection to fill it from'
        )
    try:
        return template.format(**_template_fields(default_url))
    except (KeyError, IndexError, ValueError, AttributeError):
        # As below: a port that is no number may be the end of a password.
        raise exceptions.ConfigError(
            'cell_mappings has a URL template that [database] connection of'
            ' nova.conf does not fill'
        ) from None


def _template_fields(default_url: str) -> dict[str, ty.Any]:
    url = urllib.parse.urlparse(default_url)
    fields: dict[str, ty.Any] = {
        'username': url.username,
        'password': url.password,
        'hostname': url.hostname,
        'port': url.port,
        'scheme': url.scheme,
        'query': url.query,
        'fragment': url.fragment,
        'path': url.path.lstrip('/'),
    }
    hosts = url.netloc.split(',')
    for index, host in enumerate(hosts if len(hosts) > 1 else (), 1):
        for name, value in _netloc_fields(host).items():
            fields[f'{name}{index}'] = value
    return fields


def _netloc_fields(netloc: str) -> dict[str, ty.Any]:
    """Split one user:password@host:port, as nova's _parse_netloc does."""
    parts = urllib.parse.urlsplit(f'//{netloc}')
    return {
        'username': parts.username,
        'password': parts.password,
        'hostname': parts.hostname,
        'port': parts.port,
    }


def _finish(
    url: str,
    source: str,
    parameters: str,
    user: str | None,
    password: str | None,
) -> str:
    """Add the service's connection parameters, and our own user."""
    try:
        made = sa.make_url(url)
        if parameters:
            made = made.update_query_string(parameters, append=True)
    except (sa.exc.ArgumentError, ValueError):
        # The exception quotes the URL, or a part of its password.
        raise exceptions.ConfigError(
            f'{source} is not a database URL'
        ) from None
    if user is not None and made.get_backend_name() != 'sqlite':
        made = made.set(username=user, password=password)
    return made.render_as_string(hide_password=False)


def _parse(
    project: str, files: _Paths, groups: ty.Iterable[str]
) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    for group in groups:
        # The objects must not be shared between groups: oslo.config keeps
        # state in them.
        conf.register_opts(copy.deepcopy(db_options.database_opts), group)
    # What a connection may refer to with '$'.
    conf.register_opts(
        [cfg.StrOpt(name) for name in ('my_ip', 'host', 'state_path')]
    )
    _call(conf, project, files)
    return conf


def _call(conf: cfg.ConfigOpts, project: str, files: _Paths) -> None:
    try:
        conf(
            args=[],
            project=project,
            default_config_files=list(files),
            default_config_dirs=_directories(files),
            use_env=False,
        )
    except cfg.ConfigFilesNotFoundError as e:
        raise exceptions.ConfigError(
            f'{_names(e.config_files)} does not exist'
        ) from e
    except cfg.ConfigFilesPermissionDeniedError as e:
        raise exceptions.ConfigError(
            f'{_names(e.config_files)} cannot be read by this user'
        ) from e
    except cfg.ConfigFileParseError as e:
        # The exception quotes the line, which may hold a password.
        line = re.search(r' at .*:(\d+),', str(e))
        where = f', line {line[1]}' if line else ''
        raise exceptions.ConfigError(
            f'{e.config_file} is not a configuration file{where}'
        ) from None
    except (cfg.Error, OSError, UnicodeError) as e:
        raise exceptions.ConfigError(
            f'{_names(files)} cannot be read: {type(e).__name__}'
        ) from None


def _directories(files: _Paths) -> list[str]:
    """/etc/nova/nova.conf.d and the like: read after the files."""
    return [f'{f}.d' for f in files if pathlib.Path(f'{f}.d').is_dir()]


def _url(
    conf: cfg.ConfigOpts,
    group: str,
    files: _Paths,
    user: str | None,
    password: str | None,
) -> str:
    url = _option(conf, group, 'connection', files)
    if not url:
        raise exceptions.ConfigError(
            f'[{group}] connection is missing in {_names(files)}'
        )
    source = f'[{group}] connection in {_names(files)}'
    parameters = _option(conf, group, 'connection_parameters', files)
    return _finish(url, source, parameters, user, password)


def _option(conf: cfg.ConfigOpts, group: str, name: str, files: _Paths) -> str:
    try:
        return conf[group][name] or ''
    except (cfg.Error, ValueError):
        # What follows a '$' may as well be the end of a password.
        raise exceptions.ConfigError(
            f'[{group}] {name} in {_names(files)} refers to an option that'
            ' is not known'
        ) from None


def _names(files: ty.Iterable[str]) -> str:
    return ', '.join(files)


def _credentials(drp_file: str | None) -> tuple[str | None, str | None]:
    """Read user and password of osc-drp.conf, if there is one."""
    path = _drp_path(drp_file)
    if path is None:
        return None, None
    conf = cfg.ConfigOpts()
    options = [cfg.StrOpt('user'), cfg.StrOpt('password_file')]
    conf.register_opts(options, 'database')
    _call(conf, 'osc-drp', [str(path)])
    user, password_file = conf.database.user, conf.database.password_file
    if not user and not password_file:
        return None, None
    for name, value in (('user', user), ('password_file', password_file)):
        if not value:
            raise exceptions.ConfigError(
                f'[database] {name} is missing in {path}'
            )
    return user, _password(path, password_file)


def _drp_path(drp_file: str | None) -> pathlib.Path | None:
    if drp_file is not None:
        return _home(drp_file)
    usual = map(_home, DRP_CONF)
    return next((path for path in usual if path.exists()), None)


def _home(name: str) -> pathlib.Path:
    """Fill in '~', or leave it where nobody knows whose home is meant."""
    return pathlib.Path(os.path.expanduser(name))


def _password(conf: pathlib.Path, name: str) -> str:
    path = conf.parent / _home(name)
    try:
        password = path.read_text(encoding='utf-8').rstrip('\r\n')
    except (OSError, UnicodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else 'not UTF-8'
        raise exceptions.ConfigError(
            f'[database] password_file of {conf}: {path}: {reason}'
        ) from e
    if not password:
        raise exceptions.ConfigError(
            f'[database] password_file of {conf}: {path} is empty'
        )
    return password
