-- Times are microseconds since 1970 UTC, 0 for none. One text serves both
-- databases; {{bytes}} and {{identity}} are the dialect's words.

CREATE TABLE authority (
	id          TEXT PRIMARY KEY,
	kind        TEXT NOT NULL,
	parent      TEXT NOT NULL,
	certificate {{bytes}} NOT NULL,
	key_uri     TEXT NOT NULL,
	state       TEXT NOT NULL,
	created_at  BIGINT NOT NULL
);

CREATE TABLE profile (
	name       TEXT PRIMARY KEY,
	spec       TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL
);

CREATE TABLE fleet (
	name         TEXT PRIMARY KEY,
	issuer       TEXT NOT NULL REFERENCES authority (id),
	profile      TEXT NOT NULL REFERENCES profile (name),
	methods      TEXT NOT NULL,
	overlap      BIGINT NOT NULL,
	trust_domain TEXT NOT NULL,
	created_at   BIGINT NOT NULL,
	updated_at   BIGINT NOT NULL
);

CREATE TABLE device (
	id         TEXT PRIMARY KEY,
	fleet      TEXT NOT NULL REFERENCES fleet (name),
	state      TEXT NOT NULL,
	reason     TEXT NOT NULL,
	owner      TEXT NOT NULL,
	tags       TEXT NOT NULL,
	revoked_at BIGINT NOT NULL, -- last loss of its identity; older tokens do not readmit it
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL,
	last_seen  BIGINT NOT NULL,
	last_addr  TEXT NOT NULL
);
CREATE INDEX device_by_fleet ON device (fleet, id);

-- The serial leads the key: a presented certificate is looked up by it alone and
-- then compared by fingerprint.
CREATE TABLE certificate (
	serial       TEXT NOT NULL,
	issuer       TEXT NOT NULL,
	device       TEXT NOT NULL, -- empty: the authority's own (server, OCSP responder)
	fleet        TEXT NOT NULL,
	profile      TEXT NOT NULL,
	state        TEXT NOT NULL,
	held_from    TEXT NOT NULL,
	reason       INTEGER NOT NULL,
	replaced     BOOLEAN NOT NULL,
	predecessor  TEXT NOT NULL,
	evidence     TEXT NOT NULL,
	method       TEXT NOT NULL,
	key_hash     TEXT NOT NULL,
	fingerprint  TEXT NOT NULL,
	not_before   BIGINT NOT NULL,
	not_after    BIGINT NOT NULL,
	issued_at    BIGINT NOT NULL,
	used_at      BIGINT NOT NULL,
	accept_until BIGINT NOT NULL,
	revoked_at   BIGINT NOT NULL,
	shard        INTEGER NOT NULL,
	der          {{bytes}} NOT NULL,
	PRIMARY KEY (serial, issuer)
);
CREATE INDEX certificate_by_device ON certificate (device, issued_at);
CREATE INDEX certificate_by_expiry ON certificate (not_after, serial);
CREATE INDEX certificate_withdrawn ON certificate (issuer, shard, not_after) WHERE state IN ('revoked', 'held');
CREATE INDEX certificate_overlapping ON certificate (accept_until) WHERE state = 'superseded';

-- A block of serials is on record before the first of them is signed over.
CREATE TABLE serial_block (
	id         TEXT PRIMARY KEY,
	serials    {{bytes}} NOT NULL, -- concatenated, 20 octets each
	state      TEXT NOT NULL,      -- open, void
	opened_at  BIGINT NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX serial_block_open ON serial_block (expires_at) WHERE state = 'open';

CREATE TABLE crl (
	issuer      TEXT NOT NULL,
	shard       INTEGER NOT NULL,
	number      BIGINT NOT NULL, -- last number given out; the list itself may lag behind it
	published   BIGINT NOT NULL, -- number of the list in der
	this_update BIGINT NOT NULL,
	next_update BIGINT NOT NULL,
	entries     BIGINT NOT NULL,
	der         {{bytes}} NOT NULL,
	PRIMARY KEY (issuer, shard)
);

CREATE TABLE enrollment_token (
	id         TEXT PRIMARY KEY,
	hash       TEXT NOT NULL UNIQUE, -- hex SHA-256 of the token
	fleet      TEXT NOT NULL REFERENCES fleet (name),
	device     TEXT NOT NULL,        -- empty: any device
	uses_max   INTEGER NOT NULL,
	uses       INTEGER NOT NULL,
	created_by TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX enrollment_token_by_time ON enrollment_token (created_at, id);

CREATE TABLE operator_token (
	id         TEXT PRIMARY KEY,
	name       TEXT NOT NULL,
	role       TEXT NOT NULL,
	hash       {{bytes}} NOT NULL,
	created_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,
	used_at    BIGINT NOT NULL,
	revoked    BOOLEAN NOT NULL
);

-- seq and hash are the seal: dense, chained, in the order the sealer saw.
CREATE TABLE event (
	id     {{identity}},
	seq    BIGINT UNIQUE,
	at     BIGINT NOT NULL,
	type   TEXT NOT NULL,
	actor  TEXT NOT NULL,
	device TEXT NOT NULL,
	fleet  TEXT NOT NULL,
	issuer TEXT NOT NULL,
	serial TEXT NOT NULL,
	remote TEXT NOT NULL,
	via    TEXT NOT NULL,
	code   TEXT NOT NULL,
	reason TEXT NOT NULL,
	data   TEXT NOT NULL,
	hash   {{bytes}}
);
CREATE INDEX event_unsealed ON event (id) WHERE seq IS NULL;
CREATE INDEX event_by_device ON event (device, id) WHERE device <> '';
CREATE INDEX event_by_type ON event (type, id);
