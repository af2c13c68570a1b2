"""A hypervisor of files for nova: what a guest is lies in one JSON file per compute, as libvirt's definitions lie on disk.

The stock fake driver forgets its guests when nova-compute stops and agrees to everything. This one does what LAB_HOME's
tests need of libvirt:

- guests stay defined over a restart; after a power loss (another boot id) all of them are shut off;
- a guest can end by itself, or its definition be lost: lab/guest-off leaves a file in `control`, read at each look;
- a device name asked for is ignored, the next free one is given;
- a start or a hard reboot defines the guest anew with exactly the volumes that nova passes;
- attaching a volume that the definition already holds fails, whether the guest runs or not, with libvirt's words.

No connection_info is kept: it has secrets.
"""
import itertools
import json
import os
import threading

from nova.compute import power_state
from nova.compute import utils as compute_utils
import nova.conf
from nova import exception
from nova.objects import diagnostics as diagnostics_obj
from nova.virt import block_device as driver_block_device
from nova.virt import fake
from nova.virt import hardware

CONF = nova.conf.CONF


class libvirtError(Exception):
    """Named as libvirt's own."""


class Guest(fake.FakeInstance):
    """One definition: state, and volumes in the order of their device names."""

    def __init__(self, name, state, uuid, volumes=()):
        super().__init__(name, state, uuid)
        self.volumes = list(volumes)

    def define(self, block_device_info):
        self.volumes = sorted(
            (_volume(b['connection_info'], b['mount_device'])
             for b in (block_device_info or {}).get('block_device_mapping') or [] if b['connection_info']),
            key=_device_order)

    def as_json(self):
        return {'name': self.name, 'state': power_state.STATE_MAP[self.state], 'volumes': self.volumes}


def _device_order(volume):
    return len(volume['device']), volume['device']


def _volume(connection_info, device):
    data = connection_info.get('data') or {}
    return {'volume_id': driver_block_device.get_volume_id(connection_info), 'device': device,
            'type': connection_info.get('driver_volume_type'),
            'source': '/'.join(str(data[k]) for k in ('export', 'name') if k in data)}


