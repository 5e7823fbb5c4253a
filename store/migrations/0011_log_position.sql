-- The order of acts is that of the log, not that of the clocks, which differ
-- between nodes and are set back. A position is the id of the newest event when
-- the row was written. revoked_pos is the one after it: what has at least that
-- position came after the loss of the device's identity.
ALTER TABLE device ADD COLUMN revoked_pos BIGINT NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN seen_pos BIGINT NOT NULL DEFAULT 0; -- of last_seen
ALTER TABLE certificate ADD COLUMN issued_pos BIGINT NOT NULL DEFAULT 0;
ALTER TABLE certificate ADD COLUMN used_pos BIGINT NOT NULL DEFAULT 0; -- of used_at
ALTER TABLE credential ADD COLUMN created_pos BIGINT NOT NULL DEFAULT 0;
ALTER TABLE device_secret ADD COLUMN created_pos BIGINT NOT NULL DEFAULT 0;
ALTER TABLE access_token ADD COLUMN issued_pos BIGINT NOT NULL DEFAULT 0;

-- What is on record keeps the order that its times had: 0 before the loss of the
-- identity, 1 after it. Every later position is greater, since founding the
-- authority took more events than one.
UPDATE device SET revoked_pos = 1 WHERE revoked_at > 0;
UPDATE device SET seen_pos = 1 WHERE last_seen > revoked_at;
UPDATE certificate SET issued_pos = 1
	WHERE EXISTS (SELECT 1 FROM device d WHERE d.id = certificate.device AND d.revoked_at > 0 AND d.revoked_at < certificate.issued_at);
UPDATE credential SET created_pos = 1
	WHERE EXISTS (SELECT 1 FROM device d WHERE d.id = credential.device AND d.revoked_at < credential.created_at);
-- A group's keys are for all devices of its fleet: newer only if they are newer than each loss.
UPDATE credential SET created_pos = 1
	WHERE kind = 'group' AND NOT EXISTS (SELECT 1 FROM device d WHERE d.fleet = credential.fleet AND d.revoked_at >= credential.created_at);
UPDATE device_secret SET created_pos = 1
	WHERE EXISTS (SELECT 1 FROM device d WHERE d.id = device_secret.device AND d.revoked_at < device_secret.created_at);
UPDATE access_token SET issued_pos = 1
	WHERE EXISTS (SELECT 1 FROM device d WHERE d.id = access_token.subject AND d.revoked_at < access_token.issued_at);
