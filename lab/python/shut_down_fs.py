"""shut_down_fs.py MOUNT_POINT: an ext4 loses its power: dirty pages and the open journal transaction are never written.

EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (linux/ext4.h, since 4.11), which xfstests calls `godown`. Only a new mount brings
it back.
"""
import fcntl
import os
import struct
import sys

SHUTDOWN, NO_LOG_FLUSH = 0x8004587d, 2
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(fd, SHUTDOWN, struct.pack('I', NO_LOG_FLUSH))
os.close(fd)
