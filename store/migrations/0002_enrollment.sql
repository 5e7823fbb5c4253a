-- Every way in: one table for what earns a first certificate, whatever its kind,
-- the rules of fleets, registered authorities, and requests that wait for approval.

CREATE TABLE credential (
	id         {{text}} PRIMARY KEY,
	kind       {{text}} NOT NULL, -- the method: token, claim, key, group, thumbprint, tpm
	lookup     {{text}} NOT NULL, -- fingerprint by which evidence finds it
	second     {{text}} NOT NULL, -- another one; empty if none
	sealed     {{bytes}},         -- symmetric keys, sealed with the server's key
	fleet      {{text}} NOT NULL REFERENCES fleet (name),
	device     {{text}} NOT NULL,
	label      {{text}} NOT NULL,
	not_before BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,
	uses_max   INTEGER NOT NULL,
	uses       INTEGER NOT NULL,
	per_minute INTEGER NOT NULL,
	networks   {{text}} NOT NULL,
	devices    {{text}} NOT NULL,
	state      {{text}} NOT NULL,
	reason     {{text}} NOT NULL,
	created_by {{text}} NOT NULL,
	created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX credential_active ON credential (kind, lookup) WHERE state = 'active';
CREATE INDEX credential_by_lookup ON credential (kind, lookup);
INSERT INTO credential (id, kind, lookup, second, fleet, device, label, not_before, expires_at, uses_max, uses, per_minute,
		networks, devices, state, reason, created_by, created_at)
	SELECT id, 'token', hash, '', fleet, device, '', 0, expires_at, uses_max, uses, 0, 'null', 'null', 'active', '', created_by, created_at
	FROM enrollment_token;
DROP TABLE enrollment_token;
CREATE INDEX credential_by_second ON credential (kind, second) WHERE second <> '';
CREATE INDEX credential_by_device ON credential (device, kind) WHERE device <> '';
CREATE INDEX credential_by_time ON credential (created_at, id);

ALTER TABLE fleet ADD COLUMN rules {{text}} NOT NULL DEFAULT '{}';

-- Of a registered authority: its intermediates, its lists, and what it must show.
ALTER TABLE authority ADD COLUMN trust {{text}} NOT NULL DEFAULT '{}';

CREATE TABLE registration_code (
	code       {{text}} PRIMARY KEY,
	created_by {{text}} NOT NULL,
	expires_at BIGINT NOT NULL
);

-- One public key may serve one device.
CREATE INDEX certificate_by_key ON certificate (key_hash);

CREATE TABLE waiting_enrollment (
	id         {{text}} PRIMARY KEY,
	state      {{text}} NOT NULL, -- waiting, approved, rejected, done
	device     {{text}} NOT NULL,
	fleet      {{text}} NOT NULL,
	method     {{text}} NOT NULL,
	evidence   {{text}} NOT NULL,
	key_hash   {{text}} NOT NULL,
	facts      {{text}} NOT NULL,
	remote     {{text}} NOT NULL,
	via        {{text}} NOT NULL,
	decided_by {{text}} NOT NULL,
	note       {{text}} NOT NULL,
	created_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,
	decided_at BIGINT NOT NULL
);
CREATE INDEX waiting_enrollment_of ON waiting_enrollment (device, key_hash);
CREATE INDEX waiting_enrollment_by_time ON waiting_enrollment (created_at, id);
