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

"""The map as a file: one JSON document, an object a line, a hash at its end.

::

    {
    "format": "osc-drp map",
    "version": 1,
    "taken_at": "2026-11-22T16:38:22Z",
    "cloud": "lab",
    "source": "api",
    "counts": {"servers": 1, "attachments": 1},
    "servers": [
    {"id": "...", "name": "web1", ...}
    ],
    "attachments": [
    {"server_id": "...", "volume_id": "...", "device": "/dev/vdb", ...}
    ],
    "sha256": "(of all bytes before this line)"
    }

Who acts on a map acts on thousands of servers: the reader takes what the
writer wrote and nothing else. Every error is a
:class:`~osc_drp.exceptions.MapError` of one sentence with file, line and
field. No secret and no connection_info is ever in a map (DESIGN 8).
"""

import dataclasses
import hashlib
import json
import os
import re
import sys
import typing as ty

from osc_drp.engine import facts
from osc_drp import exceptions
from osc_drp import newfile
from osc_drp.i18n import _

FORMAT = 'osc-drp map'
VERSION = 1
STANDARD = '-'

#: Where the objects of the first list begin, by the layout above.
_FIRST_LINE = 9
_UUID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')
_TIME = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ')
_TAIL = re.compile(rb'"sha256": "([0-9a-f]{64})"\n\}\n')
_DEVICE = re.compile(r'/dev/[a-z0-9/_-]+')

_Object = dict[str, ty.Any]


def refuse_existing(path: str) -> None:
    """Refuse a name that is taken or impossible, before anything slow begins.

    :raises exceptions.MapError: it exists, or its directory does not, or
        cannot be written.
    """
    if path == STANDARD:
        return
    if os.path.lexists(path):
        raise _exists(path)
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        reason = _("there is no directory '%s'") % directory
    elif not os.access(directory, os.W_OK | os.X_OK):
        reason = _("the directory '%s' cannot be written") % directory
    else:
        return
    raise exceptions.MapError(
        _("map '%(path)s': cannot be written: %(reason)s")
        % {'path': path, 'reason': reason}
    )


