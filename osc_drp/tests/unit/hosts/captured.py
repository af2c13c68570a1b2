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

"""What real programs said.

SESSIONS is ``iscsiadm -m session -P 3`` of open-iscsi 2.1.8 (Debian 12), run
on a sysfs that was made by hand, for this kernel has no iSCSI: the format is
the program's, the values are not. DISCOVERED and DISCOVERED_WORDS were said
by the same program to a real tgtd (tgt 1.0.85). FSTAB and MOUNTS are those of
a Debian 12 cloud image with two volumes.
"""

VOLUME = '0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d'
OTHER = '11111111-2222-4333-8444-555555555555'

SESSIONS = f"""\
iSCSI Transport Class version 2.0-870
version 2.1.8
Target: iqn.2010-10.org.openstack:volume-{VOLUME} (non-flash)
\tCurrent Portal: 10.0.0.5:3260,1
\tPersistent Portal: 10.0.0.5:3260,1
\t\t**********
\t\tInterface:
\t\t**********
\t\tIface Name: default
\t\tIface Transport: tcp
\t\tIface Initiatorname: iqn.1993-08.org.debian:01:36c9c7934c44
\t\tIface IPaddress: 10.0.0.7
\t\tIface HWaddress: default
\t\tIface Netdev: default
\t\tSID: 15
\t\tiSCSI Connection State: Unknown
\t\tiSCSI Session State: LOGGED_IN
\t\tInternal iscsid Session State: Unknown
\t\t*********
\t\tTimeouts:
\t\t*********
\t\tRecovery Timeout: 120
\t\tTarget Reset Timeout: 30
\t\tLUN Reset Timeout: 30
\t\tAbort Timeout: 15
\t\t*****
\t\tCHAP:
\t\t*****
\t\tusername: cinderuser
\t\tpassword: ********
\t\tusername_in: <NULL>
\t\tpassword_in: ********
\t\t************************
\t\tNegotiated iSCSI params:
\t\t************************
\t\tHeaderDigest: None
\t\tDataDigest: None
\t\tMaxRecvDataSegmentLength: 262144
\t\tMaxXmitDataSegmentLength: 262144
\t\tFirstBurstLength: 262144
\t\tMaxBurstLength: 16776192
\t\tImmediateData: Yes
\t\tInitialR2T: No
\t\tMaxOutstandingR2T: 1
\t\t************************
\t\tAttached SCSI devices:
\t\t************************
\t\tHost Number: 3\tState: running
\t\tscsi3 Channel 00 Id 0 Lun: 0
\t\tscsi3 Channel 00 Id 0 Lun: 1
\t\t\tAttached scsi disk sdb\t\tState: running
"""

DISCOVERED = f"""\
127.0.0.1:13260,1 iqn.2010-10.org.openstack:volume-{OTHER}
127.0.0.1:13260,1 iqn.2010-10.org.openstack:volume-{VOLUME}
"""

#: Without the kernel's module.
NO_DRIVER = """\
iscsiadm: Could not scan /sys/class/iscsi_transport.
iscsiadm: iSCSI driver tcp is not loaded. Load the module then retry the \
command.
iscsiadm: Could not perform SendTargets discovery: iSCSI driver not found. \
Please make sure it is loaded, and retry the operation
"""

FSTAB = """\
# /etc/fstab: static file system information
PARTUUID=6f1d9fe3-01 / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1
PARTUUID=6f1d9fe3-0f /boot/efi vfat defaults 0 0
/dev/vdb /srv/db ext4 defaults 0 2

UUID=7d1c9b1e-1f5e-4a51-9f0e-2f0b8a7f5c11 /home xfs defaults,nofail 0 2
LABEL=with\\040space /mnt/with\\040space ext4 errors=remount,nofail 0 2
/swapfile none swap sw 0 0
tmpfs /tmp tmpfs nosuid 0 0
"""

MOUNTS = """\
proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
/dev/vda1 / ext4 rw,relatime,discard,errors=remount-ro 0 0
/dev/vda15 /boot/efi vfat rw,relatime 0 0
/dev/vdb /srv/db ext4 ro,relatime 0 0
/dev/vdc /home xfs rw,relatime 0 0
"""

#: name, path in sysfs, serial, device-mapper's name and kind.
DEVICES = f"""\
vda\t/sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda\t\t\t
vda1\t/sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda1\t\t\t
vda15\t/sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda15\t\t\t
vdb\t/sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb\t{VOLUME[:20]}\t\t
vdc\t/sys/devices/pci0000:00/0000:00:06.0/virtio3/block/vdc\t{OTHER[:20]}\t\t
"""

LINKS = """\
/dev/disk/by-partuuid/6f1d9fe3-01\t/dev/vda1
/dev/disk/by-partuuid/6f1d9fe3-0f\t/dev/vda15
/dev/disk/by-uuid/2b1f8a53-9f44-4b7c-8f43-6b9b0ed5a1f0\t/dev/vdb
/dev/disk/by-uuid/7d1c9b1e-1f5e-4a51-9f0e-2f0b8a7f5c11\t/dev/vdc
"""


def guest(**changes: str) -> dict[str, list[str]]:
    """Give the sections that such a guest says; a test says what differs."""
    said = {
        'fstab': FSTAB,
        'mounts': MOUNTS,
        'devices': DEVICES,
        'links': LINKS,
        'slaves': '',
        'home': '/home/debian',
        **changes,
    }
    return {
        name: [x for x in text.splitlines() if x.strip()]
        for name, text in said.items()
    }
