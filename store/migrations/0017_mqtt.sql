-- What the MQTT broker core keeps. A node reads the rows of its own name only.

CREATE TABLE mqtt_session (
	id        BIGINT PRIMARY KEY, -- of one life of a session; the highest of a client counts
	node      {{text}} NOT NULL,
	client    {{text}} NOT NULL,
	device    {{text}} NOT NULL,
	expiry    BIGINT NOT NULL, -- seconds after the connection's end
	left_at   BIGINT NOT NULL, -- 0: connected
	sent      BIGINT NOT NULL, -- the highest seq of its queue that was sent before left_at
	will      {{bytes}},       -- to be published at will_at
	will_at   BIGINT NOT NULL
);
CREATE INDEX mqtt_session_device ON mqtt_session (device);

CREATE TABLE mqtt_subscription (
	session BIGINT NOT NULL,
	n       BIGINT NOT NULL, -- a filter may be too long for an index
	filter  {{text}} NOT NULL,
	options BIGINT NOT NULL, -- as in SUBSCRIBE (MQTT 5, 3.8.3.1)
	sub_id  BIGINT NOT NULL, -- subscription identifier; 0: none
	PRIMARY KEY (session, n)
){{clustered}};

CREATE TABLE mqtt_queue (
	session  BIGINT NOT NULL,
	seq      BIGINT NOT NULL, -- the packet identifier follows from it
	qos      BIGINT NOT NULL, -- granted
	retain   BIGINT NOT NULL, -- RETAIN of the PUBLISH
	released BIGINT NOT NULL, -- 1: PUBREC came, PUBREL is due
	expires  BIGINT NOT NULL, -- 0: never
	topic    {{text}} NOT NULL,
	props    {{bytes}} NOT NULL,
	payload  {{bytes}} NOT NULL,
	sub_ids  {{bytes}} NOT NULL,
	octets   BIGINT NOT NULL,
	PRIMARY KEY (session, seq)
){{clustered}};

-- Messages of QoS 2 from the client that wait for its PUBREL.
CREATE TABLE mqtt_inbound (
	session BIGINT NOT NULL,
	packet  BIGINT NOT NULL,
	PRIMARY KEY (session, packet)
){{clustered}};

CREATE TABLE mqtt_retained (
	node    {{text}} NOT NULL,
	hash    {{bytes}} NOT NULL, -- SHA-256 of the topic, which may be too long for an index
	topic   {{text}} NOT NULL,
	device  {{text}} NOT NULL,
	qos     BIGINT NOT NULL,
	expires BIGINT NOT NULL,
	props   {{bytes}} NOT NULL,
	payload {{bytes}} NOT NULL,
	PRIMARY KEY (node, hash)
);
CREATE INDEX mqtt_retained_device ON mqtt_retained (device);

-- The newest transaction of each node, so that one whose COMMIT was not answered can be
-- looked up.
CREATE TABLE mqtt_node (
	node    {{text}} PRIMARY KEY,
	started BIGINT NOT NULL,
	batch   BIGINT NOT NULL
);
