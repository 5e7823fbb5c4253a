-- A fork holds the newest certificate in use and revokes the others, so that no
-- reactivation brings back those of both holders. Forks from before held them all.
-- Which suspensions were a fork's is in the log: the server suspended the device after
-- the finding, and it was not reactivated since. Each revocation is an event, too.
INSERT INTO event (at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
	SELECT {{now}}, 'certificate.revoked', 'system', c.device, c.fleet, c.issuer, c.serial, '', '', '',
		'held by a fork, beside the newest in use', '{"reason":"superseded"}'
	FROM certificate c JOIN device d ON d.id = c.device
	WHERE c.state = 'held' AND c.held_from IN ('superseded', 'pending') AND d.state = 'suspended' AND EXISTS (
		SELECT 1 FROM event f JOIN event s ON s.device = f.device AND s.id > f.id
		WHERE f.device = d.id AND f.device <> '' AND f.type = 'finding.fork' AND s.device <> '' AND s.type = 'device.suspended' AND s.actor = 'system'
		AND NOT EXISTS (SELECT 1 FROM event r WHERE r.device = d.id AND r.device <> '' AND r.type = 'device.reactivated' AND r.id > f.id))
	ORDER BY c.device, c.serial, c.issuer;
UPDATE certificate SET state = 'revoked', reason = 4, held_from = ''
	WHERE state = 'held' AND held_from IN ('superseded', 'pending') AND device IN (SELECT d.id FROM device d WHERE d.state = 'suspended' AND EXISTS (
		SELECT 1 FROM event f JOIN event s ON s.device = f.device AND s.id > f.id
		WHERE f.device = d.id AND f.device <> '' AND f.type = 'finding.fork' AND s.device <> '' AND s.type = 'device.suspended' AND s.actor = 'system'
		AND NOT EXISTS (SELECT 1 FROM event r WHERE r.device = d.id AND r.device <> '' AND r.type = 'device.reactivated' AND r.id > f.id)));
