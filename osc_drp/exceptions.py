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

"""Every error that a user can see, with its exit code.

The same in every command (and in the help of every command):

====  ====================================================================
code  meaning
====  ====================================================================
0     done
1     failed: a file, a URL, a password, a grant, an unreachable database,
      cell or API, not an administrator
2     wrong usage
3     finished, but some objects failed or need a person
4     understood and declined by a safety check; nothing was changed
130   interrupted
====  ====================================================================
"""

DONE = 0
FAILED = 1
USAGE = 2
PARTIAL = 3
REFUSED = 4
INTERRUPTED = 130


class DrpError(Exception):
    """The base of all: the message is one sentence for the operator."""

    exit_code = FAILED


class MapError(DrpError):
    """A map file is missing, damaged or of another kind."""


class ConfigError(DrpError):
    """A configuration file lacks what is needed."""


class DatabaseError(DrpError):
    """A database cannot be reached, or it does not let us do our work."""


class ApiError(DrpError):
    """An API cannot be reached, or it refuses us."""


class Away(ApiError):
    """An API does not answer, or says that it cannot: it may soon.

    :ivar what: who, where and why, for 'waiting for ...'
    """

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what


class NotFound(ApiError):
    """The API knows no such object (404)."""


class Conflict(ApiError):
    """The API refuses the request in the object's state (400, 409)."""


class Unanswered(ApiError):
    """A request that changes something got no answer: it may be done.

    Read again what became of it; never send it a second time.
    """


class Incomplete(DrpError):
    """A listing is shorter than it should be; a short map is never saved."""


class Changed(DrpError):
    """What a plan rested on is no longer so; nothing was written."""


class SshError(DrpError):
    """A guest or a host cannot be reached, or it declined: nothing ran."""


class SshBroken(SshError):
    """The connection broke: what was sent may have run or not."""


class Usage(DrpError):
    """Options that do not fit together."""

    exit_code = USAGE


class Refused(DrpError):
    """A safety check declined; nothing was changed."""

    exit_code = REFUSED
