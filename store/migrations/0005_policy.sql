-- What devices of a fleet may do: every version there was. The highest is in force.
CREATE TABLE policy_version (
	fleet      {{text}} NOT NULL REFERENCES fleet (name),
	version    BIGINT NOT NULL,
	source     {{text}} NOT NULL, -- as it was written
	note       {{text}} NOT NULL,
	created_by {{text}} NOT NULL,
	created_at BIGINT NOT NULL,
	PRIMARY KEY (fleet, version)
);

-- A bounded sample of what was decided, for the replay of a draft.
CREATE TABLE policy_decision (
	id        {{identity}},
	fleet     {{text}} NOT NULL,
	device    {{text}} NOT NULL,
	client_id {{text}} NOT NULL,
	cn        {{text}} NOT NULL,
	scope     {{text}} NOT NULL, -- devices that an app's session was for, with blanks between them
	action    {{text}} NOT NULL,
	topic     {{text}} NOT NULL,
	allowed   BOOLEAN NOT NULL,
	at        BIGINT NOT NULL
);
CREATE INDEX policy_decision_of ON policy_decision (fleet, id);
