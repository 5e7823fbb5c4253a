-- Audits: when which check ran, what it found, and what is left alone on purpose.
CREATE TABLE audit_run (
	id         {{text}} PRIMARY KEY,
	state      {{text}} NOT NULL, -- running, completed, failed
	started_by {{text}} NOT NULL,
	started_at BIGINT NOT NULL,
	ended_at   BIGINT NOT NULL
);
CREATE INDEX audit_run_by_time ON audit_run (started_at, id);

CREATE TABLE audit_check (
	run           {{text}} NOT NULL REFERENCES audit_run (id),
	name          {{text}} NOT NULL,
	status        {{text}} NOT NULL,
	looked_at     BIGINT NOT NULL,
	non_compliant BIGINT NOT NULL,
	suppressed    BIGINT NOT NULL,
	error         {{text}} NOT NULL,
	PRIMARY KEY (run, name)
);

CREATE TABLE audit_finding (
	id         {{text}} PRIMARY KEY,
	run        {{text}} NOT NULL REFERENCES audit_run (id),
	name       {{text}} NOT NULL,
	reason     {{text}} NOT NULL, -- reason code
	severity   {{text}} NOT NULL,
	subject    {{text}} NOT NULL,
	device     {{text}} NOT NULL,
	fleet      {{text}} NOT NULL,
	issuer     {{text}} NOT NULL,
	serial     {{text}} NOT NULL,
	summary    {{text}} NOT NULL,
	evidence   {{text}} NOT NULL, -- JSON
	suppressed BOOLEAN NOT NULL,
	at         BIGINT NOT NULL
);
CREATE INDEX audit_finding_of ON audit_finding (run, id);

CREATE TABLE audit_suppression (
	id         {{text}} PRIMARY KEY,
	name       {{text}} NOT NULL, -- of the check
	subject    {{text}} NOT NULL, -- * stands for any text
	reason     {{text}} NOT NULL,
	created_by {{text}} NOT NULL,
	created_at BIGINT NOT NULL,
	ends_at    BIGINT NOT NULL
);
