-- Audits: when which check ran, what it found, and what is left alone on purpose.
CREATE TABLE audit_run (
	id         {{text}} PRIMARY KEY,
	state      {{text}} NOT NULL, -- IN_PROGRESS, COMPLETED, FAILED, CANCELED
	reason     {{text}} NOT NULL, -- why it failed or was canceled
	scheduled  BOOLEAN NOT NULL,
	started_by {{text}} NOT NULL,
	via        {{text}} NOT NULL,
	node       {{text}} NOT NULL,
	canceled   BOOLEAN NOT NULL,  -- somebody wants it to end
	started_at BIGINT NOT NULL,
	ended_at   BIGINT NOT NULL,
	beat_at    BIGINT NOT NULL,   -- the process that runs it was alive
	log_events BIGINT NOT NULL,   -- the log as it was: sealed events, hash of the last
	log_head   {{text}} NOT NULL
);
CREATE INDEX audit_run_by_time ON audit_run (started_at, id);
CREATE UNIQUE INDEX audit_run_alone ON audit_run (state) WHERE state = 'IN_PROGRESS';

CREATE TABLE audit_check (
	run           {{text}} NOT NULL REFERENCES audit_run (id),
	name          {{text}} NOT NULL,
	status        {{text}} NOT NULL,
	severity      {{text}} NOT NULL, -- of the worst finding that is not suppressed
	looked_at     BIGINT NOT NULL,   -- rows
	non_compliant BIGINT NOT NULL,
	suppressed    BIGINT NOT NULL,
	kept          BIGINT NOT NULL,   -- findings on record, of both kinds
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
	suppressed {{text}} NOT NULL, -- id of the suppression; empty: none
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
