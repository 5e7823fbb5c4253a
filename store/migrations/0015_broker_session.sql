-- What the sessions at other people's brokers rest on, by the names that a broker
-- asks by. It serves the questions that come to another node or after a restart.
CREATE TABLE broker_session (
	gateway    {{text}} NOT NULL,
	client     {{text}} NOT NULL, -- empty: any of the user's
	username   {{text}} NOT NULL,
	device     {{text}} NOT NULL,
	fleet      {{text}} NOT NULL,
	issuer     {{text}} NOT NULL,
	serial     {{text}} NOT NULL,
	credential {{text}} NOT NULL,
	protocol   {{text}} NOT NULL,
	since      BIGINT NOT NULL,
	not_after  BIGINT NOT NULL, -- 0: never
	PRIMARY KEY (gateway, client, username)
);
CREATE INDEX broker_session_device ON broker_session (gateway, device, since);
