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

"""The contract with openstackclient: this module makes ``openstack drp``.

There is no DRP API, hence no global ``--os-drp-api-version`` option; yet
openstackclient needs every one of the names below. Without
``API_VERSION_OPTION`` or ``build_option_parser`` the whole ``openstack``
program dies; without ``DEFAULT_API_VERSION`` our commands silently vanish
(openstackclient 10.5.0, ``shell.py`` and ``common/clientmanager.py``).
"""

import argparse
import typing as ty

API_NAME = 'drp'
API_VERSION_OPTION = 'os_drp_api_version'
DEFAULT_API_VERSION = '1'
API_VERSIONS = ('1',)


def make_client(instance: ty.Any) -> ty.Any:
    """Give the SDK connection, for whoever reads ``client_manager.drp``."""
    return instance.sdk_connection


def build_option_parser(
    parser: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Add no global option."""
    return parser
