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

"""What the operator sees: progress on stderr, one table on stdout."""

import threading
import time
import typing as ty


class Reporter:
    """Says on stderr what happens; the table is left to cliff."""

    #: Seconds between two plain progress lines.
    INTERVAL = 5.0

    def __init__(self, stream: ty.TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._last = 0.0

    def say(self, message: str) -> None:
        """Print a line at once."""
        with self._lock:
            self._stream.write(message + '\n')
            self._stream.flush()

    def progress(self, message: str) -> None:
        """Print a line unless one was printed moments ago."""
        now = time.monotonic()
        if now - self._last >= self.INTERVAL:
            self._last = now
            self.say(message)
