"""What the lab adds to nova and cinder: a hypervisor of files, and an NFS driver that says multiattach."""
