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

"""A new file: whole or not at all, and never over another one."""

import contextlib
import errno
import os
import tempfile

from osc_drp.i18n import _


def write(data: bytes, path: str) -> None:
    """Write, sync, compare, link, sync the directory; mode 0600.

    :raises FileExistsError: the name is taken
    :raises OSError: it cannot be written
    """
    directory, name = os.path.split(os.path.abspath(path))
    handle, aside = tempfile.mkstemp('.part', f'.{name}.', directory)
    try:
        with open(handle, 'wb') as stream:
            os.fchmod(handle, 0o600)
            stream.write(data)
            stream.flush()
            os.fsync(handle)
        with open(aside, 'rb') as stream:
            if stream.read() != data:
                raise OSError(errno.EIO, _('it reads back differently'))
        _publish(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(aside: str, path: str) -> None:
    """Give the file its name unless that is taken.

    Some file systems have no hard links: there the name is taken first, by
    an empty file, which no reader mistakes for a whole one.
    """
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        os.close(os.open(path, flags, 0o600))
        os.replace(aside, path)
