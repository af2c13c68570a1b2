-- The database user of osc-drp, and all that it may do. Run as an administrator of each database server.
-- Change the host part '%' to the address that the commands run from, and set a password:
--
--   CREATE USER 'osc_drp'@'%' IDENTIFIED BY '...';
--
-- Nothing may be inserted, deleted, locked as a whole or altered; only the columns named below may be written.

-- cinder
GRANT SELECT ON cinder.volumes TO 'osc_drp'@'%';
GRANT SELECT ON cinder.volume_attachment TO 'osc_drp'@'%';
GRANT SELECT ON cinder.volume_admin_metadata TO 'osc_drp'@'%';
GRANT SELECT ON cinder.services TO 'osc_drp'@'%';
GRANT UPDATE (status, attach_status) ON cinder.volumes TO 'osc_drp'@'%';
GRANT UPDATE (attach_status, detach_time, deleted, deleted_at) ON cinder.volume_attachment TO 'osc_drp'@'%';
GRANT UPDATE (deleted, deleted_at) ON cinder.volume_admin_metadata TO 'osc_drp'@'%';

-- nova's API database
GRANT SELECT ON nova_api.cell_mappings TO 'osc_drp'@'%';
GRANT SELECT ON nova_api.instance_mappings TO 'osc_drp'@'%';
GRANT SELECT ON nova_api.build_requests TO 'osc_drp'@'%';

-- each of nova's cell databases, cell0 included: repeat this part with its name instead of nova_cell1
-- (`nova-manage cell_v2 list_cells` shows them all)
GRANT SELECT ON nova_cell1.instances TO 'osc_drp'@'%';
GRANT SELECT ON nova_cell1.block_device_mapping TO 'osc_drp'@'%';
GRANT SELECT ON nova_cell1.instance_actions TO 'osc_drp'@'%';
GRANT SELECT ON nova_cell1.instance_actions_events TO 'osc_drp'@'%';
GRANT SELECT ON nova_cell1.migrations TO 'osc_drp'@'%';
GRANT SELECT ON nova_cell1.services TO 'osc_drp'@'%';
GRANT UPDATE (deleted, deleted_at, updated_at) ON nova_cell1.block_device_mapping TO 'osc_drp'@'%';

-- MySQL 8 asks for more than SELECT on a table whose rows are read FOR UPDATE (MariaDB does not). On cinder.volumes,
-- cinder.volume_attachment and the cells' block_device_mapping the UPDATE above is enough; the cells' instances, which
-- are locked and never written, need in each cell:
--
--   GRANT LOCK TABLES ON nova_cell1.* TO 'osc_drp'@'%';
