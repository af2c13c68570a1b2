-- The judge's other half, once for each cell: a mapping made live again while cinder calls its volume available.
-- An undo holds the lock of the volume's row in its other transaction, right until this one is over: then what is committed
-- counts (osc-drp's sessions are READ COMMITTED), for waiting would be for ourselves.
DELIMITER //
CREATE OR REPLACE TRIGGER nova_cell1.lab_mapping_live AFTER UPDATE ON nova_cell1.block_device_mapping FOR EACH ROW
BEGIN
    DECLARE found VARCHAR(255) DEFAULT NULL;
    IF USER() LIKE 'osc\_drp@%' AND OLD.deleted <> 0 AND NEW.deleted = 0 AND NEW.volume_id IS NOT NULL
       AND (NEW.attachment_id IS NOT NULL OR COALESCE(NEW.connection_info, '') NOT IN ('', 'null')) THEN
        SELECT status INTO found FROM cinder.volumes WHERE id = NEW.volume_id AND deleted = 0 LOCK IN SHARE MODE SKIP LOCKED;
        IF found IS NULL THEN
            SELECT status INTO found FROM cinder.volumes WHERE id = NEW.volume_id AND deleted = 0;
        END IF;
        IF found = 'available' THEN
            INSERT INTO lab.violations (user, what, volume_id, detail)
            VALUES (USER(), 'mapping made live while the volume is available', NEW.volume_id,
                    CONCAT('nova_cell1 mapping ', NEW.id, ' of server ', NEW.instance_uuid));
        END IF;
    END IF;
END//
DELIMITER ;
