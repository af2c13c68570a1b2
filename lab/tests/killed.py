"""Run `openstack ...` and die (SIGKILL) at a named point: killed.py POINT ARGS...

POINT is KIND:N, the N-th time that KIND happens: `journal` (after an entry is on the disk), `commit-before` and
`commit-after` (of a transaction that wrote), `post-before` and `post-after` (of a request that changes something).
`count:FILE` dies nowhere and writes to FILE how often each kind happened. The product knows nothing of this.
"""
import collections
import json
import os
import signal
import sys

import pymysql.connections
import pymysql.cursors
from openstackclient import shell

from osc_drp.cloud import session
from osc_drp.engine import journal

point, number = sys.argv[1].split(':', 1)
seen = collections.Counter()


def reach(kind):
    seen[kind] += 1
    if point == kind and seen[kind] == int(number):
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner, name, before=None, after=None, only=lambda *args: True):
    plain = getattr(owner, name)

    def wrapped(*args, **kwargs):
        matters = only(*args)
        if before and matters:
            reach(before)
        answer = plain(*args, **kwargs)
        if after and matters:
            reach(after)
        return answer

    setattr(owner, name, wrapped)


def note_writes(owner, name):
    plain = getattr(owner, name)

    def wrapped(self, sql, *args, **kwargs):
        text = sql.decode(errors='replace') if isinstance(sql, bytes) else sql
        if text.lstrip().upper().startswith('UPDATE'):
            self.wrote = True
        return plain(self, sql, *args, **kwargs)

    setattr(owner, name, wrapped)


def wrote(connection, *args):
    answer = getattr(connection, 'wrote', False)
    connection.wrote = False
    return answer


note_writes(pymysql.connections.Connection, 'query')
around(pymysql.connections.Connection, 'commit', 'commit-before', 'commit-after', wrote)
around(session.Api, 'post', 'post-before', 'post-after')
around(journal.Run, 'write', after='journal')

rc = shell.main(sys.argv[2:])
if point == 'count':
    with open(number, 'w') as f:
        json.dump(seen, f)
sys.exit(rc)