class LabDriver(fake.FakeDriverWithoutFakeNodes):

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._lock = threading.RLock()      # held for every change of self.instances and for writing the file
        self._path = os.path.join(CONF.state_path, 'hypervisor.json')
        self._control = os.path.join(CONF.state_path, 'control')
        os.makedirs(self._control, exist_ok=True)
        boot_id = self._boot_id()
        try:
            with open(self._path) as f:
                saved = json.load(f)
        except FileNotFoundError:
            return
        states = {name: state for state, name in power_state.STATE_MAP.items()}
        lost = saved['boot_id'] != boot_id
        for uuid, g in saved['guests'].items():
            state = power_state.SHUTDOWN if lost else states[g['state']]
            self.instances[uuid] = Guest(g['name'], state, uuid, g['volumes'])
        self._save()

    @staticmethod
    def _boot_id():
        with open(os.path.join(os.environ['OSC_DRP_LAB'], 'run', 'boot_id')) as f:
            return f.read().strip()

    def _save(self):
        """Call with the lock held."""
        data = {'boot_id': self._boot_id(), 'guests': {u: g.as_json() for u, g in self.instances.items()}}
        with open(self._path + '.new', 'w') as f:
            json.dump(data, f, indent=1)
        os.replace(self._path + '.new', self._path)

    def _look(self):
        """What happened to the guests without nova's doing. Call with the lock held."""
        for name in os.listdir(self._control):
            uuid, _, what = name.partition('.')
            if what == 'off' and uuid in self.instances:
                self.instances[uuid].state = power_state.SHUTDOWN
            elif what == 'undefine':
                self.instances.pop(uuid, None)
            elif what not in ('off', 'undefine'):
                continue
            self._save()
            os.unlink(os.path.join(self._control, name))

    def _guest(self, instance):
        self._look()
        try:
            return self.instances[instance.uuid]
        except KeyError:
            raise exception.InstanceNotFound(instance_id=instance.uuid)

    def _run(self, instance, block_device_info, state=power_state.RUNNING):
        """Defines the guest anew and starts it."""
        with self._lock:
            self._look()
            guest = self.instances.setdefault(instance.uuid, Guest(instance.name, state, instance.uuid))
            guest.state = state
            if block_device_info is not None:
                guest.define(block_device_info)
            self._save()

    def _set_state(self, instance, state):
        with self._lock:
            self._guest(instance).state = state
            self._save()

    # ---- looking

    def list_instances(self):
        with self._lock:
            self._look()
            return [g.name for g in self.instances.values()]

    def list_instance_uuids(self):
        with self._lock:
            self._look()
            return list(self.instances)

    def get_info(self, instance, use_cache=True):
        with self._lock:
            return hardware.InstanceInfo(state=self._guest(instance).state)

    def get_diagnostics(self, instance):
        with self._lock:
            guest = self._guest(instance)
            if guest.state != power_state.RUNNING:
                raise libvirtError('Requested operation is not valid: domain is not running')
            return {'memory': 196608, 'cpu0_time': 17300000000}

    def get_instance_diagnostics(self, instance):
        with self._lock:
            guest = self._guest(instance)
            diags = diagnostics_obj.Diagnostics(
                state=power_state.STATE_MAP[guest.state], driver='libvirt', hypervisor='qemu', hypervisor_os='linux',
                uptime=60, config_drive=False)
            diags.memory_details = diagnostics_obj.MemoryDiagnostics(maximum=192, used=192)
            diags.add_cpu(id=0, time=17300000000)
            for _volume in guest.volumes:
                diags.add_disk(read_bytes=0, read_requests=0, write_bytes=0, write_requests=0, errors_count=0)
            return diags

    # ---- device names

    def default_root_device_name(self, instance, image_meta, root_bdm):
        return '/dev/vda'

    def default_device_names_for_instance(self, instance, root_device_name, *block_device_lists):
        for bdm in itertools.chain(*block_device_lists):
            if bdm.boot_index != 0:
                bdm.device_name = None
        compute_utils.default_device_names_for_instance(instance, root_device_name, *block_device_lists)

    def get_device_name_for_instance(self, instance, bdms, block_device_obj):
        return compute_utils.get_device_name_for_instance(instance, bdms, None)

    # ---- life

    def spawn(self, context, instance, image_meta, injected_files, admin_password, allocations,
              network_info=None, block_device_info=None, power_on=True, accel_info=None):
        with self._lock:
            super().spawn(context, instance, image_meta, injected_files, admin_password, allocations,
                          network_info, block_device_info, power_on, accel_info)
            self.instances[instance.uuid] = Guest(instance.name, self.instances[instance.uuid].state, instance.uuid)
            self._run(instance, block_device_info or {}, self.instances[instance.uuid].state)

    def power_on(self, context, instance, network_info, block_device_info=None, *args, **kwargs):
        self._run(instance, block_device_info)

    def reboot(self, context, instance, network_info, reboot_type, block_device_info=None, *args, **kwargs):
        if reboot_type.lower() == 'hard':
            self._run(instance, block_device_info)
        else:
            self._set_state(instance, power_state.RUNNING)

    def resume_state_on_host_boot(self, context, instance, network_info, share_info, block_device_info=None):
        with self._lock:
            self._look()
            guest = self.instances.get(instance.uuid)
            if not guest or guest.state != power_state.RUNNING:
                self._run(instance, block_device_info)

    def power_off(self, instance, timeout=0, retry_interval=0):
        with self._lock:
            self._look()
            if instance.uuid in self.instances:
                self._set_state(instance, power_state.SHUTDOWN)

    def pause(self, instance):
        self._set_state(instance, power_state.PAUSED)

    def unpause(self, instance):
        self._set_state(instance, power_state.RUNNING)

    def suspend(self, context, instance):
        self._set_state(instance, power_state.SHUTDOWN)

    def resume(self, context, instance, network_info, block_device_info=None, share_info=None):
        self._run(instance, block_device_info)

    def rescue(self, context, instance, *args, **kwargs):
        self._set_state(instance, power_state.RUNNING)

    def unrescue(self, context, instance):
        self._set_state(instance, power_state.RUNNING)

    def migrate_disk_and_power_off(self, context, instance, *args, **kwargs):
        self._set_state(instance, power_state.SHUTDOWN)

    def finish_revert_migration(self, context, instance, network_info, migration, block_device_info=None,
                                power_on=True, share_info=None):
        self._run(instance, block_device_info, power_state.RUNNING if power_on else power_state.SHUTDOWN)

    def destroy(self, context, instance, *args, **kwargs):
        with self._lock:
            super().destroy(context, instance, *args, **kwargs)
            self._save()

    # ---- volumes

    def attach_volume(self, context, connection_info, instance, mountpoint, *args, **kwargs):
        with self._lock:
            guest = self._guest(instance)
            new = _volume(connection_info, mountpoint)
            if any(v['volume_id'] == new['volume_id'] for v in guest.volumes):
                raise libvirtError(f"unsupported configuration: non unique alias detected: ua-{new['volume_id']}")
            if any(v['device'] == new['device'] for v in guest.volumes):
                raise libvirtError(f"Requested operation is not valid: target {mountpoint.rpartition('/')[2]} already exists")
            guest.volumes = sorted([*guest.volumes, new], key=_device_order)
            self._save()

    def detach_volume(self, context, connection_info, instance, mountpoint, encryption=None):
        with self._lock:
            self._look()
            guest = self.instances.get(instance.uuid)
            if guest:
                gone = driver_block_device.get_volume_id(connection_info)
                guest.volumes = [v for v in guest.volumes if v['volume_id'] != gone]
                self._save()

    def swap_volume(self, context, old_connection_info, new_connection_info, instance, mountpoint, resize_to):
        with self._lock:
            self.detach_volume(context, old_connection_info, instance, mountpoint)
            self.attach_volume(context, new_connection_info, instance, mountpoint)
