"""old_schema.py PACKAGE REVISION URL: make a service's tables as of a revision, by its own alembic (cinder.db, nova.db.main, ...)."""
import importlib
import importlib.util
import pathlib
import sys

from alembic import command
from alembic import config
from oslo_config import cfg

package, revision, url = sys.argv[1:]
if package.startswith('cinder'):
    # they register options, which is too late once the configuration is read
    for module in 'quota', 'volume.group_types', 'volume.volume_types':
        importlib.import_module(f'cinder.{module}')
cfg.CONF([], project='none', default_config_files=[])
home = pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0])
alembic = config.Config(home / 'alembic.ini')
alembic.set_main_option('sqlalchemy.url', url.replace('%', '%%'))
command.upgrade(alembic, revision)
