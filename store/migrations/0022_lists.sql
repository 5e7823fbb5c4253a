-- Each list and filter reads by an index that begins with what it is asked for and ends in
-- the order of the list, so that its time does not depend on how many rows there are. Where
-- one column can be left out, the parts of all its values are merged: one index serves both.

-- In place of (fleet, id): an enrollment writes as many entries as before.
DROP INDEX device_by_fleet;
CREATE INDEX device_by_fleet ON device (fleet, state, id);
CREATE INDEX device_by_state ON device (state, id);

-- In place of (not_after, serial).
DROP INDEX certificate_by_expiry;
CREATE INDEX certificate_by_state ON certificate (state, not_after, serial, issuer);

CREATE INDEX credential_by_kind ON credential (kind, created_at, id);
CREATE INDEX credential_by_fleet ON credential (fleet, kind, created_at, id);

-- In place of (expires_at): blocks that are open are few, and listed by id.
DROP INDEX serial_block_open;
CREATE INDEX serial_block_open ON serial_block (id) WHERE state = 'open';

-- In place of (created_at, id).
DROP INDEX waiting_enrollment_by_time;
CREATE INDEX waiting_enrollment_by_state ON waiting_enrollment (state, created_at, id);

CREATE INDEX alert_by_rule ON alert (rule, first_seen, id);
CREATE INDEX alert_by_fleet ON alert (fleet, first_seen, id);
CREATE INDEX alert_by_severity ON alert (severity, first_seen, id);
CREATE INDEX alert_live_by_severity ON alert (severity, first_seen, id) WHERE state <> 'closed';

-- What is deleted by its age, in the transaction that others wait for.
CREATE INDEX alert_closed ON alert (changed_at) WHERE state = 'closed';
CREATE INDEX mitigation_ended ON mitigation (made_at) WHERE state IN ('done', 'failed');
CREATE INDEX mitigation_by_act ON mitigation (act, began_at);
CREATE INDEX alert_snoozed ON alert (snoozed) WHERE state = 'snoozed';

-- In place of (gateway, device, since): the sessions of a device end at all brokers.
DROP INDEX broker_session_device;
CREATE INDEX broker_session_device ON broker_session (device, gateway, since);
