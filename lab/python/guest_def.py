"""guest_def.py STATE_PATH BOOT_ID_FILE UUID: a guest as labdrivers.fakevirt has stored it, with what nova-compute has yet to
notice (lab/guest-off, a power loss) already counted in."""
import json
import os
import sys

state_path, boot_id_file, uuid = sys.argv[1:]
# before the file: nova-compute stores what it noticed first, and takes the note away then
undefined, off = (os.path.exists(f'{state_path}/control/{uuid}.{what}') for what in ('undefine', 'off'))
with open(f'{state_path}/hypervisor.json') as f:
    stored = json.load(f)
try:
    with open(boot_id_file) as f:
        boot_id = f.read().strip()
except FileNotFoundError:
    boot_id = None
guest = stored['guests'].get(uuid)
if undefined:
    guest = None
elif guest and (stored['boot_id'] != boot_id or off):
    guest['state'] = 'shutdown'
print(json.dumps(guest, indent=1))
