-- A fork holds the newest certificate in use and revokes the others, so that no
-- reactivation brings back those of both holders. Forks from before held them all.
UPDATE certificate SET state = 'revoked', reason = 4, held_from = ''
	WHERE state = 'held' AND held_from IN ('superseded', 'pending')
	AND device IN (SELECT id FROM device WHERE state = 'suspended' AND reason = 'two holders of one identity');
