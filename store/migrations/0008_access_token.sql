-- Access tokens that were given out, for as long as they could still be used.
CREATE TABLE access_token (
	id         {{text}} PRIMARY KEY,
	subject    {{text}} NOT NULL, -- device id, or operator/<name>
	source     {{text}} NOT NULL, -- what it was given for: operator_token:<id>, oidc:<subject>, a certificate, a secret
	fleet      {{text}} NOT NULL,
	devices    {{text}} NOT NULL, -- JSON: the scope of an operator's
	read_only  BOOLEAN NOT NULL,
	issued_at  BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,
	revoked_at BIGINT NOT NULL
);
CREATE INDEX access_token_by_source ON access_token (source, expires_at);
CREATE INDEX access_token_by_end ON access_token (expires_at, id);
