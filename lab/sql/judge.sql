-- The judge: no write of osc-drp may leave a volume `available` while any cell (cell0 too) maps it. It sits in the
-- databases, so it sees every single statement as it happens, whatever the program meant. Writes through the APIs run as
-- the services' own users; those are judged by lab/violations' second query.
-- Plain reads in a trigger would see the transaction's old snapshot: LOCK IN SHARE MODE reads what is committed now.
CREATE DATABASE IF NOT EXISTS lab;
CREATE TABLE IF NOT EXISTS lab.violations (
    id INT AUTO_INCREMENT PRIMARY KEY, at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), user VARCHAR(255) NOT NULL,
    what VARCHAR(255) NOT NULL, volume_id VARCHAR(36), detail TEXT);

-- a mapping counts when it has an attachment or connection info (nova makes a blank one before it reserves in cinder)
CREATE OR REPLACE VIEW lab.mappings AS
    SELECT 'nova_cell0' AS cell, id, instance_uuid, volume_id, attachment_id FROM nova_cell0.block_device_mapping
     WHERE deleted = 0 AND volume_id IS NOT NULL AND (attachment_id IS NOT NULL OR COALESCE(connection_info, '') NOT IN ('', 'null'))
    UNION ALL
    SELECT 'nova_cell1', id, instance_uuid, volume_id, attachment_id FROM nova_cell1.block_device_mapping
     WHERE deleted = 0 AND volume_id IS NOT NULL AND (attachment_id IS NOT NULL OR COALESCE(connection_info, '') NOT IN ('', 'null'))
    UNION ALL
    SELECT 'nova_cell2', id, instance_uuid, volume_id, attachment_id FROM nova_cell2.block_device_mapping
     WHERE deleted = 0 AND volume_id IS NOT NULL AND (attachment_id IS NOT NULL OR COALESCE(connection_info, '') NOT IN ('', 'null'));

DELIMITER //
CREATE OR REPLACE TRIGGER cinder.lab_volume_available AFTER UPDATE ON cinder.volumes FOR EACH ROW
BEGIN
    DECLARE found TEXT DEFAULT NULL;
    IF USER() LIKE 'osc\_drp@%' AND NEW.status = 'available' AND NEW.deleted = 0 THEN
        SELECT CONCAT('nova_cell0 mapping ', id, ' of server ', instance_uuid) INTO found FROM nova_cell0.block_device_mapping
         WHERE volume_id = NEW.id AND deleted = 0 AND (attachment_id IS NOT NULL OR COALESCE(connection_info, '') NOT IN ('', 'null'))
         LIMIT 1 LOCK IN SHARE MODE;
        IF found IS NULL THEN
            SELECT CONCAT('nova_cell1 mapping ', id, ' of server ', instance_uuid) INTO found FROM nova_cell1.block_device_mapping
             WHERE volume_id = NEW.id AND deleted = 0 AND (attachment_id IS NOT NULL OR COALESCE(connection_info, '') NOT IN ('', 'null'))
             LIMIT 1 LOCK IN SHARE MODE;
        END IF;
        IF found IS NULL THEN
            SELECT CONCAT('nova_cell2 mapping ', id, ' of server ', instance_uuid) INTO found FROM nova_cell2.block_device_mapping
             WHERE volume_id = NEW.id AND deleted = 0 AND (attachment_id IS NOT NULL OR COALESCE(connection_info, '') NOT IN ('', 'null'))
             LIMIT 1 LOCK IN SHARE MODE;
        END IF;
        IF found IS NOT NULL THEN
            INSERT INTO lab.violations (user, what, volume_id, detail)
            VALUES (USER(), 'volume made available while mapped', NEW.id, CONCAT('status ', COALESCE(OLD.status, 'NULL'), '; ', found));
        END IF;
    END IF;
END//
DELIMITER ;
