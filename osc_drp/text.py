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

"""Words of strangers, made fit to be shown."""

import re

#: Whatever moves a cursor, hides or reorders text on a terminal.
_CONTROL = re.compile(
    r'[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]'
)


def number(said: str) -> int | None:
    """Read a whole number; None: it is none, or one that nobody means.

    int() raises ValueError for more than 4300 digits, and a machine may say
    a million.

    >>> number(' 15 '), number('x'), number('1' * 5000)
    (15, None, None)
    """
    said = said.strip()
    return int(said) if said.isdecimal() and len(said) <= 18 else None


def plain(text: str) -> str:
    """Take out what a terminal would obey, but for the ends of lines.

    >>> plain('a\\x1b[2Jb\\nc')
    'a [2Jb\\nc'
    """
    return _CONTROL.sub(lambda m: '\n' if m[0] == '\n' else ' ', text)


def one_line(text: str, length: int = 200) -> str:
    """Make one line without control characters, cut to a length.

    >>> one_line('a\\x1b[2Jb\\n\\n c')
    'a [2Jb c'
    """
    line = ' '.join(_CONTROL.sub(' ', text).split())
    return line if len(line) <= length else line[: length - 3] + '...'
