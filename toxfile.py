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

"""Let all tox environments share one virtualenv (tox.ini's env_dir).

tox 4 writes the name of the environment into the virtualenv and builds it
anew when another name comes: a minute each. Here the name is taken out
again after each run. Everything else that makes tox rebuild (requirements,
constraints, the interpreter) still does. Should a later tox keep the name
elsewhere, it rebuilds more often, and that is all.
"""

import json

from tox.plugin import impl
from tox.tox_env.api import ToxEnv


@impl
def tox_env_teardown(tox_env: ToxEnv) -> None:
    """Forget which environment used the virtualenv last."""
    info = tox_env.env_dir / '.tox-info.json'
    if info.parent.name != 'shared' or not info.exists():
        return
    content = json.loads(info.read_text())
    if content.pop('ToxEnv', None):
        info.write_text(json.dumps(content, indent=2))
