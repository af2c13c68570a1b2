"""Run `openstack ...` with less patience than an operator's client has: impatient.py SECONDS ARGS...

SECONDS bound every request (the product: 60, and 90 for one that changes something), and three times that each start or stop
of a server (600), so that a test of what never answers takes seconds. The product knows nothing of this.
"""
import sys

from openstackclient import shell

from osc_drp.cloud import session
from osc_drp.engine import restart

seconds = float(sys.argv[1])
session.CONNECT_TIMEOUT = session.READ_TIMEOUT = session.POST_TIMEOUT = seconds
restart.POWER_LIMIT = 3 * seconds

sys.exit(shell.main(sys.argv[2:]))
