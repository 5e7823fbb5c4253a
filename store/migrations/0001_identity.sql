-- Times are microseconds since 1970 UTC, 0 for none. One text serves both
-- databases; {{text}}, {{bytes}} and {{identity}} are the dialect's words.

CREATE TABLE authority (
	id          {{text}} PRIMARY KEY,
	kind        {{text}} NOT NULL,
	parent      {{text}} NOT NULL,
	certificate {{bytes}} NOT NULL,
	key_uri     {{text}} NOT NULL,
	state       {{text}} NOT NULL,
	created_at  BIGINT NOT NULL
);

CREATE TABLE profile (
	name       {{text}} PRIMARY KEY,
	spec       {{text}} NOT NULL,
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL
);

CREATE TABLE fleet (
	name         {{text}} PRIMARY KEY,
	issuer       {{text}} NOT NULL REFERENCES authority (id),
	profile      {{text}} NOT NULL REFERENCES profile (name),
	methods      {{text}} NOT NULL,
	overlap      BIGINT NOT NULL,
	trust_domain {{text}} NOT NULL,
	created_at   BIGINT NOT NULL,
	updated_at   BIGINT NOT NULL
);

CREATE TABLE device (
	id         {{text}} PRIMARY KEY,
	fleet      {{text}} NOT NULL REFERENCES fleet (name),
	state      {{text}} NOT NULL,
	reason     {{text}} NOT NULL,
	owner      {{text}} NOT NULL,
	tags       {{text}} NOT NULL,
	revoked_at BIGINT NOT NULL, -- last loss of its identity; older tokens do not readmit it
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL,
	last_seen  BIGINT NOT NULL,
	last_addr  {{text}} NOT NULL
);
CREATE INDEX device_by_fleet ON device (fleet, id);

-- The serial leads the key: a presented certificate is looked up by it alone and
-- then compared by fingerprint.
CREATE TABLE certificate (
	serial       {{text}} NOT NULL,
	issuer       {{text}} NOT NULL,
	device       {{text}} NOT NULL, -- empty: the authority's own (server, OCSP responder)
	fleet        {{text}} NOT NULL,
	profile      {{text}} NOT NULL,
	state        {{text}} NOT NULL,
	held_from    {{text}} NOT NULL,
	reason       INTEGER NOT NULL,
	replaced     BOOLEAN NOT NULL,
	predecessor  {{text}} NOT NULL,
	evidence     {{text}} NOT NULL,
	method       {{text}} NOT NULL,
	key_hash     {{text}} NOT NULL,
	fingerprint  {{text}} NOT NULL,
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
	id         {{text}} PRIMARY KEY,
	serials    {{bytes}} NOT NULL, -- concatenated, 20 octets each
	state      {{text}} NOT NULL,      -- open, void
	opened_at  BIGINT NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX serial_block_open ON serial_block (expires_at) WHERE state = 'open';

CREATE TABLE crl (
	issuer      {{text}} NOT NULL,
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
	id         {{text}} PRIMARY KEY,
	hash       {{text}} NOT NULL UNIQUE, -- hex SHA-256 of the token
	fleet      {{text}} NOT NULL REFERENCES fleet (name),
	device     {{text}} NOT NULL,        -- empty: any device
	uses_max   INTEGER NOT NULL,
	uses       INTEGER NOT NULL,
	created_by {{text}} NOT NULL,
	created_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX enrollment_token_by_time ON enrollment_token (created_at, id);

CREATE TABLE operator_token (
	id         {{text}} PRIMARY KEY,
	name       {{text}} NOT NULL,
	role       {{text}} NOT NULL,
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
	type   {{text}} NOT NULL,
	actor  {{text}} NOT NULL,
	device {{text}} NOT NULL,
	fleet  {{text}} NOT NULL,
	issuer {{text}} NOT NULL,
	serial {{text}} NOT NULL,
	remote {{text}} NOT NULL,
	via    {{text}} NOT NULL,
	code   {{text}} NOT NULL,
	reason {{text}} NOT NULL,
	data   {{text}} NOT NULL,
	hash   {{bytes}}
);
CREATE INDEX event_unsealed ON event (id) WHERE seq IS NULL;
CREATE INDEX event_by_device ON event (device, id) WHERE device <> '';
CREATE INDEX event_by_type ON event (type, id);
