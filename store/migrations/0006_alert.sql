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
	timeline   {{text}} NOT NULL, -- JSON: what people said, and what was done with its outcome
	resolution {{text}} NOT NULL, -- resolved or not_an_issue; empty until closed
	snoozed    BIGINT NOT NULL,   -- until
	first_seen BIGINT NOT NULL,
	last_seen  BIGINT NOT NULL,
	changed_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX alert_live ON alert (rule, subject) WHERE state <> 'closed';
CREATE INDEX alert_by_time ON alert (first_seen, id);
CREATE INDEX alert_by_device ON alert (device, first_seen) WHERE device <> '';

-- What is to be done about an alert, and what was, for as long as it counts.
CREATE TABLE mitigation (
	id       {{text}} PRIMARY KEY,
	alert    {{text}} NOT NULL,
	act      {{text}} NOT NULL, -- suspend, revoke, block
	object   {{text}} NOT NULL, -- the device, or the address
	fleet    {{text}} NOT NULL,
	finding  {{text}} NOT NULL, -- JSON
	state    {{text}} NOT NULL, -- waiting, running, done, failed
	attempts BIGINT NOT NULL,
	made_at  BIGINT NOT NULL,
	began_at BIGINT NOT NULL,   -- the first attempt; 0 before
	next_at  BIGINT NOT NULL    -- when it is due: the next attempt, or the end of the one that runs
);
CREATE INDEX mitigation_due ON mitigation (next_at) WHERE state IN ('waiting', 'running');
CREATE INDEX mitigation_by_alert ON mitigation (alert, act, object, made_at);
CREATE INDEX mitigation_by_fleet ON mitigation (fleet, began_at);

-- Where each reader of the sealed log stands.
CREATE TABLE event_cursor (
	name {{text}} PRIMARY KEY,
	seq  BIGINT NOT NULL
);

-- What is to be told to somebody outside, until he has it.
CREATE TABLE notification (
	id       {{text}} PRIMARY KEY,
	channel  {{text}} NOT NULL, -- name in the configuration
	alert    {{text}} NOT NULL, -- empty for a digest
	body     {{text}} NOT NULL, -- JSON
	attempts BIGINT NOT NULL,
	next_at  BIGINT NOT NULL,
	made_at  BIGINT NOT NULL,
	error    {{text}} NOT NULL
);
CREATE INDEX notification_due ON notification (channel, next_at);
