-- What devices prove themselves with when they connect, beside certificates.
CREATE TABLE device_secret (
	id         {{text}} PRIMARY KEY,
	device     {{text}} NOT NULL REFERENCES device (id),
	slot       {{text}} NOT NULL,  -- primary, secondary
	kind       {{text}} NOT NULL,  -- password, secret
	verifier   {{bytes}} NOT NULL, -- keyed hash, or argon2id in PHC form
	scram      {{bytes}},          -- SCRAM-SHA-256 keys, sealed; only of a secret
	state      {{text}} NOT NULL,  -- active, stopped
	reason     {{text}} NOT NULL,
	created_by {{text}} NOT NULL,
	created_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,    -- 0: never; the end of the overlap of one that was rotated
	used_at    BIGINT NOT NULL
);
CREATE INDEX device_secret_by_device ON device_secret (device, state);
CREATE INDEX device_secret_by_time ON device_secret (created_at, id);
CREATE INDEX device_secret_ending ON device_secret (expires_at) WHERE state = 'active' AND expires_at > 0;