def write(cloud_map: facts.CloudMap, path: str) -> str:
    """Write a map and return its sha256.

    Whole or not at all: written aside in the same directory with mode 0600,
    synced, read back and compared, and only then linked to its name; an
    existing file is never overwritten.

    :param path: '-' writes to standard output.
    :raises exceptions.MapError: the name is taken, or the file cannot be
        written or read back.
    """
    data = encode(cloud_map)
    digest = _digest(data)
    expected = dataclasses.replace(cloud_map, sha256=digest)
    if _parse(data, path) != expected:
        raise exceptions.MapError(
            _("map '%s': cannot be put into a file without a loss") % path
        )
    if path == STANDARD:
        sys.stdout.write(data.decode('ascii'))
        sys.stdout.flush()
        return digest
    try:
        newfile.write(data, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as exc:
        raise exceptions.MapError(
            _("map '%(path)s': cannot be written: %(reason)s")
            % {'path': path, 'reason': exc.strerror or exc}
        ) from exc
    if read(path) != expected:
        raise exceptions.MapError(
            _("map '%s': reads back as something else: do not use it") % path
        )
    return digest


def read(path: str, allow_bare: bool = False) -> facts.CloudMap:
    """Read a map.

    :param path: '-' reads standard input.
    :param allow_bare: also take the procedure's file with three columns,
        volume, server and device.
    :raises exceptions.MapError: it is missing, damaged, or no map.
    """
    try:
        if path == STANDARD:
            # closed by the caller: Python has none then
            if sys.stdin is None:
                raise OSError(_('standard input is closed'))
            data = sys.stdin.buffer.read()
        else:
            with open(path, 'rb') as stream:
                data = stream.read()
    except OSError as exc:
        raise exceptions.MapError(
            _("map '%(path)s': %(reason)s")
            % {'path': path, 'reason': exc.strerror or exc}
        ) from exc
    if not data.strip():
        raise _bad(path, _('the file is empty'))
    if allow_bare and not data.lstrip().startswith(b'{'):
        return _parse_bare(data, path)
    return _parse(data, path)


def encode(cloud_map: facts.CloudMap) -> bytes:
    """Lay out a map; its own ``sha256`` and ``bare`` are not written."""
    head: _Object = {
        'format': FORMAT,
        'version': VERSION,
        'taken_at': cloud_map.taken_at,
        'cloud': cloud_map.cloud,
        'source': cloud_map.source,
        'counts': {
            'servers': len(cloud_map.servers),
            'attachments': len(cloud_map.attachments),
        },
    }
    lines = ['{', *(f'"{k}": {json.dumps(v)},' for k, v in head.items())]
    lines += _list('servers', cloud_map.servers)
    lines += _list('attachments', cloud_map.attachments)
    before = ('\n'.join(lines) + '\n').encode('ascii')
    digest = hashlib.sha256(before).hexdigest()
    return before + f'"sha256": "{digest}"\n}}\n'.encode('ascii')


def _list(name: str, items: tuple[ty.Any, ...]) -> list[str]:
    objects = [json.dumps(dataclasses.asdict(i)) for i in items]
    return [
        f'"{name}": [',
        *(f'{text},' for text in objects[:-1]),
        *objects[-1:],
        '],',
    ]


def _digest(data: bytes) -> str:
    found = _TAIL.search(data)
    assert found is not None
    return found[1].decode('ascii')


def _exists(path: str) -> exceptions.MapError:
    return exceptions.MapError(
        _("map '%s' already exists, and is never overwritten") % path
    )


def _bad(
    path: str, what: str, line: int | None = None, field: str | None = None
) -> exceptions.MapError:
    """Make the one sentence: which file, where in it, and what."""
    where = _("map '%s'") % path
    if line is not None:
        where += _(', line %d') % line
    if field is not None:
        where += _(", field '%s'") % field
    return exceptions.MapError(f'{where}: {what}')


class _Repeated(ValueError):
    """A field twice in one object: which of them would count?"""


def _once(pairs: list[tuple[str, ty.Any]]) -> _Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Repeated(
            next(k for k in found if sum(k == p for p, _v in pairs) > 1)
        )
    return found


def _parse(data: bytes, path: str) -> facts.CloudMap:
    document = _load(data, path)
    if document.get('format') != FORMAT:
        raise _bad(path, _("it is not a map of 'drp attachments save'"))
    version = document.get('version')
    if type(version) is not int or version < 1:
        raise _bad(path, _('it must be a number from 1 on'), 3, 'version')
    if version > VERSION:
        raise _bad(
            path,
            _('version %(its)d is newer than this osc-drp reads (%(ours)d)')
            % {'its': version, 'ours': VERSION},
            3,
            'version',
        )
    digest = _verified(data, path)
    return _Reader(document, path).read(digest)


def _load(data: bytes, path: str) -> _Object:
    try:
        text = data.decode('ascii')
    except UnicodeDecodeError as exc:
        line = data.count(b'\n', 0, exc.start) + 1
        raise _bad(path, _('a byte that no map has'), line) from None
    if not text.startswith('{'):
        raise _bad(path, _("it is not a map of 'drp attachments save'"), 1)
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as exc:
        if not text.endswith('}\n') or exc.pos >= len(text.rstrip()):
            line = text.count('\n') + (not text.endswith('\n'))
            raise _bad(path, _('the file is truncated here'), line) from None
        raise _bad(path, _('no JSON: %s') % exc.msg, exc.lineno) from None
    except _Repeated as exc:
        raise _bad(path, _('it is there twice'), None, str(exc)) from None
    except ValueError:
        # int() takes no more than 4300 digits
        before = re.split(r'\d{4300}', text, maxsplit=1)[0]
        line = before.count('\n') + 1
        raise _bad(path, _('a number that is too long'), line) from None
    except RecursionError:
        raise _bad(path, _('no JSON: nested too deep')) from None
    if not isinstance(document, dict):
        raise _bad(path, _("it is not a map of 'drp attachments save'"), 1)
    return document


def _verified(data: bytes, path: str) -> str:
    """Compare the hash at the end with all that comes before it."""
    found = None
    start = data.rfind(b'"sha256": ')
    if start >= 0:
        found = _TAIL.fullmatch(data, start)
    if found is None:
        line = data.count(b'\n')
        raise _bad(path, _('the file does not end in a hash'), line, 'sha256')
    digest = found[1].decode('ascii')
    if hashlib.sha256(data[:start]).hexdigest() != digest:
        line = data.count(b'\n', 0, start) + 1
        raise _bad(
            path,
            _('it differs: the file was changed after it was saved'),
            line,
            'sha256',
        )
    return digest


#: Checks of one field: what it must be, in words, and the test.
_Check = tuple[str, ty.Callable[[ty.Any], bool]]

_STRING: _Check = (_('a string'), lambda v: isinstance(v, str))
_MAYBE: _Check = (
    _('a string or null'),
    lambda v: v is None or isinstance(v, str),
)
_BOOL: _Check = (_('true or false'), lambda v: isinstance(v, bool))
_INT: _Check = (_('a whole number'), lambda v: type(v) is int)
_LIST: _Check = (_('a list'), lambda v: isinstance(v, list))
_ID: _Check = (
    _('an id (UUID)'),
    lambda v: isinstance(v, str) and bool(_UUID.fullmatch(v)),
)
_MAYBE_ID: _Check = (
    _('an id (UUID) or null'),
    lambda v: v is None or (isinstance(v, str) and bool(_UUID.fullmatch(v))),
)
_WHEN: _Check = (
    _("a time, as in '2026-01-31T23:59:59Z'"),
    lambda v: isinstance(v, str) and bool(_TIME.fullmatch(v)),
)


def _one_of(*words: str) -> _Check:
    return ' / '.join(words), lambda v: v in words


_HEAD: dict[str, _Check] = {
    'format': _STRING,
    'version': _INT,
    'taken_at': _WHEN,
    'cloud': _STRING,
    'source': _one_of(facts.API, facts.DATABASE),
    'counts': (_('an object'), lambda v: isinstance(v, dict)),
    'servers': _LIST,
    'attachments': _LIST,
    'sha256': _STRING,
}
_COUNTS: dict[str, _Check] = {'servers': _INT, 'attachments': _INT}
_SERVER: dict[str, _Check] = {
    'id': _ID,
    'name': _STRING,
    'project_id': _STRING,
    'host': _MAYBE,
    'vm_state': _STRING,
    'power_state': _INT,
    'locked': _BOOL,
}
_ATTACHMENT: dict[str, _Check] = {
    'server_id': _ID,
    'volume_id': _ID,
    'device': _MAYBE,
    'attachment_id': _MAYBE_ID,
    'cinder_attachment_id': _MAYBE_ID,
    'recorded_by': _one_of('both', 'nova', 'cinder'),
    'root': _BOOL,
    'tag': _MAYBE,
    'delete_on_termination': _BOOL,
    'multiattach': _BOOL,
}


class _Reader:
    """Checks every field of a document and makes the map of it."""

    def __init__(self, document: _Object, path: str) -> None:
        self.document = document
        self.path = path

    def read(self, digest: str) -> facts.CloudMap:
        """Check the whole and return it."""
        document = self.document
        self._fields(document, _HEAD, None)
        self._fields(document['counts'], _COUNTS, 7)
        servers = self._servers()
        self._count('servers', len(servers))
        attachments = self._attachments(servers)
        self._count('attachments', len(attachments))
        return facts.CloudMap(
            taken_at=document['taken_at'],
            cloud=document['cloud'],
            source=document['source'],
            servers=tuple(servers.values()),
            attachments=attachments,
            sha256=digest,
        )

    def _fields(
        self, item: ty.Any, checks: dict[str, _Check], line: int | None
    ) -> None:
        if not isinstance(item, dict):
            raise _bad(self.path, _('not an object'), line)
        for field in checks:
            if field not in item:
                raise _bad(self.path, _('it is missing'), line, field)
        for number, (field, value) in enumerate(item.items()):
            where = number + 2 if line is None else line
            if field not in checks:
                raise _bad(self.path, _('it is unknown'), where, field)
            words, check = checks[field]
            if not check(value):
                raise _bad(self.path, _('must be %s') % words, where, field)

    def _count(self, name: str, number: int) -> None:
        told = self.document['counts'][name]
        if told != number:
            raise _bad(
                self.path,
                _('says %(told)d, but the file holds %(number)d')
                % {'told': told, 'number': number},
                7,
                f'counts.{name}',
            )

    def _servers(self) -> dict[str, facts.MapServer]:
        found: dict[str, facts.MapServer] = {}
        for line, item in enumerate(self.document['servers'], _FIRST_LINE):
            self._fields(item, _SERVER, line)
            server = facts.MapServer(**item)
            if server.id in found:
                raise _bad(
                    self.path,
                    _('server %s is there twice') % server.id,
                    line,
                    'id',
                )
            found[server.id] = server
        return found

    def _attachments(
        self, servers: dict[str, facts.MapServer]
    ) -> tuple[facts.MapAttachment, ...]:
        found: dict[tuple[str, str], facts.MapAttachment] = {}
        first = _FIRST_LINE + len(servers) + 2
        for line, item in enumerate(self.document['attachments'], first):
            self._fields(item, _ATTACHMENT, line)
            one = facts.MapAttachment(**item)
            if (one.server_id, one.volume_id) in found:
                raise _twice(self.path, line, one.server_id, one.volume_id)
            found[one.server_id, one.volume_id] = one
            if one.server_id not in servers and one.recorded_by != 'cinder':
                raise _bad(
                    self.path,
                    _('server %s is not among the servers') % one.server_id,
                    line,
                    'server_id',
                )
            if (one.cinder_attachment_id is None) != (
                one.recorded_by == 'nova'
            ):
                raise _bad(
                    self.path,
                    _("does not fit recorded_by '%s'") % one.recorded_by,
                    line,
                    'cinder_attachment_id',
                )
        return tuple(found.values())


def _twice(
    path: str, line: int, server_id: str, volume_id: str
) -> exceptions.MapError:
    return _bad(
        path,
        _('volume %(volume)s of server %(server)s is there twice')
        % {'volume': volume_id, 'server': server_id},
        line,
        'volume_id',
    )


def _parse_bare(data: bytes, path: str) -> facts.CloudMap:
    """Read the procedure's file: volume, server and device in each line.

    It is what ``drp attachments show -f value -c Volume -c Server -c Device``
    prints. Nothing else is known: servers, roots, tags and flags are not in
    it, so the map says ``bare``.
    """
    try:
        text = data.decode('ascii')
    except UnicodeDecodeError as exc:
        line = data.count(b'\n', 0, exc.start) + 1
        raise _bad(path, _('a byte that no map has'), line) from None
    found: dict[tuple[str, str], facts.MapAttachment] = {}
    for line, columns in enumerate(map(str.split, text.split('\n')), 1):
        if not columns:
            continue
        one = _bare_line(columns, path, line)
        if (one.server_id, one.volume_id) in found:
            raise _twice(path, line, one.server_id, one.volume_id)
        found[one.server_id, one.volume_id] = one
    return facts.CloudMap(
        taken_at='',
        cloud='',
        source='',
        servers=(),
        attachments=tuple(found.values()),
        sha256=hashlib.sha256(data).hexdigest(),
        bare=True,
    )


def _bare_line(
    columns: list[str], path: str, line: int
) -> facts.MapAttachment:
    if not 2 <= len(columns) <= 3:
        raise _bad(
            path,
            _("not a map, and not 'volume server device' either"),
            line,
        )
    for field, value in zip(('volume', 'server'), columns, strict=False):
        if not _UUID.fullmatch(value):
            raise _bad(path, _('must be %s') % _ID[0], line, field)
    device = columns[2] if len(columns) == 3 else 'None'
    if device != 'None' and not _DEVICE.fullmatch(device):
        raise _bad(
            path, _("must be a device, as in '/dev/vdb'"), line, 'device'
        )
    return facts.MapAttachment(
        server_id=columns[1],
        volume_id=columns[0],
        device=None if device == 'None' else device,
        attachment_id=None,
        cinder_attachment_id=None,
        recorded_by='both',
        root=False,
        tag=None,
        delete_on_termination=False,
        multiattach=False,
    )
