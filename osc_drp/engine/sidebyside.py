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

"""Asking many things at once; what changes something is in apply.py."""

import collections.abc
import concurrent.futures
import typing as ty

_In = ty.TypeVar('_In')
_Out = ty.TypeVar('_Out')


def each(
    work: collections.abc.Callable[[_In], _Out],
    items: collections.abc.Sequence[_In],
    parallel: int,
) -> list[_Out]:
    """Do something for each item, side by side; the first error ends.

    That error is raised, and what was not begun by then never is.

    :param parallel: how many at once; one by one in this very thread, if it
        is 1
    """
    count = min(parallel, len(items))
    if count <= 1:
        return [work(item) for item in items]
    pool = concurrent.futures.ThreadPoolExecutor(count)
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)
