-- Alerts: findings of one rule about one subject, grouped, that want a person.
CREATE TABLE alert (
	id         {{text}} PRIMARY KEY,
	rule       {{text}} NOT NULL,
	subject    {{text}} NOT NULL,
	severity   {{text}} NOT NULL,
	state      {{text}} NOT NULL, -- open, acknowledged, snoozed, closed
	device     {{text}} NOT NULL,
	fleet      {{text}} NOT NULL,
	remote     {{text}} NOT NULL,
	summary    {{text}} NOT NULL,
	evidence   {{text}} NOT NULL, -- JSON: the last findings
	count      BIGINT NOT NULL,
	assignee   {{text}} NOT NULL,
	comments   {{text}} NOT NULL, -- JSON
	done       {{text}} NOT NULL, -- JSON: mitigations with time and outcome
	snoozed    BIGINT NOT NULL,   -- until
	first_seen BIGINT NOT NULL,
	last_seen  BIGINT NOT NULL,
	changed_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX alert_live ON alert (rule, subject) WHERE state <> 'closed';
CREATE INDEX alert_by_time ON alert (last_seen, id);
CREATE INDEX alert_by_device ON alert (device, last_seen) WHERE device <> '';

-- Where each reader of the sealed log stands.
CREATE TABLE event_cursor (
	name {{text}} PRIMARY KEY,
	seq  BIGINT NOT NULL
);

-- What is to be told to somebody outside, until he has it.
CREATE TABLE notification (
	id       {{text}} PRIMARY KEY,
	channel  {{text}} NOT NULL, -- name in the configuration
	body     {{text}} NOT NULL, -- JSON
	attempts BIGINT NOT NULL,
	next_at  BIGINT NOT NULL,
	made_at  BIGINT NOT NULL,
	error    {{text}} NOT NULL
);
CREATE INDEX notification_due ON notification (next_at);
